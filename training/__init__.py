"""What train.py is made of: schedule, sample order, base pre-training, the state of a run, its log."""
