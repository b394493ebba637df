"""NIST SPHERE headers: what TIMIT's ``.WAV`` files really are.

A SPHERE file is a text header, padded to a multiple of 1,024 bytes, and then the samples. The
header is ``NIST_1A``, its own size, and one ``name -type value`` line per field up to ``end_head``;
types are ``-i`` integer, ``-r`` real and ``-sN`` string of N characters.

Source:
    The header of the TIMIT disc's files and NIST's SPHERE documentation; only what TIMIT uses is
    read: one channel of uncompressed 16-bit samples in either byte order.
"""

from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

MAGIC = b"NIST_1A"
SAMPLE_RATE = 16_000  # Hz; the only rate the models take
_BLOCK = 1024
_LARGEST_HEADER = 1024 * 1024


class PcmLayout(NamedTuple):
    """Where a file keeps its samples, and how."""

    offset: int  # bytes from the start of the file
    num_samples: int  # of each channel
    dtype: str  # NumPy's name, "<i2" for 16 bits; "i3" for 24 bits, of which it knows nothing
    sample_rate: int
    end: int  # bytes that the file should have
    channels: int = 1

    @property
    def frame_bytes(self) -> int:
        """Bytes of a sample of all channels."""
        return int(self.dtype[-1]) * self.channels


def read_sphere_layout(file: BinaryIO, path: Path) -> PcmLayout:
    """Read the header of an open SPHERE file and check that it is 16-bit mono PCM.

    Args:
        file: The file, positioned anywhere; left after the header.
        path: Named in errors.

    Raises:
        ValueError: If the header is damaged, or declares samples of another kind.
    """
    offset, fields = _read_fields(file, path)
    coding = str(fields.get("sample_coding", "pcm"))
    if coding != "pcm":
        raise ValueError(
            f"{path}: SPHERE coding {coding!r} is not supported, only pcm: "
            "convert it, e.g. `sph2pipe -f wav IN OUT` or `sox IN -e signed -b 16 OUT.wav`"
        )

    for name, wanted in (("channel_count", 1), ("sample_n_bytes", 2)):
        if fields.get(name) != wanted:
            raise ValueError(
                f"{path}: SPHERE {name} is {fields.get(name, 'missing')}, wanted {wanted}: "
                "convert to 16 kHz 16-bit mono, e.g. `sox IN -r 16000 -b 16 -c 1 OUT.wav`"
            )

    sample_rate = fields.get("sample_rate")
    if not isinstance(sample_rate, int) or sample_rate <= 0:
        raise ValueError(f"{path}: SPHERE sample_rate is missing or no rate: restore the file")
    num_samples = fields.get("sample_count")
    if not isinstance(num_samples, int) or num_samples < 0:
        raise ValueError(f"{path}: SPHERE sample_count is missing or no count: restore the file")

    byte_order = fields.get("sample_byte_format")
    if byte_order not in ("01", "10"):
        raise ValueError(
            f"{path}: SPHERE sample_byte_format is {byte_order or 'missing'}, wanted 01 (little "
            "endian) or 10 (big endian): restore the file"
        )

    dtype = "<i2" if byte_order == "01" else ">i2"
    return PcmLayout(offset, num_samples, dtype, sample_rate, offset + 2 * num_samples)


def _read_fields(file: BinaryIO, path: Path) -> tuple[int, dict[str, int | float | str]]:
    """Return the header's size in bytes and its fields."""
    file.seek(0)
    start = file.read(_BLOCK)
    size_text = start[8:16].strip()
    size = int(size_text) if size_text.isdigit() else 0
    if not start.startswith(MAGIC) or size % _BLOCK or not 0 < size <= _LARGEST_HEADER:
        raise ValueError(f"{path}: no SPHERE header size where one belongs: restore the file")

    header = (start + file.read(size - _BLOCK)).decode("latin-1")
    lines, end, _ = header.partition("\nend_head")
    if len(header) < size or not end:
        raise ValueError(f"{path}: the SPHERE header has no end (end_head): restore the file")
    fields: dict[str, int | float | str] = {}

    for line in lines.split("\n")[2:]:
        if not line.strip() or line.startswith(";"):
            continue
        name, kind, value = (line.split(" ", 2) + ["", ""])[:3]
        try:
            fields[name] = _typed_value(kind, value)
        except ValueError:
            raise ValueError(
                f"{path}: SPHERE header line {line.strip()!r} is not `name -type value`: "
                "restore the file"
            ) from None

    return size, fields


def _typed_value(kind: str, value: str) -> int | float | str:
    if kind == "-i":
        return int(value)
    if kind == "-r":
        return float(value)
    if not kind.startswith("-s") or len(value) < int(kind[2:]):
        raise ValueError
    return value[: int(kind[2:])]


def write_sphere(path: str | Path, samples: Tensor | NDArray[np.int16]) -> None:
    """Write a 16 kHz mono SPHERE file, little-endian, as on the TIMIT disc.

    Args:
        path: File to write; an existing one is replaced.
        samples: (S,) int16, tensor or array.

    Raises:
        ValueError: If ``samples`` is not a row of 16-bit integers.
    """
    array = np.asarray(samples)
    if array.dtype != np.int16 or array.ndim != 1:
        raise ValueError(
            f"write_sphere takes (S,) int16 samples, got {array.dtype} of shape {array.shape}: "
            "scale to [-32768, 32767] and round"
        )
    lines = [
        MAGIC.decode(),
        f"{_BLOCK:7d}",
        "channel_count -i 1",
        f"sample_count -i {len(array)}",
        f"sample_rate -i {SAMPLE_RATE}",
        "sample_n_bytes -i 2",
        "sample_byte_format -s2 01",
        "sample_sig_bits -i 16",
        "end_head\n",
    ]
    header = "\n".join(lines).encode("ascii").ljust(_BLOCK)
    Path(path).write_bytes(header + array.astype("<i2").tobytes())
