"""Masks of wav2vec 2.0 and its kin in training: spans of frames and channels, whole layers.

Shape letters: B batch, T encoder frames, D d_model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from models.device import send
from models.draw import Draw, Numbers

_LAYERS, _FRAMES, _CHANNELS = range(3)  # streams of a draw


class LayerDrop(Protocol):
    """Which layers of an encoder a step leaves out."""

    def through(self, index: int, layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Return ``layer(x)``, or ``x`` where layer number ``index`` is left out."""
        ...


@dataclass(frozen=True)
class DroppedLayers:
    """Layers left out by a decision that the host knows: they cost nothing.

    Attributes:
        skipped: For each layer whether it is left out; empty leaves none out.
    """

    skipped: tuple[bool, ...] = ()

    def through(self, index: int, layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Return ``layer(x)``, or ``x`` where layer number ``index`` is left out."""
        return x if self.skipped and self.skipped[index] else layer(x)


@dataclass(frozen=True)
class DroppedOnDevice:
    """Layers left out by a decision on the device, as a captured graph needs: all are computed.

    Attributes:
        skipped: Bool (layers,), for each whether it is left out.
    """

    skipped: Tensor

    def through(self, index: int, layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Return ``layer(x)``, or ``x`` where layer number ``index`` is left out."""
        return torch.where(self.skipped[index], x, layer(x))


NO_LAYERS = DroppedLayers()


@dataclass(frozen=True)
class TrainingMasks:
    """What one step hides.

    Attributes:
        frames: Bool (B, T), True = replaced by the mask embedding; None hides none.
        channels: Bool (B, D), True = zeroed; None hides none.
        layers: The encoder layers that are left out.
    """

    frames: Tensor | None
    channels: Tensor | None
    layers: LayerDrop = NO_LAYERS

    def to(self, device: torch.device) -> "TrainingMasks":
        """Move what is a tensor, without waiting for the device."""

        def move(mask: Tensor | None) -> Tensor | None:
            return None if mask is None else send(mask, device)

        return TrainingMasks(move(self.frames), move(self.channels), self.layers)


def draw_masks(
    lengths: Sequence[int], width: int, config: Any, draw: Draw | None = None
) -> TrainingMasks:
    """Draw what a training step hides.

    Args:
        lengths: Valid frames of each utterance; padding is not masked.
        width: Frames of a row, padding included.
        config: Holds ``mask_time_*``, ``mask_channel_*``, ``layer_drop``, ``d_model`` and
            ``num_layers``, as ``Wav2Vec2Config`` does.
        draw: Where random numbers come from; None seeds it from torch's global CPU generator.

    Returns:
        Masks on the CPU, the same whatever the model's device.

    Source:
        Baevski et al. 2020 (arXiv:2006.11477), section 3.3, after SpecAugment (arXiv:1904.08779).
    """
    if not (config.mask_time_prob or config.mask_channel_prob or config.layer_drop):
        return TrainingMasks(None, None)
    draw = draw or Draw.anew(len(lengths))
    frames = channels = None
    if config.mask_time_prob:
        prob = config.mask_time_prob
        length = config.mask_time_length
        least = config.mask_time_min
        drawn = draw.of_rows(_FRAMES, 1 + width)
        frames = draw_spans(lengths, width, prob, length, least, drawn)

    if config.mask_channel_prob:
        prob = config.mask_channel_prob
        length = config.mask_channel_length
        least = config.mask_channel_min
        counts = [config.d_model] * len(lengths)
        drawn = draw.of_rows(_CHANNELS, 1 + config.d_model)
        channels = draw_spans(counts, config.d_model, prob, length, least, drawn)
    layers = NO_LAYERS
    if config.layer_drop:
        skipped = draw.of_batch(_LAYERS, config.num_layers) < config.layer_drop
        layers = DroppedLayers(tuple(skipped.tolist()))
    return TrainingMasks(frames, channels, layers)


def draw_spans(
    lengths: Sequence[int],
    width: int,
    prob: float,
    span_length: int,
    min_spans: int,
    drawn: Numbers,
) -> Tensor:
    """Draw the places that training masks: spans of equal length that may overlap.

    An utterance of n places gets ``int(prob * n / span_length + u)`` spans, u uniform in [0, 1),
    at least ``min_spans`` and never more than ``n // span_length``; where a span is longer than
    the utterance it gets none. Starts are drawn without replacement.

    Args:
        lengths: Places of each utterance that may be masked, each at most ``width``.
        width: Places of a row of the result.
        prob: Fraction of places covered if no spans overlapped.
        span_length: Places in a span.
        min_spans: Spans at least.
        drawn: Uniform numbers in [0, 1), (B, 1 + width): u of each utterance, then what ranks the
            places where a span may start.

    Returns:
        Bool (B, width) on the CPU; True = masked.

    Source:
        ``_compute_mask_indices`` of Hugging Face (fairseq's rule). There the rounding is drawn
        once per batch and the upper limit comes from the padded length; here each utterance
        stands for itself.
    """
    sizes = np.asarray(lengths)
    spans = (prob * sizes / span_length + drawn[:, 0]).astype(np.int64)
    spans = np.minimum(np.maximum(spans, min_spans), sizes // span_length)

    # The places with the smallest numbers are a fair draw of places without replacement.
    last_start = sizes - span_length
    places = np.arange(width)
    ranking = np.where(places <= last_start[:, None], drawn[:, 1:], np.inf)
    highest = np.take_along_axis(np.sort(ranking, axis=1), np.maximum(spans - 1, 0)[:, None], 1)
    is_start = (ranking <= highest) & (spans > 0)[:, None]

    # A place is masked where a span has begun that is not over yet.
    begun = np.cumsum(is_start, axis=1)
    over = np.zeros_like(begun)
    over[:, span_length:] = begun[:, : max(0, width - span_length)]
    return torch.from_numpy(begun > over)


def hide(x: Tensor, masks: TrainingMasks, masked_embedding: Tensor) -> Tensor:
    """Put the mask embedding (D,) on the masked frames of x (B, T, D) and 0 on its channels."""
    if masks.frames is not None:
        x = torch.where(masks.frames[:, :, None], masked_embedding.to(x.dtype), x)
    if masks.channels is not None:
        x = x.masked_fill(masks.channels[:, None], 0.0)
    return x
