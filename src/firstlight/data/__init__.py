"""What comes in: images and their labels, and how they are varied and batched."""
