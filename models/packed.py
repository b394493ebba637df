"""Packed checkpoints: of a pruned tensor one bit a weight and the kept values, nothing else.

A packed file has the layout of safetensors. A tensor NAME of the model stands there

- whole, as ``NAME``; or, where it is pruned, as ``NAME.bits`` (which weights are kept, eight to a
  byte, the first in the highest bit) and ``NAME.values`` (the kept ones, row by row);
- in fp32 or fp16; or in int8 with ``NAME.scales``, one for each row: weight = value * scale.

Tensors of a single row (biases, norms) stay in fp32. What else a checkpoint holds stands in the
metadata as JSON; the tokenizer, which can be large, compressed in ``TOKENIZER``. What resuming a
run needs is left out. The metadata also holds a checksum of all that, which the first files lacked.
"""

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from data.files import JsonObject, pack_bits, unpack_bits, write_file
from models.fields import has_type, shown
from models.tensor_file import read_metadata, read_tensors, write_tensors

FORMAT = "parp-packed"
VERSION = 1
VALUES = {"fp32": torch.float32, "fp16": torch.float16, "int8": torch.int8}
TOKENIZER = "tokenizer.json.zlib"
_BITS, _VALUES, _SCALES = ".bits", ".values", ".scales"
_PLAIN_PARTS = ("format", "version", "family", "config", "frontend", "decoding", "run")
_INT8_STEPS = 127
_MOST_TOKENIZER_BYTES = 2**25  # 16 times the largest of today
_REMEDY = "it is damaged, or was not written by models.convert"


@dataclass(frozen=True)
class PackedSize:
    """What a packed file takes.

    Attributes:
        parameters: Of the model.
        kept: Of them, those that are stored.
        arithmetic: Bytes of bits, values and scales.
    """

    parameters: int
    kept: int
    arithmetic: int


def is_packed(path: Path) -> bool:
    """Return whether a file is a packed checkpoint."""
    return read_metadata(path).get("format") == FORMAT


def write_packed(path: Path, content: Mapping[str, Any], values: str) -> PackedSize:
    """Write a checkpoint packed, whole or not at all.

    Args:
        path: The file.
        content: What a checkpoint's file holds, see ``models.checkpoint``.
        values: How kept values are stored, a key of ``VALUES``.

    Raises:
        ValueError: If a weight off its mask is not zero or beyond the range of fp16, or the file
            cannot be written.
    """
    weights = content["weights"]
    masks = content["masks"]
    tensors: dict[str, Tensor] = {}
    kept = 0
    for name, weight in weights.items():
        weight = weight.float()
        mask: Tensor | None = unpack_bits(masks[name], name) if name in masks else None
        if mask is None:
            mask = _mask_worth_its_bits(weight, VALUES[values].itemsize)
        if mask is not None and weight[~mask].any():
            raise ValueError(f"{name} has weights other than zero off its mask: prune it first")
        tensors |= _packed_tensor(name, weight, mask, values)
        kept += weight.numel() if mask is None else int(mask.count_nonzero())
    size = PackedSize(
        parameters=sum(weight.numel() for weight in weights.values()),
        kept=kept,
        arithmetic=sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()),
    )

    if content["tokenizer"] is not None:
        text = json.dumps(content["tokenizer"], ensure_ascii=False, separators=(",", ":"))
        compressed = bytearray(zlib.compress(text.encode(), level=9))
        tensors[TOKENIZER] = torch.frombuffer(compressed, dtype=torch.uint8)
    about = {name: content[name] for name in _PLAIN_PARTS} | {
        "masks": sorted(masks),
        "shapes": {name: list(weight.shape) for name, weight in weights.items()},
        "values": values,
    }
    metadata = {"format": FORMAT, "version": str(VERSION), "checkpoint": json.dumps(about)}
    metadata["checksum"] = _checksum(metadata["checkpoint"], tensors)

    def write(file: BinaryIO) -> None:
        write_tensors(file, tensors, metadata)

    write_file(path, write)
    return size


def _checksum(about: str, tensors: Mapping[str, Tensor]) -> str:
    """Return a checksum of metadata and of names, types, shapes and values of tensors."""
    total = zlib.crc32(about.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), total)
        total = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, total)
    return f"{total:08x}"


def _mask_worth_its_bits(weight: Tensor, value_bytes: int) -> Tensor | None:
    """Return where a tensor without a mask is not zero, if its zeros take more than the bits."""
    mask = weight != 0
    return mask if 8 * value_bytes * int((~mask).sum()) > weight.numel() else None


