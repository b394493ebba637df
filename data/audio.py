"""Read recordings at 16 kHz, whatever their names say.

NIST SPHERE and RIFF WAVE are read here, FLAC, Ogg and MP3 through soundfile. Those of a corpus are
mono, of 16 bits; what is only to be transcribed may have several channels, and any width.
"""

import math
import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data import compressed
from data.damage import (
    count_encoded_bytes,
    count_text_mode_bytes,
    has_seven_bits,
    has_shifted_bytes,
)
from data.files import refuse_special, warn_once
from data.resample import check_rates
from data.resample import resample as change_rate
from data.sphere import MAGIC, SAMPLE_RATE, PcmLayout, read_sphere_layout

_PCM, _FLOAT, _EXTENSIBLE = 0x0001, 0x0003, 0xFFFE
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
_UNKNOWN_SIZE = 0xFFFFFFFF
_STREAMED_SIZE = 0x7FFFF000  # from here on a size was written before it was known
_DTYPES = {  # of a format tag and a number of bits
    (_PCM, 8): "u1",
    (_PCM, 16): "<i2",
    (_PCM, 24): "i3",
    (_PCM, 32): "<i4",
    (_FLOAT, 32): "<f4",
    (_FLOAT, 64): "<f8",
}
_ROUNDING_SECONDS = 0.02
_COPY_ANEW = "copy it again from where it came, as binary (FTP's `binary`, unzip without -a)"
_REMEDY = "convert to 16 kHz 16-bit mono, e.g. `sox IN -r 16000 -b 16 -c 1 OUT.wav`"


class Span(NamedTuple):
    """A recording or a part of it, as an utterance names it."""

    path: Path
    start: int  # first sample, at the recording's own rate
    num_samples: int  # at 16 kHz
    sample_rate: int  # the recording's own, in Hz


def measure(
    path: str | Path,
    resample: bool = False,
    begin: float = 0.0,
    end: float | None = None,
    mix: bool = False,
) -> Span:
    """Measure a recording or a part of it by its header, checked against the file's size.

    Args:
        path: The recording.
        resample: Whether another rate than 16 kHz will do.
        begin: Where the part begins, in seconds.
        end: Where it ends; without it the recording's end. It may lie beyond that by what rounding
            explains.
        mix: As for ``read_audio``.

    Raises:
        ValueError: As ``read_audio``.
    """
    path = Path(path)
    recorded, sample_rate = _read_header(path, resample, mix)
    start = _place(begin, sample_rate)
    stop = recorded if end is None else _place(end, sample_rate)
    if recorded < stop <= recorded + _ROUNDING_SECONDS * sample_rate:
        stop = recorded
    if not 0 <= start < stop <= recorded:
        raise ValueError(
            f"{path}: {begin:g} s to {end if end is None else f'{end:g}'} s are no part of its "
            f"{recorded / sample_rate:g} s: correct the times"
        )
    return Span(path, start, math.ceil((stop - start) * SAMPLE_RATE / sample_rate), sample_rate)


def _place(seconds: float, sample_rate: int) -> int:
    """Return the sample at a time; -1, which is none, where the time is no number."""
    samples = seconds * sample_rate
    return round(samples) if math.isfinite(samples) else -1


def read_audio(
    path: str | Path,
    start: int = 0,
    length: int | None = None,
    resample: bool = False,
    mix: bool = False,
) -> Tensor:
    """Read a recording, or a part of it.

    The format is taken from the file's first bytes, never from its extension: TIMIT's own ``.WAV``
    files are SPHERE, and redistributions hold RIFF under the same names.

    Args:
        path: A mono SPHERE or RIFF WAVE file of 16-bit PCM, or FLAC, Ogg or MP3.
        start: First sample, at the recording's own rate.
        length: Number of samples at 16 kHz; without it all that follow.
        resample: Whether another rate than 16 kHz will do.
        mix: Whether several channels will do, of which the mean is taken, and in RIFF WAVE samples
            of 8, 24 and 32 bits or floating ones.

    Returns:
        (S,) float32 in [-1, 1): for 16-bit PCM the samples over 32,768. Resampled ones may go
        beyond.

    Raises:
        ValueError: If the file is missing, empty, truncated, of another kind or rate, or shorter
            than what is asked for; one line that names the file, what was found and the remedy.
    """
    path = Path(path)
    recorded, sample_rate = _read_header(path, resample, mix)
    count = recorded - start
    if length is not None:
        count = length * sample_rate // SAMPLE_RATE
        if sample_rate != SAMPLE_RATE:
            count = min(count, recorded - start)  # it may be up to what makes one sample too large
    if not 0 <= start <= start + count <= recorded:
        raise ValueError(
            f"{path}: samples {start} to {start + count} are asked for, and there are {recorded}: "
            "correct the times of the utterance"
        )
    waveform = torch.from_numpy(_read_samples(path, start, count, mix))
    return change_rate(waveform, sample_rate, SAMPLE_RATE)[:length]


