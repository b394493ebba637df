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
from functools import partial
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from models.attention import FeedForward, Frames, MultiHeadAttention
from models.device import send
from models.draw import Draw
from models.dropout import Dropout
from models.family import SpeechModel
from models.masking import NO_LAYERS, LayerDrop, TrainingMasks, draw_masks, hide
from models.packing import Layout, MaskedRows, Packing, WholeRows
from models.wav2vec2.config import Wav2Vec2Config
from models.wav2vec2.convs import FeatureEncoder, PositionalConv

PRUNE_SCOPES = {
    "encoder": r"encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|ffn\.fc[12])\.(weight|bias)"
}
INIT_STD = 0.02

Count = TypeVar("Count", int, Tensor)
Padding = Literal["hf", "independent", "packed"]


class FeatureProjection(nn.Module):
    """LayerNorm, linear map to the encoder's width, dropout."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.conv_dims[-1], eps=config.layer_norm_eps)
        self.proj = nn.Linear(config.conv_dims[-1], config.d_model)
        self.dropout = Dropout(config.projection_dropout)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, D)."""
        return self.dropout(self.proj(self.norm(features)))


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
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, frames: Frames) -> Tensor:
        """Map x (..., D) to a tensor of its shape; ``frames`` say which attend to which."""
        if self.norm_first:
            x = x + self.dropout(self.self_attn.within(self.attn_norm(x), frames))
            return x + self.ffn(self.ffn_norm(x))
        x = self.attn_norm(x + self.dropout(self.self_attn.within(x, frames)))
        return self.ffn_norm(x + self.ffn(x))


