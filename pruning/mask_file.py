"""Save and load masks, eight weights to a byte, and identify the weights they were made from."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.files import (
    Schema,
    check_fields,
    pack_bits,
    read_archive,
    shown,
    unpack_bits,
    write_file,
)

FORMAT = "parp-masks"
VERSION = 1
REQUIRED_METADATA = ("model", "scope", "sparsity", "source_run", "weights_hash")
AGAIN = "make it again"

_CONTENT: Schema = {
    "metadata": {
        name: "number" if name == "sparsity" else "str or null" for name in REQUIRED_METADATA
    },
    "masks": "dict of any",
}


@dataclass(frozen=True)
class MaskFile:
    """What a mask file holds.

    Attributes:
        masks: Bool tensors on the CPU by native parameter name, True = kept.
        metadata: Plain values; at least those of ``REQUIRED_METADATA``.
    """

    masks: dict[str, Tensor]
    metadata: dict[str, Any]


def save_masks(
    path: str | os.PathLike[str], masks: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> None:
    """Write ``masks`` and ``metadata`` so that a crash leaves the old file or the new one.

    Args:
        path: File to write; its folder is made where it is missing.
        masks: Bool tensors of any shape by native parameter name, on any device.
        metadata: Values that JSON can hold: ``model``, ``scope``, ``sparsity``, ``source_run``,
            ``weights_hash`` (:func:`weights_hash` of the initial weights) and any others.

    Raises:
        ValueError: If a required value is missing, a mask is not bool, or the file cannot be
            written.
    """
    missing = [key for key in REQUIRED_METADATA if key not in metadata]
    if missing:
        raise ValueError(f"mask file metadata lacks {', '.join(missing)}: give every one")
    packed = {}
    for name, mask in masks.items():
        if mask.dtype != torch.bool:
            raise ValueError(f"mask {name!r} is {mask.dtype}: masks are bool, True = kept")
        packed[name] = pack_bits(mask)
    content = {
        "format": FORMAT,
        "version": VERSION,
        "metadata": json.loads(json.dumps(dict(metadata))),  # plain values only, or loading fails
        "masks": packed,
    }
    write_file(os.fspath(path), lambda file: torch.save(content, file))


def load_masks(path: str | os.PathLike[str]) -> MaskFile:
    """Read a mask file; nothing in it is executed.

    Raises:
        ValueError: If the file is missing, damaged, no mask file, or of another version.
    """
    path = Path(path)
    content = read_archive(path, "a mask file", "give a masks.pt")
    found = content.get("format") if isinstance(content, dict) else None
    if not isinstance(found, str) or found != FORMAT:
        raise ValueError(f"{path} is no mask file: its format is not {FORMAT!r}; give a masks.pt")
    version = content.get("version")
    if type(version) is not int or version != VERSION:  # a tensor has no one answer
        raise ValueError(
            f"{path} is a mask file of version {shown(version)}, this program reads "
            f"{VERSION}: use the program that wrote it"
        )
    check_fields(content, _CONTENT, path, AGAIN)
    try:
        masks = {name: unpack_bits(packed, name) for name, packed in content["masks"].items()}
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): {AGAIN}") from None
    return MaskFile(masks, content["metadata"])


def check_masks(mask_file: MaskFile, params: Mapping[str, Tensor], model: str, scope: str) -> None:
    """Check that the masks were made for this model, this scope and these shapes.

    The weights themselves may differ: a mask may come from another task's run.

    Args:
        mask_file: What :func:`load_masks` returned.
        params: In-scope parameters by native name.
        model: Name that has to equal the file's ``model``.
        scope: Name that has to equal the file's ``scope``.

    Raises:
        ValueError: If the model, the scope, a name or a shape differs.
    """
    for key, wanted in (("model", model), ("scope", scope)):
        found = mask_file.metadata[key]
        if found != wanted:
            raise ValueError(
                f"the mask file is for {key} {found!r}, this run is for {wanted!r}: "
                f"use the masks of a run with the same {key}"
            )
    unmatched = mask_file.masks.keys() ^ params.keys()
    if unmatched:
        raise ValueError(
            f"mask file and model differ in {len(unmatched)} parameter names, first in "
            f"{min(unmatched)!r}: use the masks of a run with the same model and scope"
        )
    for name, mask in mask_file.masks.items():
        if mask.shape != params[name].shape:
            raise ValueError(
                f"mask {name!r} is {tuple(mask.shape)}, the parameter {tuple(params[name].shape)}: "
                "use the masks of a run with the same model configuration"
            )


def weights_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 in hex over the names, dtypes, shapes and bytes of ``tensors``.

    It depends neither on the order of the names nor on device or memory layout.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu()
        header = [name, str(tensor.dtype), list(tensor.shape)]
        digest.update(json.dumps(header).encode() + b"\n")
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_masks_for(
    path: str | os.PathLike[str], params: Mapping[str, Tensor], model: str, scope: str
) -> dict[str, Tensor]:
    """Read the masks of a file that were made for ``params``, onto their devices.

    Raises:
        ValueError: As :func:`load_masks` and :func:`check_masks` do.
    """
    mask_file = load_masks(path)
    check_masks(mask_file, params, model, scope)
    return {name: mask.to(params[name].device) for name, mask in mask_file.masks.items()}
