"""Tensors by name in the layout of safetensors, read and written without that package.

Layout: the header's length as 8 bytes, little-endian; the header, a JSON object that gives each
tensor's ``dtype``, ``shape`` and ``data_offsets`` (counted from the header's end) by name, and
texts under ``__metadata__``; then the values, little-endian, without gaps.

Source:
    The format's description in the README of the safetensors project.
"""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from data.files import JsonObject
from models.fields import has_type, shown

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_METADATA = "__metadata__"
_LENGTH_BYTES = 8
_ALIGNMENT = 8
_LONGEST_HEADER = 100_000_000
_DAMAGED = "missing, damaged, or not weights"


class _Entry(NamedTuple):
    dtype: torch.dtype
    shape: list[int]
    start: int
    stop: int


def read_metadata(path: Path) -> dict[str, str]:
    """Return the texts in the header of a file; {} where it is of another layout or has none."""
    try:
        with path.open("rb") as file:
            metadata = _read_header(file, path).get(_METADATA, {})
    except (OSError, ValueError):
        return {}
    return metadata if has_type(metadata, "dict of str") else {}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a file.

    The header is held against the file's size before anything of a stated size is made.

    Returns:
        Tensors on the CPU, each with memory of its own.

    Raises:
        ValueError: If the file is missing, cut off, or its header does not describe it.
    """
    try:
        with path.open("rb") as file:
            header = _read_header(file, path)
            begin = file.tell()
            entries = _check_entries(header, file.seek(0, 2) - begin, path)
            tensors = {}
            for name, entry in entries.items():
                file.seek(begin + entry.start)
                content = bytearray(file.read(entry.stop - entry.start))
                flat = torch.frombuffer(content, dtype=entry.dtype) if content else torch.empty(0)
                tensors[name] = flat.to(entry.dtype).reshape(entry.shape)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ValueError(f"{path} can't be read ({reason}): {_DAMAGED}") from None
    return tensors


def write_tensors(
    file: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write tensors of any of ``DTYPES`` to an open file, for :func:`data.files.write_file`."""
    assert sys.byteorder == "little", "the layout is little-endian"
    # Wide values first: every tensor then begins at a multiple of its values' width.
    ordered = sorted(tensors, key=lambda name: -tensors[name].element_size())
    header: JsonObject = {_METADATA: dict(metadata)}
    position = 0
    for name in ordered:
        tensor = tensors[name]
        offsets = [position, position + tensor.numel() * tensor.element_size()]
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": offsets,
        }
        position = offsets[1]
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    file.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
    for name in ordered:
        plain = tensors[name].detach().cpu().contiguous()
        file.write(plain.reshape(-1).view(torch.uint8).numpy().data)


def _read_header(file: BinaryIO, path: Path) -> JsonObject:
    """Read the header and leave the file at its end."""
    size = file.seek(0, 2)
    file.seek(0)
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if not 2 <= length <= min(size - _LENGTH_BYTES, _LONGEST_HEADER):
        raise ValueError(f"{path} can't be read (no header): {_DAMAGED}")
    try:
        header = json.loads(file.read(length).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        reason = type(error).__name__
        raise ValueError(f"{path} can't be read ({reason} in its header): {_DAMAGED}") from None
    if not isinstance(header, dict):
        raise ValueError(f"{path} can't be read (its header is no object): {_DAMAGED}")
    return header


def _check_entries(header: JsonObject, num_bytes: int, path: Path) -> dict[str, _Entry]:
    """Return what the header says of each tensor; together they fill the file without overlap."""
    entries: dict[str, _Entry] = {}
    for name, value in header.items():
        if name == _METADATA:
            continue
        found = value if isinstance(value, dict) else {}
        dtype = DTYPES.get(str(found.get("dtype")))
        shape = found.get("shape")
        offsets = found.get("data_offsets")
        if dtype is None or not has_type(shape, "list of id") or not _is_span(offsets):
            raise ValueError(f"{path} can't be read (tensor {shown(name)}): {_DAMAGED}")
        assert isinstance(shape, list)
        assert isinstance(offsets, list)
        start, stop = offsets
        if math.prod(shape) * dtype.itemsize != stop - start:
            raise ValueError(f"{path} can't be read (size of {shown(name)}): {_DAMAGED}")
        entries[name] = _Entry(dtype, shape, start, stop)

    end = 0
    for entry in sorted(entries.values(), key=lambda each: (each.start, each.stop)):
        if entry.start != end:
            raise ValueError(f"{path} can't be read (tensors with gaps or overlaps): {_DAMAGED}")
        end = entry.stop
    if end != num_bytes:
        raise ValueError(f"{path} can't be read ({num_bytes} bytes, expected {end}): {_DAMAGED}")
    return entries


def _is_span(offsets: object) -> bool:
    """Return whether a value is two positions; a file may be larger than 31 bits can count."""
    return (
        isinstance(offsets, list)
        and len(offsets) == 2
        and all(type(offset) is int for offset in offsets)
        and 0 <= offsets[0] <= offsets[1]
    )
