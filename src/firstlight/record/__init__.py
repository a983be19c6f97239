"""What is kept: the run folder and what lies in it."""