def _packed_tensor(
    name: str, weight: Tensor, mask: Tensor | None, values: str
) -> dict[str, Tensor]:
    """Return the tensors that stand for one of the model."""
    packed: dict[str, Tensor] = {}
    stored_name = name
    stored = weight
    if mask is not None:
        packed[name + _BITS] = pack_bits(mask)["bits"]
        stored_name = name + _VALUES
        stored = weight[mask]
    if values == "fp32" or _num_rows(weight.shape) == 1:
        return packed | {stored_name: stored}
    if values == "fp16":
        half = stored.half()
        if not half.isfinite().all():
            raise ValueError(f"{name} has values beyond the range of fp16: store it as fp32")
        return packed | {stored_name: half}

    scales = weight.abs().flatten(1).amax(1) / _INT8_STEPS
    steps = (weight / scales.where(scales > 0, 1.0).reshape(-1, *[1] * (weight.dim() - 1))).round()
    stored = (steps if mask is None else steps[mask]).to(torch.int8)
    return packed | {stored_name: stored, name + _SCALES: scales}


def _num_rows(shape: Any) -> int:
    return shape[0] if len(shape) > 1 else 1


def read_packed(path: Path) -> JsonObject:
    """Read a packed file as what a checkpoint's file holds, weights in float32.

    Only the packing is checked here; the rest is checked as any checkpoint is.

    Raises:
        ValueError: If the file is damaged or of another version.
    """
    metadata = read_metadata(path)
    tensors = read_tensors(path)
    if metadata.get("version") != str(VERSION):
        raise ValueError(
            f"{path} is packed in version {shown(metadata.get('version'))}, this code reads "
            f"{VERSION}: use the version of the code that wrote it"
        )
    try:
        if metadata.get("checksum") not in (None, _checksum(metadata["checkpoint"], tensors)):
            raise ValueError("its checksum is another than when it was written")
        about = json.loads(metadata["checkpoint"])
        if not isinstance(about, dict):
            raise ValueError("its metadata is no object")
        for key, wanted in (("shapes", "dict of list of id"), ("masks", "list of str")):
            if not has_type(about.get(key), wanted):
                raise ValueError(f"its {key} are no {wanted}")
        tokenizer = _read_tokenizer(tensors.pop(TOKENIZER, None))
        shapes = about.pop("shapes")
        masked = set(about.pop("masks"))
        weights = {}
        masks = {}
        for name, shape in shapes.items():
            weights[name], mask = _unpacked_tensor(name, shape, tensors)
            if name in masked and mask is not None:
                masks[name] = pack_bits(mask)
        if tensors or masked != set(masks):
            unknown = min([*tensors, *(masked ^ set(masks))])
            raise ValueError(f"{shown(unknown)} belongs to nothing that it lists")
    except (KeyError, ValueError, RecursionError, zlib.error) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{path} can't be read ({reason}): {_REMEDY}") from None

    parts = {"weights": weights, "masks": masks, "tokenizer": tokenizer, "training": None}
    return _with_values_noted(about) | parts


def _with_values_noted(about: JsonObject) -> JsonObject:
    """Let the run's facts say that weights were rounded."""
    values = about.pop("values", "fp32")
    run = about.get("run")
    if values != "fp32" and isinstance(run, dict):
        about["run"] = run | {"converted_from": f"packed {values}"}
    return about


def _unpacked_tensor(
    name: str, shape: list[int], tensors: dict[str, Tensor]
) -> tuple[Tensor, Tensor | None]:
    """Take the tensors that stand for one of the model; return it and its mask."""
    mask = None
    if name + _BITS in tensors:
        mask = unpack_bits({"bits": tensors.pop(name + _BITS), "shape": shape}, name)
        stored = tensors.pop(name + _VALUES)
    else:
        stored = tensors.pop(name)
    count = math.prod(shape) if mask is None else int(mask.count_nonzero())
    if stored.dtype not in VALUES.values() or stored.numel() != count:
        raise ValueError(f"{name} has {stored.numel()} {stored.dtype} values, expected {count}")

    values = stored.float().reshape(-1)
    if mask is None:
        weight = values.reshape(shape)
    else:
        weight = torch.zeros(shape)
        weight[mask] = values
    if stored.dtype == torch.int8:
        scales = tensors.pop(name + _SCALES)
        rows = (_num_rows(shape),)
        if scales.dtype != torch.float32 or tuple(scales.shape) != rows or len(shape) < 2:
            raise ValueError(f"{name} has scales {tuple(scales.shape)}, expected {rows}")
        weight = weight * scales.reshape(-1, *[1] * (len(shape) - 1))
    return weight, mask


def _read_tokenizer(compressed: Tensor | None) -> Any:
    if compressed is None:
        return None
    if compressed.dtype != torch.uint8:
        raise ValueError("its tokenizer is no bytes")
    reader = zlib.decompressobj()
    text = reader.decompress(np.ascontiguousarray(compressed.numpy()).data, _MOST_TOKENIZER_BYTES)
    if not reader.eof:
        raise ValueError("its tokenizer is cut off, or larger than any")
    return json.loads(text)
