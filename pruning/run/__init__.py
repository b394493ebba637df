"""What a run of train.py is made of: its options, its plan, its state, its results."""
