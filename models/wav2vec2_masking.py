"""Random spans that wav2vec 2.0 masks while training."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from models.wav2vec2 import Wav2Vec2Config


def draw_spans(
    lengths: Sequence[int], width: int, prob: float, span_length: int, min_spans: int
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

    Returns:
        Bool (B, width) on the CPU; True = masked. Randomness: torch's global CPU generator
        whatever the model's device, so a run resumes exactly.

    Source:
        ``_compute_mask_indices`` of Hugging Face (fairseq's rule). There the rounding is drawn
        once per batch and the upper limit comes from the padded length; here each utterance
        stands for itself.
    """
    masked = torch.zeros(len(lengths), width, dtype=torch.bool)
    for row, length in zip(masked, lengths, strict=True):
        spans = max(int(prob * length / span_length + torch.rand(()).item()), min_spans)
        spans = min(spans, length // span_length)
        if spans:
            starts = torch.randperm(length - span_length + 1)[:spans]
            row[starts[:, None] + torch.arange(span_length)] = True
    return masked


def mask_spans(
    x: Tensor, lengths: Sequence[int], masked_embedding: Tensor, config: "Wav2Vec2Config"
) -> Tensor:
    """Put the mask embedding on random spans of frames and 0 on random spans of channels.

    Args:
        x: Projected features (B, T, D), floating.
        lengths: Valid frames of each utterance; padding is not masked.
        masked_embedding: (D,).
        config: Holds ``mask_time_*`` and ``mask_channel_*``; a probability of 0 masks nothing.

    Returns:
        (B, T, D), a new tensor where anything was masked. Randomness: as `draw_spans`.

    Source:
        Baevski et al. 2020 (arXiv:2006.11477), section 3.3, after SpecAugment (arXiv:1904.08779).
    """
    batch, width, channels = x.shape
    if config.mask_time_prob:
        masked_frames = draw_spans(
            lengths, width, config.mask_time_prob, config.mask_time_length, config.mask_time_min
        )
        masked_frames = masked_frames.to(x.device)[:, :, None]
        x = torch.where(masked_frames, masked_embedding.to(x.dtype), x)
    if config.mask_channel_prob:
        masked_channels = draw_spans(
            [channels] * batch,
            channels,
            config.mask_channel_prob,
            config.mask_channel_length,
            config.mask_channel_min,
        )
        x = x.masked_fill(masked_channels.to(x.device)[:, None], 0.0)
    return x
