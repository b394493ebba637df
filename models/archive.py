"""Files of ``torch.save``, read without running any code and without trusting their sizes."""

import pickle
import pickletools
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Tied weights are one storage under two names; more than that is no model.
_MOST_SHARED = 4
_HEADER_MODULES = ("argparse", "omegaconf", "fairseq", "enum", "typing", "pathlib")
_HEADER_BUILTINS = ("bool", "dict", "float", "int", "list", "str", "tuple")


class Header:
    """Stands for an object of a training program's settings; only its values are read.

    Attributes:
        values: What the object was made from.
    """

    def __init__(self, *values: Any) -> None:
        self.values: Any = values[0] if len(values) == 1 else values

    def __setstate__(self, state: Any) -> None:
        self.values = state

    def __hash__(self) -> int:
        return id(self)


def read_archive(
    path: Path, headers: bool = False, kind: str = "weights", remedy: str = "give weights alone"
) -> Any:
    """Read a file of ``torch.save`` with torch's restricted unpickler.

    Args:
        path: The file.
        headers: Whether to read settings of training programs (argparse's, OmegaConf's and
            fairseq's classes), as :class:`Header`. Their code is not needed and never run.
        kind: What the file should be, for messages.
        remedy: What the user is told to do where it is none.

    Returns:
        Tensors, on the CPU, and plain values.

    Raises:
        ValueError: If the file is missing, damaged or compressed, names any other class or
            function, or has tensors with more values than it has bytes for.
    """
    try:
        _refuse_compressed(path)
        allowed: list[Any] = [(Header, name) for name in _header_names(path)] if headers else []
        with warnings.catch_warnings(), torch.serialization.safe_globals(allowed):
            warnings.simplefilter("ignore")  # about files that are refused anyway
            content = torch.load(path, map_location="cpu", weights_only=True)
        _refuse_inflated(content, path.stat().st_size)
    except _RefusedError as error:
        raise ValueError(f"{path} {error}") from None
    except Exception as error:  # torch names no common type for damaged or refused files
        reason = (isinstance(error, OSError) and error.strerror) or type(error).__name__
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            reason = "it names code to run"
        raise ValueError(f"{path} can't be read as {kind} ({reason}): {remedy}") from None
    return content


class _RefusedError(Exception):
    """What is wrong with a file that torch would take."""


def _refuse_compressed(path: Path) -> None:
    """Raise where an archive unpacks to more than it is; torch itself stores without packing."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise _RefusedError("has compressed entries, which torch does not write: save it anew")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise _RefusedError("has entries that are larger than the file: it is damaged")


def _refuse_inflated(content: Any, num_bytes: int) -> None:
    total = 0
    for tensor in _tensors(content):
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise _RefusedError("has a tensor that is not plain: save dense tensors with values")
        size = tensor.numel() * tensor.element_size()
        if size > tensor.untyped_storage().nbytes():
            raise _RefusedError("has a tensor with more values than are stored: save it contiguous")
        total += size
    if total > _MOST_SHARED * num_bytes:
        raise _RefusedError("has tensors that share their values many times over: save them apart")


def _tensors(content: Any) -> Iterator[Tensor]:
    """Yield every tensor in nested values, without recursion, each container once."""
    waiting, seen = [content], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict | list | tuple | Header) and id(value) not in seen:
            seen.add(id(value))
            if isinstance(value, Header):
                waiting.append(value.values)
            else:
                waiting.extend(value.values() if isinstance(value, dict) else value)


def _header_names(path: Path) -> list[str]:
    """List the names of header classes that a file mentions, without unpickling it."""
    names = []
    for pickled in _pickles(path):
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name != "GLOBAL":
                continue
            module, _, name = str(argument).partition(" ")
            if module.split(".")[0] in _HEADER_MODULES or (
                module in ("builtins", "__builtin__") and name in _HEADER_BUILTINS
            ):
                names.append(f"{module}.{name}")
    return sorted(set(names))


def _pickles(path: Path) -> Iterator[Any]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("data.pkl")]
            yield from (archive.read(name) for name in names)
        return
    with path.open("rb") as file:  # before torch 1.6: five pickles, then the values
        for _ in range(5):
            start = file.tell()
            yield file
            if file.tell() == start:
                return


def describe_content(content: Any) -> str:
    """Say in a few words what a file of weights holds, for messages."""
    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    program = next((name for key, name in _PROGRAMS.items() if key in content), None)
    keys = [str(key)[:60] for key in content]
    shown = ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if keys[4:] else "")
    return f"{f'a checkpoint of {program} with ' if program else ''}{shown or 'nothing'}"


_PROGRAMS = {
    "pytorch-lightning_version": "PyTorch Lightning or NeMo",
    "optimizer_history": "fairseq",
    "optimizer_state_dict": "a training script",
    "state_dict": "a training script",
    "model_state_dict": "a training script",
}
"""Programs by a key of the dictionaries that they save."""
