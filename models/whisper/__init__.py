"""Whisper: an audio encoder, a text decoder, and its greedy and beam-search decoding."""

from models.whisper.config import DecodingOptions, WhisperConfig
from models.whisper.family import FAMILY
from models.whisper.model import PRUNE_SCOPES, Whisper

__all__ = ["FAMILY", "PRUNE_SCOPES", "DecodingOptions", "Whisper", "WhisperConfig"]
