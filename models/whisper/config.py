"""Sizes of Whisper, and what decoding is to generate."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class WhisperConfig:
    """Sizes and dropout of a Whisper model; the defaults are multilingual ``tiny``.

    ``audio_positions`` counts encoder frames (20 ms each), ``text_positions`` tokens. The three
    dropouts are probabilities and act only while training.

    Raises:
        ValueError: If the width is odd, below 4, or no multiple of the heads.
    """

    num_mels: int = 80
    audio_positions: int = 1500
    text_positions: int = 448
    d_model: int = 384
    encoder_layers: int = 4
    decoder_layers: int = 4
    encoder_heads: int = 6
    decoder_heads: int = 6
    encoder_ffn_dim: int = 1536
    decoder_ffn_dim: int = 1536
    vocab_size: int = 51865
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("encoder_heads", "decoder_heads"):
            heads = getattr(self, name)
            if heads < 1 or self.d_model % heads:
                raise ValueError(f"d_model {self.d_model} is not a multiple of {name} {heads}")
        if self.d_model < 4 or self.d_model % 2:
            raise ValueError(f"d_model is {self.d_model}; use an even number, at least 4")


@dataclass(frozen=True)
class DecodingOptions:
    """What ``generate`` in models/whisper/decoding.py is to generate.

    Attributes:
        start_ids: Ids every text starts with, e.g. start-of-transcript and no-timestamps.
        eos_id: End token.
        max_tokens: Limit of the whole sequence: start ids, text and end token.
        suppress_ids: Ids that are never generated.
        begin_suppress_ids: Ids that are not generated right after the start ids.
        beam_size: Hypotheses kept; 1 is greedy decoding.
        length_penalty: Beam search divides scores by the length to this power.
    """

    start_ids: Sequence[int]
    eos_id: int
    max_tokens: int
    suppress_ids: Sequence[int] = ()
    begin_suppress_ids: Sequence[int] = ()
    beam_size: int = 1
    length_penalty: float = 1.0
