"""Damage files by a seed, and hold what reads them to one line, a second and 200 MB."""

import contextlib
import copy
import io
import json
import random
import resource
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.test_foreign_fields import VALUES, changed, places

SECONDS = 1.0  # of this process' time, for one input
BYTES = 200e6  # more than before
TOGETHER = 20  # inputs whose memory is looked at together

Damage = Callable[[bytes, random.Random], bytes]

TOKENS = [
    *(
        b"",
        b"\n",
        b"\r\n",
        b"\r",
        b"\0",
        b"\t",
        b" ",
        b",",
        b'"',
        b"'",
        b"|",
        b"=",
        b"/",
        b"..",
        b"-",
    ),
    *(
        b"-1",
        b"0",
        b"1e999",
        b"nan",
        b"inf",
        b"99999999999999999999",
        b"2147483648",
        b"0x1F",
        b"1_0",
    ),
    *(
        b"\xff",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\xc3\xa9",
        b"\xe2\x80\xa8",
        b"\xed\xa0\x80",
        b"\xc2\x85",
    ),
    *(
        b"null",
        b"true",
        b"{",
        b"}",
        b"[",
        b"]",
        b"[" * 3000,
        b'{"a":' * 3000,
        b"a" * 5000,
        b"9" * 5000,
    ),
    *(b"\\u0000", b"\\ud800", b"%s", b"../../../../etc/passwd", b"cat /etc/passwd |", b"a." * 3000),
    *(b"\x1a", b"\x0b", b"\x1c", b"\xd9\xa3", b"\xc2\xb2", b" " * 5000, b"\n" * 3000),
]
NUMBERS = [0, 1, 127, 128, 255, 256, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]
TENSORS = [
    *(torch.ones(3), torch.zeros(0), torch.ones(2, 3), torch.tensor(1.0), torch.ones(4, 4).half()),
    *(
        torch.ones(5, dtype=torch.int64),
        torch.ones(3, dtype=torch.bool),
        torch.full((4,), torch.nan),
    ),
    *(torch.ones(1).expand(1000), torch.ones(6, dtype=torch.complex64), torch.ones(2).to_sparse()),
    *(torch.ones(4, dtype=torch.bfloat16), torch.ones(2).to(torch.float8_e4m3fn)),
]


def damage_bytes(content: bytes, numbers: random.Random) -> bytes:
    """Make a few small changes, or cut the rest off."""
    changed = bytearray(content)
    for _ in range(numbers.choice([1, 1, 1, 2, 3, 6])):
        start = numbers.randrange(len(changed) + 1)
        length = numbers.choice([0, 1, 1, 2, 4, 8, 30, 200])
        kind = numbers.randrange(8)
        if kind == 0 and start < len(changed):
            changed[start] ^= 1 << numbers.randrange(8)
        elif kind == 1:
            del changed[start : start + length]
        elif kind == 2:
            changed[start:start] = changed[start : start + length]
        elif kind == 3:
            changed[start:start] = numbers.choice(TOKENS)
        elif kind == 4:
            changed[start : start + length] = numbers.choice(TOKENS)
        elif kind == 5:
            width = numbers.choice([1, 2, 4, 8])
            number = numbers.choice(NUMBERS) % 256**width
            changed[start : start + width] = number.to_bytes(
                width, numbers.choice(["little", "big"])
            )
        elif kind == 6:
            other = numbers.randrange(len(changed) + 1)
            changed[start : start + length] = changed[other : other + length]
        elif numbers.random() < 0.3:
            del changed[start:]
    return bytes(changed)


def damage_words(content: bytes, numbers: random.Random) -> bytes:
    """Put something else in place of words, of any number of them."""
    words = content.split(b" ")
    for _ in range(numbers.choice([1, 1, 2, 5])):
        words[numbers.randrange(len(words))] = numbers.choice([*TOKENS, *words])
    return b" ".join(words)


def damage_json(content: bytes, numbers: random.Random) -> bytes:
    """Put a value of another kind somewhere, or leave a field out."""
    lines = content.decode().splitlines(keepends=True)
    number = 0
    try:
        value = json.loads(content)
    except ValueError:  # an object a line
        number = numbers.randrange(len(lines))
        value = json.loads(lines[number])
        return _joined(lines, number, _changed(value, numbers))
    return json.dumps(_changed(value, numbers)).encode()


