"""wav2vec 2.0 with a CTC head, written by hand.

Covers the base layout (group norm in the feature encoder, post-norm Transformer) and the layout
of large-lv60 and XLSR-53 (layer norm in the feature encoder, pre-norm Transformer).

Shape letters: B batch, S samples, T encoder frames, C feature channels, D d_model, V vocab.

Source:
    Baevski et al. 2020 (arXiv:2006.11477), section 2 (model) and section 3.3 (fine-tuning). In
    eval mode the numbers are those of Hugging Face's
    ``transformers/models/wav2vec2/modeling_wav2vec2.py``.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import FeedForward, MultiHeadAttention
from models.wav2vec2_masking import mask_spans

PRUNE_SCOPES = {
    "encoder": r"encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|ffn\.fc[12])\.(weight|bias)"
}
INIT_STD = 0.02

Count = TypeVar("Count", int, Tensor)


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
        padding: "hf" lets the group norm see the padding as Hugging Face does, so the logits of an
            utterance depend on its batch mates; "independent" takes the statistics of each
            utterance's own frames. No difference with ``conv_norm="layer"``.

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
    padding: Literal["hf", "independent"] = "hf"

    def __post_init__(self) -> None:
        convs = ("conv_dims", "conv_kernels", "conv_strides")
        for name in convs:
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not len(self.conv_dims) == len(self.conv_kernels) == len(self.conv_strides) > 0:
            raise ValueError(f"{', '.join(convs)} need one entry per layer, at least one")
        if self.conv_norm not in ("group", "layer"):
            raise ValueError(f"conv_norm is {self.conv_norm!r}; use 'group' or 'layer'")
        if self.padding not in ("hf", "independent"):
            raise ValueError(f"padding is {self.padding!r}; use 'hf' or 'independent'")
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


class FeatureLayer(nn.Module):
    """One strided convolution, a norm in some layers, and an exact GELU."""

    def __init__(self, config: Wav2Vec2Config, index: int) -> None:
        super().__init__()
        channels = config.conv_dims[index]
        self.conv = nn.Conv1d(
            config.conv_dims[index - 1] if index else 1,
            channels,
            config.conv_kernels[index],
            config.conv_strides[index],
            bias=config.conv_bias,
        )
        self.norm: nn.Module | None = None
        if config.conv_norm == "layer":
            self.norm = nn.LayerNorm(channels)
        elif index == 0:
            self.norm = nn.GroupNorm(channels, channels)

    def forward(self, x: Tensor, num_frames: Sequence[int] | None = None) -> Tensor:
        """Map (B, C_in, T_in) to (B, C, T).

        With ``num_frames`` the group norm sees only these first frames of each utterance.
        """
        x = self.conv(x)
        if isinstance(self.norm, nn.LayerNorm):
            x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        elif self.norm is not None:
            x = self.norm(x) if num_frames is None else self._norm_each(self.norm, x, num_frames)
        return F.gelu(x)

    def _norm_each(self, norm: nn.Module, x: Tensor, num_frames: Sequence[int]) -> Tensor:
        width = x.shape[2]
        rows = [norm(row[None, :, :n]) for row, n in zip(x, num_frames, strict=True)]
        return torch.cat([F.pad(row, (0, width - row.shape[2])) for row in rows])


class FeatureEncoder(nn.Module):
    """Convolutions from the waveform to one feature vector per frame."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.layers = nn.ModuleList(FeatureLayer(config, i) for i in range(len(config.conv_dims)))

    def forward(self, waveform: Tensor, first_num_frames: Sequence[int] | None = None) -> Tensor:
        """Map (B, S) to (B, T, C); ``first_num_frames`` counts frames after the first layer."""
        x = waveform[:, None]
        for index, layer in enumerate(self.layers):
            x = layer(x, first_num_frames if index == 0 else None)
        return x.transpose(1, 2)


class FeatureProjection(nn.Module):
    """LayerNorm, linear map to the encoder's width, dropout."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.conv_dims[-1], eps=config.layer_norm_eps)
        self.proj = nn.Linear(config.conv_dims[-1], config.d_model)
        self.dropout = nn.Dropout(config.projection_dropout)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, D)."""
        return self.dropout(self.proj(self.norm(features)))


