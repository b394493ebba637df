"""Corpora, audio files, features, tokenizers, batches and scoring."""
