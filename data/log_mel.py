"""Whisper's log-mel spectrogram, one utterance at a time.

Shape letters: S samples, F mel frames, M mels.
"""

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

SAMPLE_RATE = 16_000  # Hz
HOP = 160  # samples: 10 ms, so 100 frames a second
FULL_CONTEXT_SECONDS = 30.0  # what Whisper was trained on
FRAME_SECONDS = 0.02  # one encoder frame: two hops
OWN_CONTEXT = "own"  # each utterance's own length, rounded up to a second
_WINDOW = 400  # samples: 25 ms
_MAX_HZ = 8_000.0


AudioContext = float | str | None
"""What the audio of a model is padded to: seconds, ``OWN_CONTEXT``, or None for the full 30 s."""


def read_context(audio_ctx: str, longest_seconds: float) -> AudioContext:
    """Return the context that a run's option asks for.

    Args:
        audio_ctx: "own" (each utterance's own length, rounded up to a second), "full", "auto"
            (what the longest utterance needs, rounded up to a second), or seconds.
        longest_seconds: Length of the corpus' longest utterance.

    Returns:
        What a checkpoint records. Seconds are a whole number of encoder frames and at most 30,
        however long the longest utterance is.

    Raises:
        ValueError: If ``audio_ctx`` is neither a name nor seconds up to 30.
    """
    if audio_ctx == OWN_CONTEXT:
        return OWN_CONTEXT
    if audio_ctx == "full":
        return None
    if audio_ctx == "auto":
        return min(float(math.ceil(longest_seconds)), FULL_CONTEXT_SECONDS)
    try:
        seconds = float(audio_ctx)
    except ValueError:
        seconds = math.nan
    if not FRAME_SECONDS <= seconds <= FULL_CONTEXT_SECONDS:
        raise ValueError(
            f"an audio context of {audio_ctx} can't be had: give own, auto, full, or seconds up to "
            f"{FULL_CONTEXT_SECONDS:g}"
        )
    return round(seconds / FRAME_SECONDS) * FRAME_SECONDS


def longest_seconds(audio_ctx: AudioContext) -> float:
    """Return the length of the longest utterance that fits a context."""
    return FULL_CONTEXT_SECONDS if audio_ctx in (None, OWN_CONTEXT) else float(audio_ctx)


def context_of(num_samples: int, audio_ctx: AudioContext) -> float:
    """Return the seconds that an utterance of so many samples is padded to."""
    if audio_ctx == OWN_CONTEXT:
        return float(-(-num_samples // SAMPLE_RATE))
    return longest_seconds(audio_ctx)


def log_mel(waveform: Any, num_mels: int = 80, seconds: float | None = 30.0) -> Tensor:
    """Compute the log-mel spectrogram of one utterance.

    The floor, 8 decades of power under the loudest value, is this utterance's own, so the result
    never depends on what else is in a batch. Padding is silence *before* the transform, so
    padded frames hold the floor, not zeros.

    Args:
        waveform: Samples (S,) at 16 kHz, in [-1, 1); a tensor or an array, computed in float32
            on the tensor's device.
        num_mels: 80, or 128 for whisper-large-v3.
        seconds: Length to pad to with silence, or to cut to: whatever is longer loses its end, as
            in Hugging Face. None keeps the utterance's own length, rounded up to whole hops and
            to two hops at least.

    Returns:
        (num_mels, F) float32; F is 100 frames a second.

    Raises:
        ValueError: If ``waveform`` is not one non-empty channel, or ``seconds`` is not at least
            0.02.

    Source:
        Radford et al. 2022 (arXiv:2212.04356), section 2.2. Equal to what
        ``transformers.WhisperFeatureExtractor`` computes where torch is installed (float32; its
        NumPy path, in float64, is up to 3e-5 away on real speech).
    """
    samples = torch.as_tensor(waveform).to(torch.float32)
    if samples.dim() != 1 or not samples.numel():
        raise ValueError(f"expected one channel of samples (S,), found {tuple(samples.shape)}")
    if seconds is not None and seconds < 0.02:
        raise ValueError(f"seconds {seconds} is too short: expected 0.02 or more, or None")

    hops = -(-len(samples) // HOP) if seconds is None else round(seconds * SAMPLE_RATE / HOP)
    num_samples = max(hops, 2) * HOP  # the reflection at the ends needs more than half a window
    samples = samples[:num_samples]
    samples = torch.nn.functional.pad(samples, (0, num_samples - len(samples)))
    spectrum = torch.stft(
        samples,
        n_fft=_WINDOW,
        hop_length=HOP,
        window=torch.hann_window(_WINDOW, dtype=torch.float32, device=samples.device),
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )
    power = (spectrum[:, :-1].abs() ** 2).contiguous()  # (bins, F): the last frame is one too many
    mels = mel_filters(num_mels).to(samples.device) @ power  # (M, F)
    decades = mels.clamp(min=1e-10).log10()
    decades = torch.maximum(decades, decades.max() - 8.0)

    return (decades + 4.0) / 4.0


@lru_cache
def mel_filters(num_mels: int) -> Tensor:
    """Build the triangular mel filters of Slaney's Auditory Toolbox, each of unit area.

    The scale is linear up to 1 kHz (200/3 Hz a mel) and logarithmic above (27 mels for a factor
    of 6.4); the filters span 0 to 8 kHz evenly on it.

    Args:
        num_mels: Filters.

    Returns:
        (num_mels, 201) float32: the weight of each frequency bin. Shared: do not write to it.

    Source:
        Slaney 1998, "Auditory Toolbox", Interval Research technical report 1998-010, as librosa
        and Whisper have it.
    """
    knee_mel = 15.0
    mels_per_e = 27.0 / np.log(6.4)
    top = knee_mel + mels_per_e * np.log(_MAX_HZ / 1000.0)
    mels = np.linspace(0.0, top, num_mels + 2)
    above = 1000.0 * np.exp((np.maximum(mels, knee_mel) - knee_mel) / mels_per_e)
    edges = np.where(mels < knee_mel, mels * 200.0 / 3.0, above)  # Hz, (M + 2,)
    bins = np.linspace(0.0, SAMPLE_RATE / 2, _WINDOW // 2 + 1)
    low = edges[:-2, None]
    centre = edges[1:-1, None]
    high = edges[2:, None]
    rising = (bins - low) / (centre - low)
    falling = (high - bins) / (high - centre)
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return torch.from_numpy(triangles * 2.0 / (high - low)).to(torch.float32)
