"""Turn a dataclass into command-line flags and read it from them and from a TOML file.

A field is ``name: type = field(default=..., metadata={"help": ..., "choices": ...})``; its type is
bool, int, float, str (only this with choices), or one of the last three ``| None``; without a
default it is required.
"""

import argparse
import dataclasses
import importlib
import inspect
import math
import re
import sys
import types
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

Options = TypeVar("Options")


def option(
    help: str,
    default: Any = dataclasses.MISSING,
    choices: Sequence[Any] | None = None,
    positive: bool = False,
) -> Any:
    """Describe a dataclass field that is a flag: its help, its default and what it may be."""
    metadata = {"help": help, "choices": choices, "positive": positive}
    return dataclasses.field(default=default, metadata=metadata)


class OptionParser(argparse.ArgumentParser):
    """Argument parser for flags in either spelling, whose errors are one line and exit status 2."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Read ``--some_flag`` as ``--some-flag``, then parse as usual."""
        args = sys.argv[1:] if args is None else args
        spelled = [re.sub("^--[^=]+", lambda flag: _kebab(flag[0]), arg) for arg in args]
        return super().parse_known_args(spelled, namespace)

    def error(self, message: str) -> NoReturn:
        """Print the message without the usage and exit."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())} (see --help)\n")


def add_options(parser: argparse.ArgumentParser, cls: type) -> None:
    """Add a flag ``--some-field`` for each field of ``cls``, for a bool ``--no-some-field`` too.

    Each help ends with the default. Flags not given leave no attribute in the namespace. In a field
    that may be None the word ``none`` stands for it. Inherited fields are listed after those of
    ``cls``, each class under the first line of its docstring.
    """
    for owner in cls.__mro__:
        own = [f for f in dataclasses.fields(cls) if f.name in inspect.get_annotations(owner)]
        if own:
            title = (owner.__doc__ or owner.__name__).split("\n")[0].rstrip(".")
            _add_fields(parser.add_argument_group(title), cls, own)


def _add_fields(group: Any, cls: type, fields: Sequence[dataclasses.Field[Any]]) -> None:
    for field in fields:
        kind, optional = _field_type(cls, field)
        default = str(field.default)
        default = default.lower() if default in ("None", "True", "False") else default
        note = "required" if field.default is dataclasses.MISSING else f"default: {default}"
        keywords: dict[str, Any] = {
            "default": argparse.SUPPRESS,
            "help": f"{field.metadata.get('help', '')} ({note})".strip().replace("%", "%%"),
        }
        if kind is bool:
            keywords["action"] = argparse.BooleanOptionalAction
        else:
            choices = field.metadata.get("choices")
            keywords["metavar"] = "|".join(map(str, choices)) if choices else kind.__name__.upper()
            keywords["type"] = _reader(kind, optional)
            keywords["choices"] = [*choices, *[None] * optional] if choices else None
        group.add_argument("--" + _kebab(field.name), **keywords)


def parse_options(cls: type[Options], argv: Sequence[str] | None, description: str) -> Options:
    """Return a ``cls`` filled from flags, else from the TOML file, else from its defaults.

    ``--config FILE.toml`` names the file; its keys are the field names in either spelling. ``cls``
    is a dataclass as the module describes it, without a field ``config``; ``argv`` lacks the
    program's name, and None takes the arguments of the process.

    Raises:
        ValueError: For a file or a value in it that is not as it should be, and from ``cls``.
        SystemExit: With status 2 and one line on stderr for wrong flags.
    """
    parser = OptionParser(description=description, allow_abbrev=False)
    add_options(parser, cls)
    note = "options by name; flags win over them (default: none)"
    parser.add_argument("--config", metavar="FILE.toml", help=note)
    values = vars(parser.parse_args(argv))
    if config := values.pop("config"):
        values = _read_toml(cls, config) | values
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if field.default is dataclasses.MISSING and field.name not in values:
            parser.error(f"--{_kebab(field.name)} is required")
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        value = values.get(field.name)
        if field.metadata.get("positive") and value is not None and not 0 < value < math.inf:
            raise ValueError(f"--{_kebab(field.name)} is {value}: give a positive number")
    return cls(**values)


def _read_toml(cls: type, path: str) -> dict[str, Any]:
    name = "tomllib" if sys.version_info >= (3, 11) else "tomli"
    try:
        toml = importlib.import_module(name)
    except ModuleNotFoundError:
        raise ValueError(f'--config needs {name}: pip install -e ".[toml]"') from None
    try:
        with open(path, "rb") as file:
            content = toml.load(file)
    except OSError as error:
        raise ValueError(f"cannot read config {path}: {error.strerror or error}") from None
    except ValueError as error:  # wrong TOML and wrong UTF-8
        raise ValueError(f"config {path} is not TOML: {error}") from None
    fields = {field.name: field for field in dataclasses.fields(cls)}
    values = {}
    for key, value in content.items():
        field = fields.get(key.replace("-", "_"))
        if field is None:
            known = ", ".join(map(_kebab, fields))
            raise ValueError(f"config {path} has unknown option {key!r}; known are {known}")
        values[field.name] = _check_value(cls, field, value, f"config {path}: {key}")
    return values


def _check_value(cls: type, field: dataclasses.Field, value: Any, where: str) -> Any:
    """Return a TOML value as the field's type, or raise ValueError."""
    kind, optional = _field_type(cls, field)
    if optional and value == "none":
        return None
    value = float(value) if kind is float and type(value) is int else value
    if type(value) is not kind:  # isinstance would take True for a number
        raise ValueError(f"{where} is {value!r}: give a value of type {kind.__name__}")
    choices = field.metadata.get("choices")
    if choices and value not in choices:
        raise ValueError(f"{where} is {value!r}: choose from {', '.join(map(str, choices))}")
    return value


def _field_type(cls: type, field: dataclasses.Field) -> tuple[type, bool]:
    """Return the type of a field without None, and whether None is allowed."""
    hint = get_type_hints(cls)[field.name]
    members = get_args(hint) if get_origin(hint) in (types.UnionType, Union) else (hint,)
    (kind,) = (member for member in members if member is not type(None))
    assert kind in (bool, int, float, str), f"{field.name}: {hint}"
    return kind, len(members) == 2


def _reader(kind: type, optional: bool) -> Any:
    """Return argparse's ``type`` for a flag; argparse's messages quote its name."""

    def read(text: str) -> Any:
        return None if optional and text == "none" else kind(text)

    read.__name__ = kind.__name__
    return read


def _kebab(name: str) -> str:
    return name.replace("_", "-")