class Encoder(nn.Module):
    """Positional convolution and Transformer layers."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.norm_first = config.norm_first
        self.positional_conv = PositionalConv(
            config.d_model, config.positional_kernel, config.positional_groups
        )
        self.norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_layers))

    def forward(
        self,
        x: Tensor,
        frames: Layout,
        layer_drop: LayerDrop = NO_LAYERS,
        states: list[Tensor] | None = None,
    ) -> Tensor:
        """Encode projected features.

        Args:
            x: (B, T, D).
            frames: Which of them are frames, and how layers have them.
            layer_drop: Which layers are left out.
            states: Where given, the first layer's input and every layer's output are appended
                (before the final norm, where there is one).

        Returns:
            (B, T, D); what is no frame is unspecified.
        """
        x = frames.silence_padding(x)
        x = frames.pack(x + self.positional_conv(x))
        x = self.dropout(x if self.norm_first else self.norm(x))
        if states is not None:
            states.append(x)

        for index, layer in enumerate(self.layers):
            x = layer_drop.through(index, partial(layer, frames=frames), x)
            if states is not None:
                states.append(x)

        if states is not None:
            states[:] = map(frames.unpack, states)
        return frames.unpack(self.norm(x) if self.norm_first else x)


class Wav2Vec2(SpeechModel):
    """wav2vec 2.0 with a CTC head.

    The weights start random: linear N(0, 0.02) with zero bias, convolutions Kaiming normal, mask
    embedding uniform in [0, 1). Lengths are cheapest on the CPU, whatever the model's device:
    they are checked, so lengths on a GPU make the host wait.

    Args:
        config: Sizes and training options.

    Attributes:
        padding: How batches are computed, which is no part of the architecture. "hf" lets the group
            norm see the padding as Hugging Face does, so the logits of an utterance depend on its
            batch mates; "independent" takes the statistics of each utterance's own frames; "packed"
            does too, and leaves the padding out of the layers. With ``conv_norm="layer"`` all three
            give the same numbers.
    """

    family = "wav2vec2"
    config: Wav2Vec2Config

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.config = config
        self.padding: Padding = "hf"
        self.feature_encoder = FeatureEncoder(config)
        self.feature_projection = FeatureProjection(config)
        self.masked_embedding = nn.Parameter(torch.rand(config.d_model))
        self.encoder = Encoder(config)
        self.head_dropout = Dropout(config.head_dropout)
        self.head = nn.Linear(config.d_model, config.vocab_size)
        self.apply(_init_weights)

    def num_frames(self, num_samples: Count) -> Count:
        """Count the encoder frames of a waveform; below 1 where it is too short for one."""
        for kernel, stride in zip(self.config.conv_kernels, self.config.conv_strides, strict=True):
            num_samples = (num_samples - kernel) // stride + 1
        return num_samples

    @property
    def frame_seconds(self) -> float:
        """Seconds from one encoder frame to the next, of audio at 16 kHz."""
        return math.prod(self.config.conv_strides) / 16000

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

    def logits(
        self,
        waveform: Tensor,
        num_samples: Tensor | None = None,
        draw: Draw | None = None,
        states: list[Tensor] | None = None,
    ) -> Tensor:
        """Score every symbol at every frame.

        Args:
            waveform: (B, S) floating, 16 kHz, normalised as the weights expect; zeros as padding.
            num_samples: (B,) integer, samples of each utterance; None means no padding and no
                attention mask.
            draw: In train mode where the numbers of `draw_masks` come from.
            states: Where given, what `hidden_states` returns is appended.

        Returns:
            (B, T, V) before the softmax; frames after an utterance's last are unspecified. In
            train mode frames, channels and layers are hidden, see `draw_masks`.

        Raises:
            ValueError: If an utterance is shorter than one frame or longer than the waveform.
        """
        features = self.features(waveform, num_samples)
        num_frames = None if num_samples is None else self.num_frames(num_samples)
        return self.logits_from_features(features, num_frames, draw, states)

    def features(self, waveform: Tensor, num_samples: Tensor | None = None) -> Tensor:
        """Run the convolutional feature encoder.

        Args:
            waveform: (B, S) as for `logits`.
            num_samples: (B,) integer or None; ``padding="hf"`` does not compute with it.

        Returns:
            (B, T, C), without a graph where the feature encoder is frozen.

        Raises:
            ValueError: As for `logits`.
        """
        width = waveform.shape[1]
        shortest = self.min_samples
        if width < shortest:
            raise ValueError(f"waveform has {width} samples; one frame needs {shortest}, so pad it")
        first_num_frames = None
        if num_samples is not None:
            lengths = _check_lengths("num_samples", num_samples, len(waveform), width, shortest)
            if self.padding != "hf":
                kernel = self.config.conv_kernels[0]
                stride = self.config.conv_strides[0]
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
        self._encode(features, num_frames, states=states)
        return states

    def logits_from_features(
        self,
        features: Tensor,
        num_frames: Tensor | None = None,
        draw: Draw | None = None,
        states: list[Tensor] | None = None,
    ) -> Tensor:
        """Score from the output of `features` (which may come from a cache).

        Args:
            features: (B, T, C).
            num_frames: (B,) integer, frames of each utterance; None means no padding.
            draw: As for `logits`.
            states: As for `logits`.

        Returns:
            (B, T, V), as `logits`.

        Raises:
            ValueError: If ``num_frames`` is not within [1, T].
        """
        return self.head(self.head_dropout(self._encode(features, num_frames, draw, states)))

    def masked_logits(self, features: Tensor, valid_frames: Tensor, masks: TrainingMasks) -> Tensor:
        """Score as `logits_from_features` does in training, with nothing drawn or checked here.

        Args:
            features: (B, T, C).
            valid_frames: Bool (B, T), True = takes part; at least one in each row.
            masks: What is hidden, all of it tensors.

        Returns:
            (B, T, V).
        """
        encoded = self._transform(features, MaskedRows(valid_frames), masks)
        return self.head(self.head_dropout(encoded))

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
        self,
        features: Tensor,
        num_frames: Tensor | None,
        draw: Draw | None = None,
        states: list[Tensor] | None = None,
    ) -> Tensor:
        batch, width, _ = features.shape
        device = features.device
        lengths = [width] * batch
        if num_frames is not None:
            lengths = _check_lengths("num_frames", num_frames, batch, width, 1)

        frames: Layout = WholeRows()
        if min(lengths) < width and self.padding == "packed":
            frames = Packing(lengths, width, device)
        elif min(lengths) < width:
            is_frame = torch.arange(width) < torch.tensor(lengths)[:, None]
            frames = MaskedRows(send(is_frame, device))

        masks = None
        if self.training:
            masks = draw_masks(lengths, width, self.config, draw).to(device)
        return self._transform(features, frames, masks, states)

    def _transform(
        self,
        features: Tensor,
        frames: Layout,
        masks: TrainingMasks | None,
        states: list[Tensor] | None = None,
    ) -> Tensor:
        x = self.feature_projection(features)
        if masks is None:
            return self.encoder(x, frames, states=states)
        x = hide(x, masks, self.masked_embedding)
        return self.encoder(x, frames, masks.layers, states)


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