def num_samples(path: str | Path) -> int:
    """Return the length of a recording at 16 kHz in samples.

    Raises:
        ValueError: As ``read_audio``.
    """
    return measure(path).num_samples


def is_sphere(path: str | Path) -> bool:
    """Return whether a file begins as NIST SPHERE does."""
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
    refuse_special(path)
    try:
        return path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: NUL in its name
        reason = getattr(error, "strerror", None) or error
        name = " ".join(str(path).splitlines())
        raise ValueError(
            f"cannot read {name}: {reason}: check the path and its permissions"
        ) from None


def _read_header(path: Path, resample: bool, mix: bool) -> tuple[int, int]:
    """Return a recording's number of samples and its rate, which must fit if it stays."""
    with _open(path) as file:
        if kind := compressed.kind_of(file.read(len(MAGIC))):
            recorded, sample_rate = compressed.read_header(path, kind, mix)
        else:
            layout = _read_layout(file, path, mix)
            recorded = layout.num_samples
            sample_rate = layout.sample_rate
    if recorded == 0:
        raise ValueError(f"{path}: no samples: restore the file or leave the utterance out")
    if sample_rate != SAMPLE_RATE and not resample:
        raise ValueError(
            f"{path}: {sample_rate} Hz, wanted {SAMPLE_RATE}: give --resample, or {_REMEDY}"
        )
    if sample_rate != SAMPLE_RATE:
        try:
            check_rates(sample_rate, SAMPLE_RATE)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    return recorded, sample_rate


def _read_samples(path: Path, start: int, count: int, mix: bool) -> NDArray[np.float32]:
    """Read samples, which are there."""
    with _open(path) as file:
        if kind := compressed.kind_of(file.read(len(MAGIC))):
            return compressed.read_samples(path, kind, start, count)
        layout = _read_layout(file, path, mix)
        file.seek(layout.offset + layout.frame_bytes * start)
        content = file.read(layout.frame_bytes * count)
        surplus = file.seek(0, 2) - layout.end

    if layout.channels == 1 and layout.dtype in ("<i2", ">i2"):
        _check_bytes(content, layout.dtype == "<i2", path)
    samples = _decode(content, layout.dtype).reshape(-1, layout.channels)
    if not np.isfinite(samples).all():
        raise ValueError(f"{path}: samples that are NaN or infinite: restore the file")
    if surplus > 0:
        text = f"{path} has {surplus} bytes after its end, which are not read; others may have too"
        warn_once("stray bytes", text)
    return samples[:, 0] if layout.channels == 1 else samples.mean(1, dtype=np.float32)


def _check_bytes(content: bytes, little_endian: bool, path: Path) -> None:
    """Raise where 16-bit samples are not what a recording has."""
    if has_shifted_bytes(content, little_endian):
        raise ValueError(
            f"{path}: read as its header says its samples are noise, for bytes are missing or in "
            f"the other order, as after a text-mode copy: {_COPY_ANEW}"
        )
    if has_seven_bits(content):
        raise ValueError(
            f"{path}: no byte of its samples has the top bit, as after a copy of seven bits a "
            f"byte: {_COPY_ANEW}"
        )


