"""What is done: train, find rates, judge labels, look after a machine."""
