"""Values that other programs wrote, or that a file may hold damaged, each held against a type.

A type is written as in ``"list of id or null"``: ``bool``, ``int``, ``id`` (0 and up), ``size`` (1
and up), ``number`` (finite), ``share`` (0 to 1), ``str``, ``any``, ``list of`` and ``dict of`` one
of these, ``null``, and any of them joined by ``or``. Keys of a dict are strings, integers fit 31
bits, and true is no number.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.files import JsonObject, read_json

_LARGEST_INT = 2**31 - 1
_LARGEST_NUMBER = 1e300
_LONGEST_SHOWN = 60


@dataclass(frozen=True)
class Field:
    """What a setting may be.

    Attributes:
        type: In the words of this module. "or null" lets null stand for the default; it is written
            where the program whose file it is takes null too.
        default: What the setting is where it is not given.
    """

    type: str
    default: Any = None


@dataclass(frozen=True)
class JsonFile:
    """The object that a JSON file holds, {} where there is no file."""

    path: Path
    content: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path, needed: bool = False) -> "JsonFile":
        """Read ``path``; errors are those of :func:`data.files.read_json`."""
        return cls(path, read_json(path, needed=needed))

    def error(self, name: str, expected: str) -> ValueError:
        """Return the error of a setting that is not as expected."""
        found = shown(self.content.get(name))
        return ValueError(f"{self.path}: {name} is {found}, expected {expected}: correct the file")


def take_fields(schema: Mapping[str, Field], *files: JsonFile) -> JsonObject:
    """Return a value of the right type for every field of ``schema``; what else there is is left.

    Args:
        schema: Fields by name.
        files: Where they are looked for; a later file wins.

    Raises:
        ValueError: If a field has another type; names the file and the field.
    """
    taken = {}
    for name, field in schema.items():
        taken[name] = field.default
        holders = [file for file in files if name in file.content]
        if not holders:
            continue
        value = holders[-1].content[name]
        if not has_type(value, field.type):
            raise holders[-1].error(name, field.type)
        if value is not None:
            taken[name] = value
    return taken


def take_table(file: JsonFile, wanted: str) -> JsonObject:
    """Return the whole object of a file whose values are all of the type ``wanted``.

    Raises:
        ValueError: If one is not; names the file and the key.
    """
    for name, value in file.content.items():
        if not has_type(value, wanted):
            raise file.error(shown(name), wanted)
    return dict(file.content)


def shown(value: object) -> str:
    """Return ``value`` for a message: in one line, cut where it is long."""
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**40 else "a huge number"
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 3] + "..."


def has_type(value: object, wanted: str) -> bool:
    """Return whether ``value`` is of the type that ``wanted`` describes."""
    return any(_is(value, kind) for kind in wanted.split(" or "))


def _is(value: object, kind: str) -> bool:
    if kind.startswith("list of "):
        return isinstance(value, list) and all(_is(item, kind[8:]) for item in value)
    if kind.startswith("dict of "):
        return isinstance(value, dict) and all(
            isinstance(key, str) and _is(item, kind[8:]) for key, item in value.items()
        )
    if kind in _LEAST:
        return type(value) is int and _LEAST[kind] <= value <= _LARGEST_INT
    if kind in ("number", "share"):
        low, high = (0, 1) if kind == "share" else (-_LARGEST_NUMBER, _LARGEST_NUMBER)
        return type(value) in (int, float) and low <= value <= high  # type: ignore[operator]
    return kind == "any" or type(value) is {"bool": bool, "str": str, "null": type(None)}[kind]


_LEAST = {"int": -_LARGEST_INT - 1, "id": 0, "size": 1}
