"""FLAC, Ogg and MP3 recordings, through the package soundfile, an extra (``audio``)."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAGICS = {
    b"fLaC": "FLAC",
    b"OggS": "Ogg",
    b"ID3": "MP3",
    b"\xff\xfb": "MP3",
    b"\xff\xf3": "MP3",
    b"\xff\xf2": "MP3",
}
"""What files of each kind begin with; MP3 is told by its tag or by its first frame."""


def kind_of(magic: bytes) -> str | None:
    """Return "FLAC", "Ogg" or "MP3" where a file begins as those do, else None."""
    return next((kind for start, kind in MAGICS.items() if magic.startswith(start)), None)


_MOST_SAMPLES_A_BYTE = 10_000
"""Silence takes least: FLAC has 65,535 samples of it in 14 bytes."""


def read_header(path: Path, kind: str, mix: bool = False) -> tuple[int, int]:
    """Return a recording's number of samples and its sample rate in Hz.

    Args:
        path: The recording.
        kind: As :func:`kind_of` tells it.
        mix: Whether several channels will do.

    Raises:
        ValueError: If soundfile is not installed, or the file is damaged or not mono.
    """
    soundfile = _soundfile(path, kind)
    try:
        info = soundfile.info(str(path))
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path}: {kind} that cannot be decoded ({_reason(error)})") from None
    if info.channels != 1 and not mix:
        raise ValueError(
            f"{path}: {info.channels} channels, wanted 1: mix them down, e.g. `sox IN -c 1 OUT`"
        )
    if info.frames > _MOST_SAMPLES_A_BYTE * path.stat().st_size:
        raise ValueError(
            f"{path}: the header promises {info.frames:,} samples, more than a {kind} of this size "
            "can hold: restore the file"
        )
    return int(info.frames), int(info.samplerate)


def read_samples(path: Path, kind: str, start: int, count: int) -> NDArray[np.float32]:
    """Return ``count`` samples from ``start`` on, in [-1, 1), the mean of the channels.

    Raises:
        ValueError: If soundfile is not installed, or the file is damaged or shorter.
    """
    soundfile = _soundfile(path, kind)
    # Lossy frames lean on those before them: libsndfile 1.2 gives silence after a seek in an MP3.
    skipped = 0 if kind == "FLAC" else start
    try:
        samples, _ = soundfile.read(str(path), skipped + count, start - skipped, dtype="float32")
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path}: {kind} that cannot be decoded ({_reason(error)})") from None
    if len(samples) < skipped + count:
        raise ValueError(
            f"{path}: truncated, the header promises {start + count} samples and "
            f"{start - skipped + len(samples)} are there: restore the file"
        )
    mixed = samples if samples.ndim == 1 else samples.mean(1)
    return np.asarray(mixed)[skipped:]


def _soundfile(path: Path, kind: str) -> Any:
    try:
        import soundfile
    except (ImportError, OSError):  # OSError: the package is there and its library is not
        raise ValueError(
            f'{path} is {kind}, which needs soundfile: pip install -e ".[audio]"'
        ) from None
    return soundfile


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "error_string", error)).split())
