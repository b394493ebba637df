"""Recordings to transcribe: found in folders, taken from arrays, cut where nobody speaks."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.audio import SAMPLE_RATE
from data.resample import resample

SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".mp3", ".sph", ".nist")
"""What recordings in a folder end with, in any case; a file that is named may end with anything."""

_HOP = SAMPLE_RATE // 100  # 10 ms
_PAUSE_HOPS = 30  # a cut is in the middle of a quiet stretch of so many
_PAUSE_ENERGY = 0.003  # of a clear pause, relative to a loud stretch: 25 dB less
_LARGEST_SAMPLE = 2.0  # of floating samples; louder ones were not scaled


def find_recordings(paths: Sequence[str]) -> list[Path]:
    """Return the files named, and those with the ending of a recording in the folders named.

    Raises:
        ValueError: If a path is missing, or a folder holds no recording.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
            if not inside:
                raise ValueError(
                    f"no recordings in {path}: looked for files that end in {', '.join(SUFFIXES)}"
                )
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise ValueError(f"no recording at {path}: give files, or folders that hold some")
    return found


def as_waveform(samples: object, sample_rate: int = SAMPLE_RATE) -> Tensor:
    """Return samples of any common form as a model's front end takes them.

    Args:
        samples: A NumPy array, tensor or sequence of one channel: (S,), or with further axes of
            length 1. Floating ones lie within [-1, 1], integers have the range of their type.
        sample_rate: In Hz; others than 16,000 are resampled.

    Returns:
        (S,) float32 on the CPU, at 16 kHz.

    Raises:
        ValueError: If there are no samples, more than one channel, values that are not finite or
            were not scaled, or the rate is not positive.
    """
    array: NDArray = np.asarray(samples.detach().cpu() if isinstance(samples, Tensor) else samples)
    if array.size == 0:
        raise ValueError("a waveform without samples: leave it out")
    if array.size != max(array.shape, default=1):
        raise ValueError(
            f"a waveform of shape {array.shape}, expected (samples,): give one channel, or the "
            "mean of the channels"
        )
    if type(sample_rate) is not int or sample_rate < 1:
        raise ValueError(f"a sample rate of {sample_rate!r}: give samples a second, as 16000")

    if array.dtype.kind in "iu":
        limits = np.iinfo(array.dtype)
        middle = (int(limits.max) + int(limits.min) + 1) // 2
        array = (array.astype(np.float64) - middle) / (int(limits.max) - middle + 1)
    elif array.dtype.kind != "f":
        raise ValueError(f"a waveform of type {array.dtype}: give numbers")
    waveform = torch.from_numpy(array.reshape(-1).astype(np.float32))
    if not waveform.isfinite().all():
        raise ValueError("a waveform with values that are NaN or infinite: clean it first")
    if float(waveform.abs().max()) > _LARGEST_SAMPLE:
        raise ValueError(
            f"a waveform with values of up to {float(waveform.abs().max()):g}, expected [-1, 1]: "
            "divide 16-bit samples by 32768, or give them as int16"
        )
    return resample(waveform, sample_rate, SAMPLE_RATE)


def cut_at_silence(waveform: Tensor, longest: int, shortest: int) -> list[tuple[int, int]]:
    """Cut a recording that is too long into pieces, where nobody speaks.

    A piece ends in the middle of the first clear pause after ``shortest``, a stretch of 0.3 s far
    quieter than the loud ones; without one, where the second half of ``longest`` is quietest.

    Args:
        waveform: (S,) floating, at 16 kHz.
        longest: Samples that a piece may hold, at least those of 0.1 s.
        shortest: Samples after which a piece may end.

    Returns:
        First sample and end of each piece; together they are the recording.
    """
    total = len(waveform)
    if total <= longest:
        return [(0, total)]
    pause = max(1, min(_PAUSE_HOPS, longest // (4 * _HOP)))
    # Energy of each stretch of `pause` hops, by its first hop, through a running sum.
    hops = waveform[: total - total % _HOP].reshape(-1, _HOP).double().square().sum(1)
    sums = torch.cat([hops.new_zeros(1), hops.cumsum(0)])
    energies = sums[pause:] - sums[:-pause]
    is_pause = energies <= _PAUSE_ENERGY * energies.kthvalue(-(-9 * len(energies) // 10)).values

    cuts = [0]
    while total - cuts[-1] > longest:
        begin = cuts[-1]
        last = (cuts[-1] + longest) // _HOP - pause
        first = -(-(begin + shortest) // _HOP)
        pauses = is_pause[first : last + 1].nonzero()[:, 0]
        if len(pauses):
            # The pause that begins there, to its end: stretches that follow without a gap.
            run = pauses[pauses - pauses[0] == torch.arange(len(pauses))]
            middle = first + int(run[len(run) // 2]) + pause // 2
        else:
            first = -(-(begin + longest // 2) // _HOP)
            middle = first + int(energies[first : last + 1].argmin()) + pause // 2
        cuts.append(middle * _HOP)
    return list(zip(cuts, [*cuts[1:], total], strict=True))
