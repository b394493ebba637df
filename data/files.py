"""Files that are written whole or not at all, locked, and read with errors of one line.

Every package may import this module, so that each kind of file is read and written in one way.
"""

import importlib
import json
import math
import os
import pickle
import reprlib
import shutil
import sys
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from pickletools import genops
from typing import IO, Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

JsonObject = dict[str, Any]
"""What a JSON object or a TOML table holds, by key."""

Content = bytes | Callable[[BinaryIO], object]
"""The bytes of a file, or a function that writes them to an open one."""

WRITE_ELSEWHERE = "give another place, or make room there"
RESTORE = "restore the file"
TEMPORARY = ".parp-tmp"
IDLE_SECONDS = 3600.0  # of a temporary file that no living process is taken to write
LOCK_POLL_SECONDS = 0.1

Schema = Mapping[str, "str | Schema"]
"""Types of an object's fields by name, in the words of :func:`has_type`, or "missing"; a nested
object has a schema of its own."""

_LARGEST_INT = 2**31 - 1
_LARGEST_NUMBER = 1e300
_LONGEST_SHOWN = 60
_LEAST = {"int": -_LARGEST_INT - 1, "id": 0, "size": 1}
_SHAPE = "list of id"
_LARGEST_TOML = 100_000  # bytes; the parser takes up to a second for them
_MOST_DOTS_CUBED = 10**9  # the parser takes the cube of a key's dots, and 0.1 s for these
_LONGEST_NAME = 1000  # of a class, which torch takes the square of to refuse
_MS_DOS_FOLDER = 0x10
_MOST_SHARED = 4
"""Tied weights are one storage under two names; more than that is no model."""


def temporary_beside(path: Path, note: str = "") -> Path:
    """Return the name under which this process writes ``path`` until it is complete.

    Args:
        path: File or folder to write.
        note: Tells several temporaries of one path apart.
    """
    parts = [path.name, note, str(os.getpid())]
    return path.with_name("." + ".".join(part for part in parts if part) + TEMPORARY)


def remove_left_overs(folder: Path, idle_seconds: float = 0.0) -> None:
    """Delete what killed processes have left in ``folder`` under temporary names.

    Args:
        folder: May be missing. Only the sole writer of a folder may leave ``idle_seconds`` at 0.
        idle_seconds: What was written to since then stays: another process may be at work on it.
    """
    for path in folder.glob(f".*{TEMPORARY}"):
        try:
            if time.time() - path.stat().st_mtime >= idle_seconds:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError:  # another process was faster, or it is another user's
            continue


def refuse_special(path: Path) -> None:
    """Refuse pipes, sockets and devices, which may never come to an end, before they are opened.

    Raises:
        ValueError: If ``path`` is one.
    """
    # Of these a name that no file can have is not an error, as it is of pathlib's.
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise ValueError(f"{path} is a pipe or a device: put a file there, or remove it")


def write_file(path: str | Path, content: Content, remedy: str = WRITE_ELSEWHERE) -> None:
    """Write one file as :func:`write_files` does."""
    write_files({Path(path): content}, remedy)


def write_files(contents: Mapping[Path, Content], remedy: str = WRITE_ELSEWHERE) -> None:
    """Write files so that an interruption leaves each old one or the new one, never a part.

    All are written under temporary names beside their own and synced to the disk; when the last is
    complete, all are renamed. A failure before that leaves every file as it was. Missing folders
    are made.

    Args:
        contents: What to write, by path.
        remedy: What the user is told to do where that fails.

    Raises:
        ValueError: If a folder or a file cannot be written.
    """
    temporaries: dict[Path, Path] = {}
    path = Path()
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporaries[path] = temporary_beside(path)
            with temporaries[path].open("wb") as file:
                file.write(content) if isinstance(content, bytes) else content(file)
                file.flush()
                os.fsync(file.fileno())

        for path, temporary in temporaries.items():
            os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        # torch.save turns the error of a full disk into a RuntimeError that says nothing of it.
        cause = _os_error_behind(error)
        if cause is None:
            raise
        raise ValueError(f"cannot write {path} ({cause.strerror or cause}): {remedy}") from None
    finally:
        for temporary in temporaries.values():
            _remove(temporary)