class PositionalConv(nn.Module):
    """Relative positions by a grouped, weight-normalised convolution and an exact GELU.

    Source:
        Weight norm: Salimans and Kingma 2016 (arXiv:1602.07868), here with one gain per kernel
        tap, as in the released wav2vec 2.0 weights.
    """

    def __init__(self, d_model: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.weight_g = nn.Parameter(torch.empty(1, 1, kernel))
        self.weight_v = nn.Parameter(torch.empty(d_model, d_model // groups, kernel))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        kernel = self.weight_v.shape[2]
        norm = torch.linalg.vector_norm(self.weight_v, dim=(0, 1), keepdim=True)
        weight = self.weight_v * (self.weight_g / norm)
        y = F.conv1d(x.mT, weight, self.bias, padding=kernel // 2, groups=self.groups).mT
        return F.gelu(y[:, : x.shape[1]])  # an even kernel gives one frame too many


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward block, pre-norm or post-norm."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.norm_first = config.norm_first
        self.self_attn = MultiHeadAttention(
            config.d_model, config.num_heads, dropout=config.attention_dropout
        )
        self.attn_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.ffn = FeedForward(
            config.d_model, config.ffn_dim, config.activation_dropout, config.dropout
        )
        self.ffn_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Map (B, T, D) to (B, T, D); ``attention_mask`` (B, 1, 1, T), True = attended."""
        if self.norm_first:
            attended = self.self_attn(self.attn_norm(x), attention_mask=attention_mask)
            x = x + self.dropout(attended)
            return x + self.ffn(self.ffn_norm(x))
        x = self.attn_norm(x + self.dropout(self.self_attn(x, attention_mask=attention_mask)))
        return self.ffn_norm(x + self.ffn(x))


class Encoder(nn.Module):
    """Positional convolution and Transformer layers."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.norm_first = config.norm_first
        self.layer_drop = config.layer_drop
        self.positional_conv = PositionalConv(
            config.d_model, config.positional_kernel, config.positional_groups
        )
        self.norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_layers))

    def forward(
        self, x: Tensor, valid_frames: Tensor | None = None, states: list[Tensor] | None = None
    ) -> Tensor:
        """Encode projected features.

        Args:
            x: (B, T, D).
            valid_frames: Bool (B, T), True = takes part; None is all.
            states: Where given, the first layer's input and every layer's output are appended
                (before the final norm, where there is one).

        Returns:
            (B, T, D); rows that are not valid are unspecified. While training each layer is
            skipped with probability ``layer_drop``, drawn from torch's global CPU generator.
        """
        attention_mask = None
        if valid_frames is not None:
            x = x.masked_fill(~valid_frames[:, :, None], 0.0)
            attention_mask = valid_frames[:, None, None, :]
        x = x + self.positional_conv(x)
        x = self.dropout(x if self.norm_first else self.norm(x))
        if states is not None:
            states.append(x)
        for layer in self.layers:
            skipped = self.training and self.layer_drop and torch.rand(()).item() < self.layer_drop
            if not skipped:
                x = layer(x, attention_mask)
            if states is not None:
                states.append(x)
        return self.norm(x) if self.norm_first else x


class Wav2Vec2(nn.Module):
    """wav2vec 2.0 with a CTC head.

    The weights start random: linear N(0, 0.02) with zero bias, convolutions Kaiming normal, mask
    embedding uniform in [0, 1). Lengths are cheapest on the CPU, whatever the model's device:
    they are checked, so lengths on a GPU make the host wait.

    Args:
        config: Sizes and training options.
    """

    family: ClassVar[str] = "wav2vec2"

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.config = config
        self.feature_encoder = FeatureEncoder(config)
        self.feature_projection = FeatureProjection(config)
        self.masked_embedding = nn.Parameter(torch.rand(config.d_model))
        self.encoder = Encoder(config)
        self.head_dropout = nn.Dropout(config.head_dropout)
        self.head = nn.Linear(config.d_model, config.vocab_size)
        self.apply(_init_weights)

    def num_frames(self, num_samples: Count) -> Count:
        """Count the encoder frames of a waveform; below 1 where it is too short for one."""
        for kernel, stride in zip(self.config.conv_kernels, self.config.conv_strides, strict=True):
            num_samples = (num_samples - kernel) // stride + 1
        return num_samples

    @property
    def min_samples(self) -> int:
        """Samples of the shortest waveform that has one frame (400 in every released model)."""
        samples = 1
        for kernel, stride in zip(
            reversed(self.config.conv_kernels), reversed(self.config.conv_strides), strict=True
        ):
            samples = (samples - 1) * stride + kernel
        return samples

    def forward(self, waveform: Tensor, num_samples: Tensor | None = None) -> Tensor:
        """Same as `logits`, for wrappers that call the module."""
        return self.logits(waveform, num_samples)

    def logits(self, waveform: Tensor, num_samples: Tensor | None = None) -> Tensor:
        """Score every symbol at every frame.

        Args:
            waveform: (B, S) floating, 16 kHz, normalised as the weights expect; zeros as padding.
            num_samples: (B,) integer, samples of each utterance; None means no padding and no
                attention mask.

        Returns:
            (B, T, V) before the softmax; frames after an utterance's last are unspecified. In
            train mode frames and channels are masked, see `mask_spans`.

        Raises:
            ValueError: If an utterance is shorter than one frame or longer than the waveform.
        """
        features = self.features(waveform, num_samples)
        num_frames = None if num_samples is None else self.num_frames(num_samples)
        return self.logits_from_features(features, num_frames)

    def features(self, waveform: Tensor, num_samples: Tensor | None = None) -> Tensor:
        """Run the convolutional feature encoder.

        Args:
            waveform: (B, S) as for `logits`.
            num_samples: (B,) integer or None; only ``padding="independent"`` computes with it.

        Returns:
            (B, T, C), without a graph where the feature encoder is frozen.

        Raises:
            ValueError: As for `logits`.
        """
        width, shortest = waveform.shape[1], self.min_samples
        if width < shortest:
            raise ValueError(f"waveform has {width} samples; one frame needs {shortest}, so pad it")
        first_num_frames = None
        if num_samples is not None:
            lengths = _check_lengths("num_samples", num_samples, len(waveform), width, shortest)
            if self.config.padding == "independent":
                kernel, stride = self.config.conv_kernels[0], self.config.conv_strides[0]
                first_num_frames = [(length - kernel) // stride + 1 for length in lengths]
        return self.feature_encoder(waveform, first_num_frames)

    def hidden_states(self, features: Tensor, num_frames: Tensor | None = None) -> list[Tensor]:
        """Return all ``num_layers + 1`` encoder states.

        The arguments are those of `logits_from_features`.

        Returns:
            (B, T, D) each: the first layer's input, then the output of every layer, before the
            final norm of a pre-norm encoder.
        """
        states: list[Tensor] = []
        self._encode(features, num_frames, states)
        return states

    def logits_from_features(self, features: Tensor, num_frames: Tensor | None = None) -> Tensor:
        """Score from the output of `features` (which may come from a cache).

        Args:
            features: (B, T, C).
            num_frames: (B,) integer, frames of each utterance; None means no padding.

        Returns:
            (B, T, V), as `logits`.

        Raises:
            ValueError: If ``num_frames`` is not within [1, T].
        """
        return self.head(self.head_dropout(self._encode(features, num_frames)))

    def reset_head(self, vocab_size: int) -> None:
        """Replace the CTC head by a fresh one for ``vocab_size`` symbols.

        Weights are N(0, 0.02) from torch's global CPU generator, biases 0.
        """
        weight = self.head.weight
        head = nn.Linear(self.config.d_model, vocab_size)
        _init_weights(head)
        self.head = head.to(weight.device, weight.dtype)
        self.config = dataclasses.replace(self.config, vocab_size=vocab_size)

    def _encode(
        self, features: Tensor, num_frames: Tensor | None, states: list[Tensor] | None = None
    ) -> Tensor:
        batch, width, _ = features.shape
        lengths, valid_frames = [width] * batch, None
        if num_frames is not None:
            lengths = _check_lengths("num_frames", num_frames, batch, width, 1)
            frames = torch.arange(width, device=features.device)
            valid_frames = frames < num_frames.to(features.device)[:, None]
        x = self.feature_projection(features)
        if self.training:
            x = mask_spans(x, lengths, self.masked_embedding, self.config)
        return self.encoder(x, valid_frames, states)


def _check_lengths(
    name: str, lengths: Tensor, batch: int, longest: int, shortest: int
) -> list[int]:
    values: list[int] = lengths.tolist()
    if len(values) != batch:
        raise ValueError(f"{name} has {len(values)} entries for a batch of {batch}; give one each")
    if min(values) < shortest or max(values) > longest:
        raise ValueError(
            f"{name} goes from {min(values)} to {max(values)}, outside [{shortest}, {longest}] "
            "(one frame to the padded length); drop utterances that are too short"
        )
    return values


@torch.no_grad()
def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=INIT_STD)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv1d):
        nn.init.kaiming_normal_(module.weight)  # a bias keeps PyTorch's uniform start
    elif isinstance(module, PositionalConv):
        d_model, _, kernel = module.weight_v.shape
        nn.init.normal_(module.weight_v, std=2 / math.sqrt(kernel * d_model))
        module.weight_g.copy_(torch.linalg.vector_norm(module.weight_v, dim=(0, 1), keepdim=True))
    elif isinstance(module, FeatureProjection):
        nn.init.uniform_(module.proj.weight, -1.0, 1.0).div_(math.sqrt(module.proj.in_features))
