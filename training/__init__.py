"""Training: the pieces of train.py's loop."""
