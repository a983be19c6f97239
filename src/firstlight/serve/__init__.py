"""Where a network is used: an ONNX file, a local page."""