def _joined(lines: list[str], number: int, value: Any) -> bytes:
    lines[number] = json.dumps(value) + "\n"
    return "".join(lines).encode()


def _changed(value: Any, numbers: random.Random, others: Any = VALUES) -> Any:
    path = numbers.choice(list(places(value)))
    if path and numbers.random() < 0.15:
        value = copy.copy(value)
        holder = value
        for key in path[:-1]:
            holder[key] = copy.copy(holder[key])
            holder = holder[key]
        del holder[path[-1]]
        return value
    return changed(value, path, numbers.choice(others))


def damage_content(content: bytes, numbers: random.Random) -> bytes:
    """Change what a file of torch.save holds, as damage_json does."""
    value = torch.load(io.BytesIO(content), weights_only=True)
    file = io.BytesIO()
    torch.save(_changed(value, numbers, [*VALUES, *TENSORS]), file)
    return file.getvalue()


def damage_pickle(content: bytes, numbers: random.Random) -> bytes:
    """Change bytes of the pickle in an archive, whose checksums then are right."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w") as new:
        for entry in old.infolist():
            held = old.read(entry)
            if entry.filename.endswith("data.pkl"):
                held = damage_bytes(held, numbers)
            new.writestr(entry.filename, held)
    return file.getvalue()


def either(*kinds: Damage) -> Damage:
    """Choose a kind of damage anew each time."""
    return lambda content, numbers: numbers.choice(kinds)(content, numbers)


@dataclass(frozen=True)
class Reader:
    """Something that reads a file.

    Attributes:
        write: Writes whole files into a folder; returns the one that is damaged.
        read: Reads that; raises ValueError where it can't.
        damage: What is done to it.
        count: Inputs of the long test.
        names: What a message may name in place of the file or its folder.
        is_whole: Whether the file can be read before it is damaged.
        is_mended: Whether the reader goes on without what is damaged, so that it refuses nothing.
    """

    write: Callable[[Path], Path]
    read: Callable[[Path], object]
    damage: Damage
    count: int
    names: tuple[str, ...] = ()
    is_whole: bool = True
    is_mended: bool = False


def probe(name: str, reader: Reader, folder: Path, count: int, seed: int) -> int:
    """Read a file damaged in ``count`` ways; return how often it was refused."""
    path = reader.write(folder)
    whole = path.read_bytes()
    if reader.is_whole:
        reader.read(path)
    numbers = random.Random(f"{name} {seed}")
    with _limited():
        refused = [
            _probe_some(name, reader, path, whole, numbers) for _ in range(count // TOGETHER)
        ]
        refused.append(_probe_some(name, reader, path, whole, numbers, count % TOGETHER))
    path.write_bytes(whole)
    return sum(refused)


def _probe_some(
    name: str,
    reader: Reader,
    path: Path,
    whole: bytes,
    numbers: random.Random,
    count: int = TOGETHER,
) -> int:
    """Read a file damaged in a few ways, and hold all of them together to a growth of memory."""
    resident = _memory("VmRSS")
    _forget_peak()
    refused = 0
    for _ in range(count):
        content = reader.damage(whole, numbers)
        where = f"{name}: {content!r:.300}"
        path.write_bytes(content)
        started = time.process_time()
        message = _message_of(reader.read, path, where)
        seconds = time.process_time() - started
        assert seconds < SECONDS, f"{seconds} s, {where}"
        if message is not None:
            refused += 1
            assert len(message.splitlines()) == 1, f"{message:.500}; {where}"
            folders = (str(path.parent), path.name, *reader.names)
            assert any(each in message for each in folders), f"{message:.500}; {where}"
    grown = _memory("VmHWM") - resident
    assert grown < BYTES, f"{name} took {grown / 1e6:.0f} MB"
    return refused


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Let what asks for gigabytes fail, and not take the machine with it."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    if size := _memory("VmSize"):
        resource.setrlimit(resource.RLIMIT_AS, (int(size + 10 * BYTES), limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def _message_of(read: Callable[[Path], object], path: Path, where: str) -> str | None:
    """Return why a file was refused; None where it was read."""
    try:
        with _silenced():
            read(path)
    except ValueError as error:
        return str(error)
    except BaseException as error:
        raise AssertionError(f"{where}: {error!r:.300}") from error
    return None


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    nowhere = io.StringIO()
    with contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
        yield


def _memory(field: str) -> float:
    """Return a line of Linux' account of this process in bytes; 0 elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith(field)), 0.0)


def _forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
