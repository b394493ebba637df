"""Recordings whose bytes are not what their header says: read as they stand, they are noise.

Four kinds are told. A text-mode copy (FTP in ASCII mode, ``unzip -a``, git's autocrlf) puts a CR
before every LF, in the samples too, and so adds bytes. The way back drops such CRs, and a wrong
byte order swaps the two bytes of every sample: both leave the length right, and are told by bytes.
So is a copy of seven bits a byte. A change of encoding, from Latin-1 to UTF-8, adds bytes again.
"""

from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

_BLOCK = 256  # samples looked at together
_CHUNK = 1 << 20  # bytes of a file read at once

# Mean change from a byte to the next, on a circle of 256 values; random bytes have 64. In 75
# minutes of read speech the high bytes never passed 37, nor 1 where the low ones stayed below 24.
_RANDOM_HIGH_BYTES = 40.0
_SMOOTH_LOW_BYTES = 24.0
_VALUES_OF_RANDOM_BYTES = 32  # different ones in a block, at least
_VALUES_OF_QUIET_SPEECH = 8
_ENOUGH_SAMPLES, _ENOUGH_VALUES = 1600, 64  # of speech, which swings both ways
_AGREEING_SIGNS = 0.65


def count_text_mode_bytes(file: BinaryIO, surplus: int) -> int:
    """Return how many bytes a text-mode copy has put into a file, 0 where none went over it.

    After such a copy every LF follows a CR, and ``surplus`` of the CRs are new. A recording that
    only has something after its samples holds other LFs, unless it is a few hundred bytes long.

    Args:
        file: The whole file; left anywhere.
        surplus: Bytes that it has beyond the end that its header states.
    """
    if surplus <= 0:
        return 0
    file.seek(0)
    last, pairs = b"", 0
    while chunk := file.read(_CHUNK):
        content = last + chunk
        if content.count(b"\n") != content.count(b"\r\n"):
            return 0
        pairs += content.count(b"\n")
        last = content[-1:] if content.endswith(b"\r") else b""
    return surplus if surplus <= pairs else 0


def count_encoded_bytes(file: BinaryIO, surplus: int) -> int:
    """Return how many bytes a change of encoding has put into a file, 0 where there was none.

    Who reads bytes as Latin-1 and writes them as UTF-8 makes two of each above 127, the first of
    them C2 or C3.

    Args:
        file: The whole file; left anywhere.
        surplus: Bytes that it has beyond the end that its header states.
    """
    if surplus <= 0:
        return 0
    file.seek(0)
    last, pairs = b"", 0
    while chunk := file.read(_CHUNK):
        content = np.frombuffer(last + chunk, np.uint8)
        is_lead = (content == 0xC2) | (content == 0xC3)
        is_second = (content & 0xC0) == 0x80
        if (is_second[1:] != is_lead[:-1]).any() or (content >= 0xC4).any():
            return 0
        pairs += int(is_second[1:].sum())
        last = chunk[-1:]
    return surplus if surplus <= pairs else 0


def has_seven_bits(pcm: bytes | memoryview) -> bool:
    """Return whether samples have lost the top bit of every byte, so that none is negative.

    Short ones, and silence, do not tell.
    """
    content = np.frombuffer(pcm, np.uint8)
    enough = len(content) >= 2 * _ENOUGH_SAMPLES and len(np.unique(content)) >= _ENOUGH_VALUES
    return bool(enough and (content < 0x80).all())


def has_shifted_bytes(pcm: bytes | memoryview, little_endian: bool) -> bool:
    """Return whether 16-bit samples are, in part at least, cut or ordered wrongly by a byte.

    In a recording the high bytes of the samples follow one another smoothly and the low ones look
    random, so where it is the other way round the bytes have changed places. Quiet stretches, whose
    high bytes are nothing but signs, are told by low bytes that are nothing but signs of the high
    ones. Full-scale noise, in which both look random, passes, as do stretches shorter than a few
    hundred samples.

    Args:
        pcm: The samples' bytes.
        little_endian: Byte order that the header states.
    """
    count = len(pcm) // 2
    size = min(_BLOCK, count)
    if size < 2:
        return False
    pairs = np.frombuffer(pcm, np.int8, 2 * (count // size * size)).reshape(-1, size, 2)
    high = pairs[:, :, 1 if little_endian else 0]
    low = pairs[:, :, 0 if little_endian else 1]
    is_random = (_mean_change(high) > _RANDOM_HIGH_BYTES) & (_mean_change(low) < _SMOOTH_LOW_BYTES)
    is_sign = ((low == 0) | (low == -1)).all(1)
    return any(_has_changed_places(high[i], low[i]) for i in np.flatnonzero(is_random | is_sign))


def _mean_change(values: NDArray[np.int8]) -> NDArray[np.float64]:
    """Return the mean distance from a byte to the next, the shorter way round, of each block."""
    change = np.diff(values, axis=1).astype(np.int16)  # int8 wraps, and so goes the shorter way
    means: NDArray[np.float64] = np.abs(change).mean(1)
    return means


def _has_changed_places(high: NDArray[np.int8], low: NDArray[np.int8]) -> bool:
    """Look at a suspect block more closely: what has a pattern of its own is no damage."""
    num_values = len(np.unique(high))
    signs = np.unique(low)
    if len(signs) < 2:  # 8-bit recordings have low bytes that are all the same
        return False
    if np.isin(signs, (0, -1)).all() and num_values >= _VALUES_OF_QUIET_SPEECH:
        return bool(((high < 0) == (low < 0)).mean() > _AGREEING_SIGNS)
    return num_values >= _VALUES_OF_RANDOM_BYTES
