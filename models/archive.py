"""Weight files of other programs, which hold their training settings beside the weights."""

import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.files import read_archive

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


def read_with_headers(path: Path, remedy: str) -> Any:
    """Read a weight file as :func:`data.files.read_archive` does, with settings as `Header`.

    The settings are objects of argparse's, OmegaConf's and fairseq's classes. Their code is not
    needed and never run.
    """
    return read_archive(path, "weights", remedy, _header_classes)


def _header_classes(path: Path) -> list[tuple[type, str]]:
    """List the header classes that a file mentions, without unpickling it."""
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
    return [(Header, name) for name in sorted(set(names))]


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
    keys = [" ".join(str(key)[:60].splitlines()) for key in content]
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
