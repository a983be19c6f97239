"""What a recipe gains from a change, on images held out of training."""