def _os_error_behind(error: BaseException | None) -> OSError | None:
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # its folder is gone, or was never one
        pass


def to_json(value: Any, indent: int | None = None, compact: bool = False) -> str:
    """Return ``value`` as JSON by RFC 8259, which knows neither NaN nor infinity: those are null.

    Args:
        value: Nested dicts, lists and tuples of plain values.
        indent: Spaces a level; None puts all in one line.
        compact: Whether to leave out the spaces behind commas and colons.
    """
    separators = (",", ":") if compact else None
    try:
        return json.dumps(value, indent=indent, separators=separators, allow_nan=False)
    except ValueError:
        return json.dumps(_without_nan(value), indent=indent, separators=separators)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value


def write_json(
    path: str | Path,
    content: Mapping[str, Any],
    indent: int | None = 2,
    remedy: str = WRITE_ELSEWHERE,
) -> None:
    """Write a JSON object, whole or not at all.

    Raises:
        ValueError: If the file cannot be written.
    """
    write_file(path, (to_json(content, indent) + "\n").encode(), remedy)


def append_json_line(path: Path, value: Mapping[str, Any]) -> None:
    """Add a JSON object to a file that holds one a line.

    Raises:
        ValueError: If the file cannot be written.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(to_json(value) + "\n")
    except OSError as error:
        raise ValueError(
            f"cannot write {path} ({error.strerror or error}): {WRITE_ELSEWHERE}"
        ) from None


def read_json(path: str | Path, remedy: str = RESTORE, needed: bool = True) -> JsonObject:
    """Read a JSON object; {} where a file that is not ``needed`` is missing.

    A bare NaN, which version 0.1.0 wrote, is read as one.

    Args:
        path: The file.
        remedy: What the user is told to do where it cannot be read.
        needed: Whether it has to be there.

    Raises:
        ValueError: If it cannot be read, or holds something else.
    """
    if not needed and not Path(path).is_file():
        return {}
    content = _parse(_read_text(path, remedy), path, remedy)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object: {remedy}")
    return content


def read_json_lines(path: str | Path, remedy: str = RESTORE) -> list[JsonObject]:
    """Read a file with a JSON object in each line.

    Raises:
        ValueError: If it cannot be read, or a line holds something else.
    """
    lines = [line for line in _read_text(path, remedy).split("\n") if line]
    values = [_parse(line, path, remedy) for line in lines]
    if not all(isinstance(value, dict) for value in values):
        raise ValueError(f"{path} has a line that holds no JSON object: {remedy}")
    return values


def _read_text(path: str | Path, remedy: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot read {path} ({error.strerror or error}): {remedy}") from None
    except ValueError:
        raise ValueError(f"{path} is damaged (not UTF-8): {remedy}") from None


def _parse(text: str, path: str | Path, remedy: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): {remedy}") from None


def check_fields(
    content: object, schema: Schema, path: str | Path, remedy: str = RESTORE, within: str = ""
) -> None:
    """Check the fields of an object that a file holds; what else it holds is left alone.

    Args:
        content: The object.
        schema: Of the fields that are wanted.
        path: The file, for messages.
        remedy: What the user is told to do where they are wrong.
        within: Name of the object where it is nested in another.

    Raises:
        ValueError: If it is no object, or a field is missing or of another type; names it.
    """
    if not isinstance(content, dict):
        raise ValueError(f"{path}: {within or 'it'} is {shown(content)}, not an object: {remedy}")
    for name, wanted in schema.items():
        field = f"{within}.{name}" if within else name
        if not isinstance(wanted, str):
            check_fields(content.get(name), wanted, path, remedy, field)
        elif name not in content:
            if "missing" not in wanted.split(" or "):
                raise ValueError(f"{path}: {field} is missing, expected {wanted}: {remedy}")
        elif not has_type(content[name], wanted.removesuffix(" or missing")):
            found = shown(content[name])
            raise ValueError(f"{path}: {field} is {found}, expected {wanted}: {remedy}")


def has_type(value: object, wanted: str) -> bool:
    """Return whether ``value`` is of the type that ``wanted`` describes.

    A type is written as in ``"list of id or null"``: ``bool``, ``int``, ``id`` (0 and up), ``size``
    (1 and up), ``number`` (finite), ``share`` (0 to 1), ``str``, ``any``, ``list of``, ``pair of``
    and ``dict of`` one of these, ``null``, and any of them joined by ``or``. Keys of a dict are
    strings, integers fit 31 bits, and true is no number.
    """
    return any(_is(value, kind) for kind in wanted.split(" or "))


def _is(value: object, kind: str) -> bool:
    if kind.startswith("list of "):
        return isinstance(value, list) and all(_is(item, kind[8:]) for item in value)
    if kind.startswith("pair of "):
        return _is(value, f"list of {kind[8:]}") and len(value) == 2  # type: ignore[arg-type]
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


def shown(value: object) -> str:
    """Return ``value`` for a message: in one line, cut where it is long."""
    if isinstance(value, int) and abs(value) >= 10**40:
        return "a huge number"
    text = " ".join(_SHORT.repr(value).splitlines())  # tensors take several
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 3] + "..."


_SHORT = reprlib.Repr()  # nested values of a damaged file may have no end
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = _LONGEST_SHOWN + 1


def read_toml(path: str | Path, remedy: str) -> JsonObject:
    """Read a TOML file.

    Raises:
        ValueError: If it cannot be read, or Python 3.10 lacks the package for it.
    """
    name = "tomllib" if sys.version_info >= (3, 11) else "tomli"
    try:
        toml = importlib.import_module(name)
    except ModuleNotFoundError:
        raise ValueError(f'TOML files need {name}: pip install -e ".[toml]"') from None
    try:
        content = Path(path).read_bytes().decode()
        if len(content) > _LARGEST_TOML:
            raise ValueError(f"it has more than {_LARGEST_TOML} characters, as no config of ours")
        if sum(line.count(".") ** 3 for line in content.splitlines()) > _MOST_DOTS_CUBED:
            raise ValueError("it has lines of thousands of dots")
        return dict(toml.loads(content))
    except OSError as error:
        raise ValueError(f"cannot read {path} ({error.strerror or error}): {remedy}") from None
    except (ValueError, RecursionError) as error:  # wrong TOML and wrong UTF-8
        raise ValueError(f"{path} is not TOML ({error}): correct it") from None


def check_room(folder: Path, needed: float, what: str) -> str:
    """Check that a disk has room; return in words how much is needed and free.

    Args:
        folder: Where it is to be written; it need not exist.
        needed: Bytes.
        what: What is to be written there.

    Raises:
        ValueError: If less is free.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    said = f"{what} may take {needed / 1e9:.2f} GB in {folder}, where {free / 1e9:.2f} GB are free"
    if needed > free:
        raise ValueError(f"{said}: {WRITE_ELSEWHERE}")
    return said