def _decode(content: bytes, dtype: str) -> NDArray[np.float32]:
    """Return samples in [-1, 1) of the bytes of a layout's type."""
    if dtype == "i3":  # the three bytes become the upper ones of four
        wide = np.zeros((len(content) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(content, np.uint8).reshape(-1, 3)
        content, dtype = wide.tobytes(), "<i4"
    samples = np.frombuffer(content, dtype=dtype)
    if dtype == "u1":
        return (samples.astype(np.float32) - 128) / np.float32(128)
    if samples.dtype.kind == "f":
        return samples.astype(np.float32)
    return samples.astype(np.float32) / np.float32(1 << (8 * samples.itemsize - 1))


def _read_layout(file: BinaryIO, path: Path, mix: bool) -> PcmLayout:
    """Find the samples, and check that all of them are there."""
    file.seek(0)
    magic = file.read(len(MAGIC))
    if magic == MAGIC:
        layout = read_sphere_layout(file, path)
    elif magic.startswith(b"RIFF"):
        layout = _read_riff_layout(file, path, mix)
    else:
        found = f"begins {magic!r}" if magic else "is empty"
        raise ValueError(
            f"{path} {found}, wanted NIST SPHERE (NIST_1A), RIFF WAVE, FLAC, Ogg or MP3: {_REMEDY}"
        )
    size = file.seek(0, 2)
    present = (size - layout.offset) // layout.frame_bytes
    if present < layout.num_samples:
        raise ValueError(
            f"{path}: truncated, the header says {layout.num_samples} samples and {present} are "
            "there: restore the file"
        )
    if surplus := max(0, size - layout.end):
        if count_text_mode_bytes(file, surplus):
            raise ValueError(
                f"{path}: a text-mode copy has put {surplus} CR bytes into it, so that its samples "
                f"are noise: {_COPY_ANEW}"
            )
        if count_encoded_bytes(file, surplus):
            raise ValueError(
                f"{path}: its bytes were taken for Latin-1 text and written as UTF-8, {surplus} "
                f"more, so that its samples are noise: {_COPY_ANEW}"
            )
    return layout


def _read_riff_layout(file: BinaryIO, path: Path, mix: bool) -> PcmLayout:
    """Walk the chunks, which may come in any order, for ``fmt`` and ``data``."""
    file_bytes = file.seek(0, 2)
    file.seek(4)
    stated = 8 + int.from_bytes(file.read(4), "little")
    if file.read(4) != b"WAVE":
        raise ValueError(f"{path}: a RIFF file that is not WAVE: {_REMEDY}")
    format_chunk, data = None, None
    while len(head := file.read(8)) == 8 and (format_chunk is None or data is None):
        name = head[:4]
        size = int.from_bytes(head[4:], "little")
        start = file.tell()
        if name == b"fmt " and format_chunk is None:
            format_chunk = file.read(min(size, 40))
        elif name == b"data" and data is None:
            data = start, size
        file.seek(start + size + size % 2)  # chunks are padded to an even size
    if format_chunk is None or data is None:
        missing = "fmt" if format_chunk is None else "data"
        raise ValueError(f"{path}: RIFF WAVE without a {missing} chunk: restore the file")

    sample_rate, dtype, channels = _check_format(format_chunk, path, mix)
    layout = PcmLayout(data[0], 0, dtype, sample_rate, 0, channels)
    # Programs that wrote into a pipe could not go back to state the size: all that follows is data.
    if data[1] >= _STREAMED_SIZE or data[1] == 0 and not data[0] < stated < _STREAMED_SIZE:
        whole = (file_bytes - data[0]) // layout.frame_bytes
        return layout._replace(num_samples=whole, end=file_bytes)
    if data[1] % layout.frame_bytes:
        raise ValueError(
            f"{path}: {data[1]} bytes are no whole samples of {layout.frame_bytes}: restore the "
            "file"
        )
    end = sum(data) + data[1] % 2
    is_stated = end <= stated < _UNKNOWN_SIZE
    count = data[1] // layout.frame_bytes
    return layout._replace(num_samples=count, end=stated if is_stated else end)


def _check_format(chunk: bytes, path: Path, mix: bool) -> tuple[int, str, int]:
    """Return sample rate, type and channels of a WAVE format; refuse what is not asked for."""
    if len(chunk) < 16:
        raise ValueError(f"{path}: the fmt chunk has {len(chunk)} bytes of 16: restore the file")
    tag, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", chunk)
    if tag == _EXTENSIBLE and len(chunk) == 40 and chunk[26:] == _SUBFORMAT_TAIL:
        tag = int.from_bytes(chunk[24:26], "little")
    dtype = _DTYPES.get((tag, bits))
    if tag != _PCM and not (mix and dtype):
        encoding = _ENCODINGS.get(tag, f"format {tag:#06x}")
        raise ValueError(f"{path}: {encoding} samples, wanted 16-bit PCM: {_REMEDY}")
    if dtype is None or dtype != "<i2" and not mix:
        raise ValueError(f"{path}: {bits} bits a sample, wanted 16: {_REMEDY}")
    if channels == 0 or channels != 1 and not mix:
        raise ValueError(f"{path}: {channels} channels, wanted 1: {_REMEDY}")
    if rate == 0:
        raise ValueError(f"{path}: a sample rate of 0 Hz: restore the file")
    return int(rate), dtype, int(channels)
