"""Change the sample rate of a waveform."""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

_ZERO_CROSSINGS = 6  # of the sinc, on each side
_ROLLOFF = 0.99  # of the lower Nyquist frequency, where the filter cuts
_LEAST_RATE = 1000  # Hz; of fewer there are more new samples than memory
_MOST_VALUES = 4_000_000  # of the filters, which rates without a common divisor make huge


def check_rates(from_rate: int, to_rate: int) -> None:
    """Check that one rate can be changed to another.

    Raises:
        ValueError: If it would take gigabytes: 15,999 Hz to 16,000 took 12.
    """
    divisor = math.gcd(from_rate, to_rate)
    if from_rate < _LEAST_RATE or from_rate * to_rate > _MOST_VALUES * divisor**2:
        raise ValueError(f"{from_rate} Hz can't be resampled to {to_rate}: convert it, e.g. by sox")


def resample(waveform: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Resample by band-limited interpolation: a sinc under a Hann window.

    Args:
        waveform: (S,) floating.
        from_rate: Its sample rate in Hz.
        to_rate: The sample rate wanted.

    Returns:
        (ceil(S * to_rate / from_rate),) of the same dtype.

    Raises:
        ValueError: As :func:`check_rates`.

    Source:
        Smith, "Digital audio resampling" (ccrma.stanford.edu/~jos/resample); filter and lengths as
        ``torchaudio.functional.resample`` has them by default.
    """
    divisor = math.gcd(from_rate, to_rate)
    old = from_rate // divisor
    new = to_rate // divisor
    if old == new:
        return waveform
    check_rates(from_rate, to_rate)
    kernels = _kernels(old, new).to(waveform)
    width = (kernels.shape[-1] - old) // 2
    padded = F.pad(waveform[None, None], (width, width + old))
    phases = F.conv1d(padded, kernels, stride=old)  # (1, new, steps): one output a phase and step
    return phases[0].T.flatten()[: math.ceil(len(waveform) * new / old)]


@lru_cache(maxsize=8)
def _kernels(old: int, new: int) -> Tensor:
    """Return float64 filters (new, 1, old + 2 * width), one for each phase of the output."""
    cutoff = min(old, new) * _ROLLOFF
    width = math.ceil(_ZERO_CROSSINGS * old / cutoff)
    inputs = torch.arange(-width, width + old, dtype=torch.float64)[None, None] / old
    outputs = torch.arange(0, -new, -1, dtype=torch.float64)[:, None, None] / new
    times = ((outputs + inputs) * cutoff).clamp(-_ZERO_CROSSINGS, _ZERO_CROSSINGS)
    window = torch.cos(times * math.pi / _ZERO_CROSSINGS / 2) ** 2
    return torch.sinc(times) * window * (cutoff / old)