def read_archive(
    path: str | Path,
    kind: str,
    remedy: str,
    find_classes: Callable[[Path], Sequence[tuple[type, str]]] = lambda path: (),
) -> Any:
    """Read a file of ``torch.save`` with torch's restricted unpickler, which runs no code of it.

    Args:
        path: The file.
        kind: What the file should be, for messages.
        remedy: What the user is told to do where it is none.
        find_classes: Returns further classes that may be made, with the names that the file has
            for them.

    Returns:
        Tensors, on the CPU, and plain values.

    Raises:
        ValueError: If the file is missing, damaged (an archive has a checksum of each entry) or
            compressed, names any other class or function, or has tensors with more values than it
            has bytes for.
    """
    try:
        _check_archive(Path(path))
        allowed: list[Any] = [*find_classes(Path(path))]
        with warnings.catch_warnings(), torch.serialization.safe_globals(allowed):
            warnings.simplefilter("ignore")  # about files that are refused anyway
            content = torch.load(path, map_location="cpu", weights_only=True)
        _refuse_inflated(content, Path(path).stat().st_size)
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


def _check_archive(path: Path) -> None:
    """Raise where an archive unpacks to more than it is, or a checksum differs.

    Torch itself stores without packing, and reads without looking at checksums.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise _RefusedError("has compressed entries, which torch does not write: save it anew")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise _RefusedError("has entries that are larger than the file: it is damaged")
        if any(entry.external_attr & _MS_DOS_FOLDER for entry in entries):
            raise _RefusedError("is damaged: it marks values as a folder, which torch reads as 0")
        has_checksums = any(entry.CRC for entry in entries)  # torch can be told to leave them out
        if has_checksums and (damaged := archive.testzip()) is not None:
            raise _RefusedError(f"is damaged: {shown(damaged)} in it has another checksum")
        for entry in entries:
            if entry.filename.endswith("data.pkl"):
                _check_class_names(archive.read(entry))


def _check_class_names(pickled: bytes) -> None:
    """Raise where the name of a class is so long that torch takes seconds to refuse it."""
    try:
        names = [str(name) for opcode, name, _ in genops(pickled) if opcode.name == "GLOBAL"]
    except Exception:  # genops raises whatever a damaged byte leads to
        raise _RefusedError("is damaged: what it holds is no pickle") from None
    longest = max(map(len, names), default=0)
    if longest > _LONGEST_NAME:
        raise _RefusedError(f"is damaged: it names a class with {longest:,} letters")


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
        elif id(value) not in seen:
            seen.add(id(value))
            if isinstance(value, dict):
                waiting.extend(value.values())
            elif isinstance(value, list | tuple):
                waiting.extend(value)
            elif hasattr(value, "__dict__"):
                waiting.extend(vars(value).values())


_SAID: set[str] = set()


def warn_once(kind: str, text: str) -> None:
    """Print a warning on stderr, in one line, unless this process has printed one of its kind.

    Args:
        kind: What may be said once.
        text: What is the case, without "warning".
    """
    if kind not in _SAID:
        _SAID.add(kind)
        tqdm.write(f"warning: {' '.join(text.splitlines())}", file=sys.stderr)


def take_lock(file: IO[bytes], problem: str, patience_seconds: float = 0.0) -> None:
    """Lock an open file until it is closed here and in the processes that inherit it.

    The system holds the lock, so the end of those processes frees it, however they end. Where a
    system or a file system has no locks nothing is locked, with a line on stderr.

    Args:
        file: Open for writing; its content does not matter.
        problem: What is the case where another process holds the lock.
        patience_seconds: How long to try.

    Raises:
        ValueError: If another process holds it all the while.
    """
    try:
        import fcntl  # which Windows lacks
    except ModuleNotFoundError:
        return warn_once("lock", "this system has no locks: let one process write to a folder")

    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise ValueError(f"{problem}: wait until it ends, or stop it") from None
        except OSError as error:
            reason = error.strerror or str(error)
            return warn_once(
                "lock", f"{file.name} can't be locked ({reason}): let one process write"
            )
        time.sleep(LOCK_POLL_SECONDS)


def pack_bits(mask: Tensor) -> dict[str, Any]:
    """Return a bool tensor of any shape as eight values to a byte, for :func:`torch.save`.

    Returns:
        "bits", a uint8 tensor on the CPU, first value in the highest bit, and "shape".
    """
    bits = np.packbits(mask.detach().cpu().reshape(-1).numpy())
    return {"bits": torch.from_numpy(bits), "shape": list(mask.shape)}


def unpack_bits(packed: object, name: str) -> Tensor:
    """Return the bool tensor on the CPU that :func:`pack_bits` was given.

    Args:
        packed: What it returned, out of a file that may be damaged.
        name: What a message calls the mask.

    Raises:
        ValueError: If it is something else, or has more or fewer bits than the shape has values.
    """
    bits, shape = (
        packed.get(key) if isinstance(packed, dict) else None for key in ("bits", "shape")
    )
    if not isinstance(bits, Tensor) or not has_type(shape, _SHAPE):
        raise ValueError(f"mask {shown(name)} is not bits and a shape")
    assert isinstance(shape, list)
    count = math.prod(shape)
    if bits.dtype != torch.uint8 or bits.numel() != -(-count // 8):
        raise ValueError(f"mask {name!r} has {bits.numel()} bytes for {count} bits")
    values = np.unpackbits(bits.numpy(), count=count).view(np.bool_)
    return torch.from_numpy(values).reshape(shape)
