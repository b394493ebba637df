"""Corpora, audio files, features, tokenizers, batches and scoring."""

from data import start  # noqa: F401  # Ctrl-C during the imports of a program
