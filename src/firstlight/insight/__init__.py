"""What it learned: evaluation and Grad-CAM, as plain values."""
