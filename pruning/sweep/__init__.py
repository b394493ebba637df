"""Run a study: methods x sparsities x seeds, each a train.py of its own."""
