"""What a network learned: accuracy, calibration, comparisons, Grad-CAM and label errors, as plain values."""
