"""How good and how fast Grad-CAM and the ranking of label errors are."""
