"""What the programs share: options from flags and TOML files, errors, signals, exit status.

Options are a dataclass whose fields become flags. A field is ``name: type = option(help, ...)``;
its type is bool, int, float, str (only this with choices), one of the last three ``| None``, or
``tuple[str, ...]``; without a default it is required.

Such a class may say more by itself. ``notes`` holds, by field name, what the help of a flag begins
with. The class method ``unused_options`` takes values by field name and returns, also by field
name, why an option would change nothing beside them, as "is not for dense". In a field's metadata
``vital`` says that a run without the option would not be what was asked for.
"""

import argparse
import dataclasses
import difflib
import functools
import inspect
import io
import math
import os
import re
import signal
import sys
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from data.files import JsonObject, read_toml, warn_once
from data.start import take_interrupts

Options = TypeVar("Options")

COMMANDS = {
    "train": "python train.py",
    "eval": "python eval.py",
    "convert": "python -m models.convert",
    "sweep": "python -m pruning.sweep",
    "report": "python -m pruning.report",
    "synthetic": "python -m data.synthetic",
}
ELSEWHERE = "give another place, or make it usable"
STATUS_MISTAKE = 2  # the user's
_LONGEST_MESSAGE = 6000  # characters; more is what a damaged file holds
STATUS_INTERRUPTED = 128 + signal.SIGINT
STATUS_CLOSED_PIPE = 128 + 13  # SIGPIPE, which Windows lacks

_MOST = 2**31 - 1
"""Whole numbers beyond it overflow somewhere: seeds, sizes of tensors."""
_WANTED = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text in quotes",
    tuple: "a list of texts",
}


def command(program: str) -> str:
    """Return how to call one of our programs: as this process was called, installed or not.

    Args:
        program: A key of ``COMMANDS``.
    """
    is_installed = Path(sys.argv[0]).name.startswith("parp-")
    return f"parp-{program}" if is_installed else COMMANDS[program]


def run_program(name: str, main: Callable[[], int | None]) -> int:
    """Do the work of a program and return the exit status of its process.

    Args:
        name: What messages call the program, see :func:`command`.
        main: Does the work and returns the status; None stands for 0.

    Returns:
        What ``main`` returned; 2 after a ValueError, the user's mistake, or an OSError, a place
        that can't be used, each printed in one line on stderr; 130 after Ctrl-C; 141, as of a
        program that the system stops for it, where what is printed goes into a pipe that nobody
        reads any longer.
    """
    take_interrupts()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a console can't show it spells out
            stream.reconfigure(errors="backslashreplace")
    showwarning, warnings.showwarning = warnings.showwarning, _show_warning
    try:
        status = main() or 0
        sys.stdout.flush()
        return status
    except ValueError as error:
        sys.stderr.write(f"{name}: error: {_in_one_line(str(error))}\n")
        return STATUS_MISTAKE
    except KeyboardInterrupt:
        return STATUS_INTERRUPTED
    except BrokenPipeError:
        # At exit Python flushes what is left to print, and would fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return STATUS_CLOSED_PIPE
    except OSError as error:
        where = f" {error.filename}" if error.filename is not None else ""
        reason = error.strerror or " ".join(str(error).splitlines())
        sys.stderr.write(f"{name}: error: cannot use{where} ({reason}): {ELSEWHERE}\n")
        return STATUS_MISTAKE
    finally:
        warnings.showwarning = showwarning


