"""Settings in other programs' JSON files, each held against a type.

Types are written as :func:`data.files.has_type` reads them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.files import JsonObject, has_type, read_json, shown

__all__ = ["Field", "JsonFile", "has_type", "shown", "take_fields", "take_table"]


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
        name = name if name.isidentifier() else shown(name)
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
            raise file.error(name, wanted)
    return dict(file.content)
