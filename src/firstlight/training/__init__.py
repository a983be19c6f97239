"""How it learns: schedule, learning-rate finder, optimizers, the loop and its history."""
