"""Sizes and training options of wav2vec 2.0."""

import dataclasses
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Wav2Vec2Config:
    """Sizes, dropouts and training masks; the defaults are wav2vec2-base fine-tuned with CTC.

    Every field is JSON-able; a list read back from JSON becomes a tuple.

    Args:
        conv_dims: Channels of each feature-encoder layer; the next two are its kernel and stride.
        conv_bias: Whether the convolutions have a bias.
        conv_norm: "group" normalises layer 0 over time, each channel on its own; "layer"
            normalises every layer over its channels.
        d_model: Width of the encoder.
        num_layers: Encoder layers.
        num_heads: Attention heads.
        ffn_dim: Width inside the feed-forward block.
        positional_kernel: Kernel of the positional convolution, in frames.
        positional_groups: Its groups.
        norm_first: True is pre-norm (large-lv60, XLSR-53), False post-norm (base).
        vocab_size: Outputs of the CTC head.
        dropout: After the positional convolution and at the end of each block. The other
            dropouts: on the attention weights, inside the feed-forward block, after the feature
            projection, before the head.
        layer_drop: Probability of skipping an encoder layer while training.
        mask_time_prob: Fraction of frames masked while training if no spans overlapped, in spans
            of ``mask_time_length``, at least ``mask_time_min`` where the utterance has room.
        mask_channel_prob: The same over the ``d_model`` channels.
        layer_norm_eps: Of the projection's and the encoder's norms (the feature encoder's is 1e-5).

    Raises:
        ValueError: If sizes do not fit together or a value is out of range.
    """

    conv_dims: tuple[int, ...] = (512,) * 7
    conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = False
    conv_norm: Literal["group", "layer"] = "group"
    d_model: int = 768
    num_layers: int = 12
    num_heads: int = 12
    ffn_dim: int = 3072
    positional_kernel: int = 128
    positional_groups: int = 16
    norm_first: bool = False
    vocab_size: int = 32
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.1
    projection_dropout: float = 0.0
    head_dropout: float = 0.0
    layer_drop: float = 0.05
    mask_time_prob: float = 0.65
    mask_time_length: int = 10
    mask_time_min: int = 2
    mask_channel_prob: float = 0.256
    mask_channel_length: int = 64
    mask_channel_min: int = 0
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        convs = ("conv_dims", "conv_kernels", "conv_strides")
        for name in convs:
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not len(self.conv_dims) == len(self.conv_kernels) == len(self.conv_strides) > 0:
            raise ValueError(f"{', '.join(convs)} need one entry per layer, at least one")
        if self.conv_norm not in ("group", "layer"):
            raise ValueError(f"conv_norm is {self.conv_norm!r}; use 'group' or 'layer'")
        for name in ("num_heads", "positional_groups"):
            divisor = getattr(self, name)
            if divisor < 1 or self.d_model % divisor:
                raise ValueError(f"d_model {self.d_model} is not a multiple of {name} {divisor}")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name.endswith(("dropout", "_drop", "_prob")) and not 0 <= value <= 1:
                raise ValueError(f"{field.name} is {value}; use a fraction in [0, 1]")
            if field.name.endswith("_length") and value < 1:
                raise ValueError(f"{field.name} is {value}; use at least 1")
