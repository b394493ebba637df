"""Read 16 kHz mono recordings, whatever their names say: NIST SPHERE or RIFF WAVE, 16-bit PCM."""

import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from data.sphere import MAGIC, SAMPLE_RATE, PcmLayout, read_sphere_layout

_PCM, _EXTENSIBLE = 0x0001, 0xFFFE
_ENCODINGS = {
    0x0002: "Microsoft ADPCM",
    0x0003: "floating point",
    0x0006: "A-law",
    0x0007: "mu-law",
    0x0011: "IMA ADPCM",
    0x0055: "MP3",
}
# What follows the format tag in the 16-byte subformat of WAVE_FORMAT_EXTENSIBLE
_SUBFORMAT_TAIL = bytes.fromhex("000000001000800000aa00389b71")
_REMEDY = "convert to 16 kHz 16-bit mono, e.g. `sox IN -r 16000 -b 16 -c 1 OUT.wav`"


def read_audio(path: str | Path, start: int = 0, length: int | None = None) -> Tensor:
    """Read a recording, or a part of it.

    The format is taken from the file's first bytes, never from its extension: TIMIT's own ``.WAV``
    files are SPHERE, and redistributions hold RIFF under the same names.

    Args:
        path: A SPHERE or RIFF WAVE file of 16-bit PCM, mono, 16 kHz.
        start: First sample.
        length: Number of samples; without it all that follow.

    Returns:
        (S,) float32 in [-1, 1): the samples over 32,768.

    Raises:
        ValueError: If the file is missing, empty, truncated, compressed, of another kind, or
            shorter than what is asked for; one line that names the file, what was found and the
            remedy.
    """
    path = Path(path)
    with _open(path) as file:
        layout = _read_layout(file, path)
        length = layout.num_samples - start if length is None else length
        if not 0 <= start <= start + length <= layout.num_samples:
            raise ValueError(
                f"{path}: samples {start} to {start + length} are asked for, and there are "
                f"{layout.num_samples}: correct the times of the utterance"
            )
        file.seek(layout.offset + 2 * start)
        samples = np.frombuffer(file.read(2 * length), dtype=layout.dtype)
    return torch.from_numpy(samples.astype(np.float32) / np.float32(32768))


def num_samples(path: str | Path) -> int:
    """Return a recording's length in samples from its header, checked against the file's size.

    Raises:
        ValueError: As ``read_audio``.
    """
    path = Path(path)
    with _open(path) as file:
        return _read_layout(file, path).num_samples


def is_sphere(path: str | Path) -> bool:
    """Say whether a file begins as NIST SPHERE does."""
    with _open(Path(path)) as file:
        return file.read(len(MAGIC)) == MAGIC


def normalize_waveform(waveform: Tensor) -> Tensor:
    """Shift and scale one utterance to mean 0 and variance 1, before any padding.

    Args:
        waveform: (S,) floating, one utterance without padding.

    Returns:
        (S,) of the same dtype.

    Source:
        Hugging Face's ``Wav2Vec2FeatureExtractor`` with ``do_normalize``: population variance,
        1e-7 added to it.
    """
    variance, mean = torch.var_mean(waveform, correction=0)
    return (waveform - mean) / torch.sqrt(variance + 1e-7)


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise ValueError(
            f"cannot read {path}: {error.strerror}: check the path and its permissions"
        ) from None


def _read_layout(file: BinaryIO, path: Path) -> PcmLayout:
    """Find the samples, and check that all of them are there."""
    magic = file.read(len(MAGIC))
    if magic == MAGIC:
        layout = read_sphere_layout(file, path)
    elif magic.startswith(b"RIFF"):
        layout = _read_riff_layout(file, path)
    else:
        found = f"begins {magic!r}" if magic else "is empty"
        raise ValueError(f"{path} {found}, wanted NIST SPHERE (NIST_1A) or RIFF WAVE: {_REMEDY}")
    if layout.num_samples == 0:
        raise ValueError(f"{path}: no samples: restore the file or leave the utterance out")
    present = (file.seek(0, 2) - layout.offset) // 2
    if present < layout.num_samples:
        raise ValueError(
            f"{path}: truncated, the header says {layout.num_samples} samples and {present} are "
            "there: restore the file"
        )
    return layout


def _read_riff_layout(file: BinaryIO, path: Path) -> PcmLayout:
    """Walk the chunks, which may come in any order, for ``fmt`` and ``data``."""
    if file.seek(8) and file.read(4) != b"WAVE":
        raise ValueError(f"{path}: a RIFF file that is not WAVE: {_REMEDY}")
    format_chunk, data = None, None
    while len(head := file.read(8)) == 8 and (format_chunk is None or data is None):
        name, size = head[:4], int.from_bytes(head[4:], "little")
        start = file.tell()
        if name == b"fmt " and format_chunk is None:
            format_chunk = file.read(min(size, 40))
        elif name == b"data" and data is None:
            data = start, size
        file.seek(start + size + size % 2)  # chunks are padded to an even size
    if format_chunk is None or data is None:
        missing = "fmt" if format_chunk is None else "data"
        raise ValueError(f"{path}: RIFF WAVE without a {missing} chunk: restore the file")
    _check_format(format_chunk, path)
    if data[1] % 2:
        raise ValueError(f"{path}: {data[1]} bytes are no whole 16-bit samples: restore the file")
    return PcmLayout(data[0], data[1] // 2, "<i2")


def _check_format(chunk: bytes, path: Path) -> None:
    """Refuse every WAVE format but 16 kHz 16-bit mono PCM, by name."""
    if len(chunk) < 16:
        raise ValueError(f"{path}: the fmt chunk has {len(chunk)} bytes of 16: restore the file")
    tag, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", chunk)
    if tag == _EXTENSIBLE and len(chunk) == 40 and chunk[26:] == _SUBFORMAT_TAIL:
        tag = int.from_bytes(chunk[24:26], "little")
    if tag != _PCM:
        encoding = _ENCODINGS.get(tag, f"format {tag:#06x}")
        raise ValueError(f"{path}: {encoding} samples, wanted 16-bit PCM: {_REMEDY}")
    for value, wanted, what in (
        (bits, 16, "bits a sample"),
        (channels, 1, "channels"),
        (rate, SAMPLE_RATE, "Hz"),
    ):
        if value != wanted:
            raise ValueError(f"{path}: {value} {what}, wanted {wanted}: {_REMEDY}")