def _in_one_line(message: str) -> str:
    """Return a message without line ends, and without the middle where a file made it very long."""
    line = " ".join(message.splitlines())
    half = _LONGEST_MESSAGE // 2
    return line if len(line) <= _LONGEST_MESSAGE else f"{line[:half]} ... {line[-half:]}"


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Print a warning of any library as our own are printed: in one line, once."""
    if issubclass(category, UserWarning):  # others are for those who write programs
        warn_once(str(message), str(message))


@contextmanager
def interrupts() -> Iterator[list[int]]:
    """Collect interrupt and termination signals in the list that is yielded, to act on in time."""
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(n, lambda number, frame: received.append(number)) for n in numbers]
    try:
        yield received
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def option(
    help: str,
    default: Any = dataclasses.MISSING,
    choices: Sequence[Any] | None = None,
    positive: bool = False,
    least: int | None = None,
) -> Any:
    """Describe a dataclass field that is a flag: its help, its default and what it may be."""
    metadata = {"help": help, "choices": choices, "positive": positive, "least": least}
    return dataclasses.field(default=default, metadata=metadata)


def with_fields_of(others: Iterable[type]) -> Callable[[type[Options]], type[Options]]:
    """Return a decorator that adds the fields of some dataclasses to a dataclass.

    What comes out is a subclass of them all, so it can be given where any of them is asked for.

    Raises:
        TypeError: If two of them, neither of which comes from the other, declare one option.
    """

    def add(cls: type[Options]) -> type[Options]:
        distinct = list(dict.fromkeys(others))
        bases = [c for c in distinct if not any(c is not o and issubclass(o, c) for o in distinct)]
        joined = types.new_class(cls.__name__, (cls, *(c for c in bases if not issubclass(cls, c))))
        joined.__module__, joined.__doc__ = cls.__module__, cls.__doc__

        for name in {field.name for base in bases for field in dataclasses.fields(base)}:
            owners = [c.__name__ for c in joined.__mro__ if name in inspect.get_annotations(c)]
            if len(owners) > 1:
                raise TypeError(
                    f"option {name} is declared by {' and by '.join(owners)}: declare it once, in "
                    "a class that both come from"
                )
        return dataclasses.dataclass(frozen=True, kw_only=True)(joined)

    return add


def meant_instead(name: str, known: Iterable[str]) -> str:
    """Return the question after the known name that is nearest to ``name``, or nothing."""
    by_lower = {each.lower(): each for each in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f"; did you mean {by_lower[near[0]]}?" if near else ""


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
        """Print the message without the usage, with what may have been meant, and exit."""
        if unknown := re.match(r"unrecognized arguments: (--[^\s=]+)", message):
            message += meant_instead(unknown[1], self._option_string_actions)
        elif wrong := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)$", message):
            known = [each for each in re.findall(r"[^\s',]+", wrong[2]) if each != "None"]
            message = message.replace(", None)", ")") + meant_instead(wrong[1], known)
        self.exit(STATUS_MISTAKE, f"{self.prog}: error: {' '.join(message.split())} (see --help)\n")


def add_options(parser: argparse.ArgumentParser, cls: type) -> None:
    """Add a flag ``--some-field`` for each field of ``cls``, for a bool ``--no-some-field`` too.

    Each help ends with the default. Flags not given leave no attribute in the namespace. In a field
    that may be None the word ``none`` stands for it. Inherited fields are listed after those of
    ``cls``, each class under the first line of its docstring. The help of a field begins with what
    ``cls.notes`` says of it.
    """
    for owner in cls.__mro__:
        own = [f for f in dataclasses.fields(cls) if f.name in inspect.get_annotations(owner)]
        if own:
            title = (owner.__doc__ or owner.__name__).split("\n")[0].rstrip(".")
            _add_fields(parser.add_argument_group(title), cls, own)


def _add_fields(group: Any, cls: type, fields: Sequence[dataclasses.Field[Any]]) -> None:
    notes: Mapping[str, str] = getattr(cls, "notes", {})
    for field in fields:
        kind, optional = _field_type(cls, field)
        default = str(field.default)
        default = default.lower() if default in ("None", "True", "False") else default
        default = "none" if field.default == () else default
        note = "required" if field.default is dataclasses.MISSING else f"default: {default}"
        whom = f"{notes[field.name]}: " if field.name in notes else ""
        text = f"{whom}{field.metadata.get('help', '')} ({note})".strip()
        keywords: dict[str, Any] = {
            "default": argparse.SUPPRESS,
            "help": text.replace("%", "%%"),
        }
        if kind is bool:
            keywords["action"] = argparse.BooleanOptionalAction
        elif kind is tuple:
            keywords |= {"nargs": "+", "metavar": "PATH"}
        else:
            choices = field.metadata.get("choices")
            keywords["metavar"] = "|".join(map(str, choices)) if choices else kind.__name__.upper()
            keywords["type"] = _reader(kind, optional)
            keywords["choices"] = [*choices, *[None] * optional] if choices else None
        group.add_argument("--" + _kebab(field.name), **keywords)


def parse_options(
    cls: type[Options], argv: Sequence[str] | None, description: str, prog: str | None = None
) -> Options:
    """Return a ``cls`` filled from flags, else from the TOML file, else from its defaults.

    ``--config FILE.toml`` names the file; its keys are the field names in either spelling. ``cls``
    is a dataclass as the module describes it, without a field ``config``; ``argv`` lacks the
    program's name, and None takes the arguments of the process; ``prog`` is what the usage and
    messages call the program.

    One file, or one list of flags, may serve several commands. So what ``cls`` calls unused beside
    the other values is left out, with a line on stderr, unless the field is ``vital``: that is for
    ``cls`` to refuse.

    Raises:
        ValueError: For a file or a value in it that is not as it should be, and from ``cls``.
        SystemExit: With status 2 and one line on stderr for wrong flags.
    """
    parser = OptionParser(prog=prog, description=description, allow_abbrev=False)
    add_options(parser, cls)
    note = "options by name; flags win over them (default: none)"
    parser.add_argument("--config", metavar="FILE.toml", help=note)
    values = vars(parser.parse_args(argv))
    config = values.pop("config")
    for name, value in values.items():
        values[name] = check_value(cls, name, value, f"--{_kebab(name)}")

    if config:
        values = _read_options(cls, config) | values
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if field.default is dataclasses.MISSING and field.name not in values:
            parser.error(f"--{_kebab(field.name)} is required")
    return cls(**_leave_out_unused(cls, values))


def _read_options(cls: type, path: str) -> JsonObject:
    """Return the options in a TOML file by field name."""
    fields = {field.name for field in dataclasses.fields(cls)}
    values: JsonObject = {}
    for key, value in read_toml(path, "give the TOML file of a run").items():
        name = key.replace("-", "_")
        if name not in fields:
            known = ", ".join(_kebab(field.name) for field in dataclasses.fields(cls))
            meant = meant_instead(name.replace("_", "-"), known.split(", "))
            raise ValueError(f"config {path} has unknown option {key!r}{meant}; known are {known}")
        values[name] = check_value(cls, name, value, f"config {path}: {key}")
    return values


def _leave_out_unused(cls: type, values: JsonObject) -> JsonObject:
    """Return options without those that change nothing beside the others; say which those are."""
    if not hasattr(cls, "unused_options"):
        return values
    unused = cls.unused_options(values)
    kept = dict(values)
    for field in dataclasses.fields(cls):
        is_given = field.name in values and values[field.name] != field.default
        if field.name in unused and not field.metadata.get("vital"):
            kept.pop(field.name, None)
            if is_given:
                sys.stderr.write(f"--{_kebab(field.name)} {unused[field.name]}; left out\n")
    return kept


def check_value(cls: type, name: str, value: Any, where: str) -> Any:
    """Return a value of a field as the field's type; a whole number may stand for a float.

    Args:
        cls: The dataclass, as the module describes it.
        name: Name of the field.
        value: Of a TOML file or of a flag.
        where: What a message calls the field.

    Raises:
        ValueError: If it is of another type, none of the field's choices, not finite, or less than
            the field takes.
    """
    (field,) = (field for field in dataclasses.fields(cls) if field.name == name)
    kind, optional = _field_type(cls, field)
    if optional and value in ("none", None):
        return None
    value = float(value) if kind is float and type(value) is int else value
    if kind is tuple and isinstance(value, list) and all(isinstance(each, str) for each in value):
        value = tuple(value)
    fits: bool = type(value) is kind  # isinstance would take True for a number
    if not fits:
        raise ValueError(f"{where} is {value!r}: give {_WANTED[kind]}")
    if value == "":
        raise ValueError(f"{where} is empty: give a value, or leave it out")
    choices = field.metadata.get("choices")
    if choices and value not in choices:
        raise ValueError(f"{where} is {value!r}: choose from {', '.join(map(str, choices))}")
    if field.metadata.get("positive") and not 0 < value < math.inf:
        raise ValueError(f"{where} is {value}: give a positive number")
    if kind is float and not math.isfinite(value):
        raise ValueError(f"{where} is {value}: give a finite number")
    if kind is int and not -_MOST <= value <= _MOST:
        raise ValueError(f"{where} is {value}: give a number of at most {_MOST:,}")
    least = field.metadata.get("least")
    if least is not None and value < least:
        raise ValueError(f"{where} is {value}: give {least} or more")
    return value


def _field_type(cls: type, field: dataclasses.Field) -> tuple[type, bool]:
    """Return the type of a field without None, and whether None is allowed."""
    hint = _type_hints(cls)[field.name]
    members = get_args(hint) if get_origin(hint) in (types.UnionType, Union) else (hint,)
    if hint == tuple[str, ...]:
        return tuple, False
    (kind,) = (member for member in members if member is not type(None))
    assert kind in (bool, int, float, str), f"{field.name}: {hint}"
    return kind, len(members) == 2


@functools.cache
def _type_hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _reader(kind: type, optional: bool) -> Any:
    """Return argparse's ``type`` for a flag; argparse's messages quote its name."""

    def read(text: str) -> Any:
        return None if optional and text == "none" else kind(text)

    read.__name__ = kind.__name__
    return read


def _kebab(name: str) -> str:
    return name.replace("_", "-")
