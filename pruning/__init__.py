"""Pruning of named tensors: scopes, masks, mask files and schedules; knows no model class."""
