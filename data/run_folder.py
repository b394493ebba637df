"""What a run leaves on disk beside its checkpoints: options, events and results as JSON."""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.files import (
    RESTORE,
    WRITE_ELSEWHERE,
    JsonObject,
    Schema,
    append_json_line,
    check_fields,
    has_type,
    read_json,
    remove_left_overs,
    take_lock,
    write_file,
)
from data.metrics import METRICS

LOCK = ".lock"
SAVED = ("last.pt", "best.pt", "results.json")
BEFORE_BEGINNING = (
    *("config.json", "manifest.tsv", "metrics.jsonl", "inputs"),
    *("initial.pt", "rewind.pt", "teacher.pt", "stage-*.pt"),
)
"""What a run writes before its first event."""

CONFIG: Schema = {"options": "dict of any"}
"""What is read of a config.json to go on with a run, or to take over stages of it."""

_RATE: Schema = {
    "rate": "number",
    "substitutions": "id",
    "deletions": "id",
    "insertions": "id",
    "ci95": "pair of number or null",
}
RESULTS: Schema = {
    "split": "str",
    "sparsity": {"target": "number", "in_scope": "number", "whole_model": "number"},
}
"""What is read of a results.json to say how a run ended, beside one rate at least."""

PACKAGES = ("parp", "torch", "numpy", "sentencepiece", "tqdm")


def locate_run(out: str | None, resume: str | None, name: str = "run") -> tuple[Path, Path | None]:
    """Return the run folder and, where a run is to go on, its last.pt.

    Args:
        out: The folder asked for; without it one under runs/ with the time and ``name``.
        resume: None, ``auto`` (the last.pt in ``out``, if any), or a last.pt or its folder.
        name: What the run is.

    Raises:
        ValueError: If the file to go on from is missing, or in another folder than ``out``, or
            ``auto`` has no folder to look in.
    """
    if resume == "auto" and out is None:
        raise ValueError("--resume auto needs --out, the folder of the run to go on with")
    folder = Path(out or f"runs/{datetime.now():%Y%m%d-%H%M%S}-{name}")
    if resume == "auto":
        return folder, folder / "last.pt" if (folder / "last.pt").is_file() else None
    if resume:
        last = Path(resume)
        last = last / "last.pt" if last.is_dir() else last
        if not last.is_file():
            raise ValueError(f"no file {last} to go on from: give the last.pt of a run")
        if out and Path(out).resolve() != last.parent.resolve():
            raise ValueError(f"{last} goes on in its own folder: leave out --out {out}")
        return last.parent, last
    return folder, None


@contextmanager
def hold_run_folder(out: Path) -> Iterator[None]:
    """Make a run folder where there is none, and keep other processes from writing to it.

    A folder that the block has left empty, and that was not there before, is gone at the end.

    Raises:
        ValueError: If another process holds the folder, or it can't be written to.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: give another --out")
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    lock = out / LOCK
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = lock.open("ab")
    except OSError as error:
        raise ValueError(
            f"cannot write in {out} ({error.strerror or error}): {WRITE_ELSEWHERE}"
        ) from None

    problem = f"another process is training in {out}"
    with file:
        take_lock(file, problem)
        if not lock.exists() or not os.path.samestat(lock.stat(), os.fstat(file.fileno())):
            raise ValueError(f"{problem}: wait until it ends")  # it has just removed this lock
        try:
            yield
        finally:
            with suppress(OSError):  # Windows removes no open file
                lock.unlink()
            for folder in made:
                with suppress(OSError):  # there is something in it now
                    folder.rmdir()


def open_run_folder(
    out: Path,
    options: Mapping[str, Any],
    resuming: bool,
    as_now: Callable[[JsonObject], JsonObject] = dict,
) -> None:
    """Make sure that ``out`` can take a run with ``options``, without changing what is in it.

    Args:
        out: The run folder, new, or empty, or the run's own when ``resuming``.
        options: Every option of the run, JSON-able.
        resuming: Whether the folder may hold this very run, to go on with or to begin anew.
        as_now: Returns a run's options, of an earlier version too, as they would be recorded now.

    Raises:
        ValueError: If ``out`` holds another run, or the options differ from those that it was
            begun with.
    """
    config = out / "config.json"
    if not out.exists() or not any(not path.name.startswith(".") for path in out.iterdir()):
        return
    if not resuming:
        raise ValueError(
            f"{out} is not empty: give another --out, or --resume auto to go on with its run"
        )

    if not config.is_file():
        raise ValueError(f"{out} has no config.json, so it holds no run: give the run's own folder")
    if not any((out / name).exists() for name in SAVED):
        return  # it has saved nothing, so it may begin anew, otherwise too
    before = as_now(read_config(config)["options"])
    differing = [name for name in options if before.get(name) != options[name]]
    if differing:
        shown = ", ".join(f"{name} was {before.get(name)!r}" for name in differing)
        raise ValueError(f"the run in {out} was begun with other options ({shown}): repeat those")


def read_config(path: Path, remedy: str = RESTORE) -> JsonObject:
    """Read the config.json of a run.

    Raises:
        ValueError: If it can't be read or lacks what :data:`CONFIG` names.
    """
    content = read_json(path, remedy)
    check_fields(content, CONFIG, path, remedy)
    return content


def read_results(path: Path, remedy: str = RESTORE) -> JsonObject:
    """Read the results.json of a finished run.

    Raises:
        ValueError: If it can't be read, or lacks what :data:`RESULTS` names or a rate.
    """
    content = read_json(path, remedy)
    rates = {name: _RATE for name in METRICS if name in content}
    check_fields(content, {**RESULTS, **rates}, path, remedy)
    if not rates:
        raise ValueError(f"{path}: {' or '.join(METRICS)} is missing: {remedy}")
    return content


@contextmanager
def leave_nothing_unbegun(out: Path) -> Iterator[None]:
    """Remove what the block has put into a run folder where it fails before the run has begun.

    A run has begun when it has logged an event or saved a checkpoint: then there is something to
    lose, and to go on with. Before, the folder would only stand in the way of the next command.
    """
    try:
        yield
    except BaseException:
        if not _has_begun(out):
            _remove_files_of_run(out)
        raise


def _has_begun(out: Path) -> bool:
    log = out / "metrics.jsonl"
    has_events = log.is_file() and log.stat().st_size > 0
    return has_events or any((out / name).exists() for name in SAVED)


def _remove_files_of_run(out: Path) -> None:
    remove_left_overs(out)
    for pattern in BEFORE_BEGINNING:
        for path in out.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def describe_environment(device: str) -> JsonObject:
    """Return library versions, git revision and device, for config.json."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "versions": versions,
        "git": _git_revision(),
        "device": device,
        "machine": platform.platform(),
    }


def _git_revision() -> str | None:
    """Return the commit of this checkout; None where the program is installed elsewhere."""
    root = Path(__file__).resolve().parents[1]
    command = ["git", "rev-parse", "--show-toplevel", "HEAD"]
    try:
        git = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    except OSError:  # no git here
        return None
    lines = git.stdout.splitlines()
    # An environment may stand inside the checkout of something else.
    return lines[1] if len(lines) == 2 and Path(lines[0]) == root else None


class EventLog:
    """A JSON-lines file of events, each with its kind, its stage and its optimizer step in that.

    Args:
        path: The file; events after the point that the run goes on from, which an interrupted run
            left, are dropped. So is what is no whole event, with a line on stderr.
        at: Stage and step of it that the run goes on from.
        writes: Whether this process is the one that writes.
    """

    def __init__(self, path: Path, at: tuple[int, int] = (0, 0), writes: bool = True) -> None:
        self._path = path if writes else None
        if not writes:
            return
        events, damaged = _read_events(path)
        kept = [line for stage, step, line in events if (stage, step) <= at]
        if damaged:
            last = f"step {events[-1][1]}" if events else "none"
            tqdm.write(
                f"{path}: left out {damaged} damaged lines; the last whole event is of {last}",
                file=sys.stderr,
            )
        write_file(path, b"".join(kept))

    def write(self, event: str, stage: int, step: int, values: Mapping[str, Any]) -> None:
        """Append one event."""
        if self._path is not None:
            line = {"event": event, "stage": stage, "step": step, **values}
            append_json_line(self._path, line)


def _read_events(path: Path) -> tuple[list[tuple[int, int, bytes]], int]:
    """Return stage, step and line of every whole event, and the number of other lines.

    A process that was killed leaves half a line, a machine without power zeros in place of lines.
    """
    try:
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    except OSError as error:
        raise ValueError(f"cannot read {path} ({error.strerror or error}): {RESTORE}") from None
    events = []
    for line in lines:
        try:
            event = json.loads(line) if line.endswith(b"\n") else None
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and has_type(
            [event.get("stage"), event.get("step")], "list of id"
        ):
            events.append((event["stage"], event["step"], line))
    return events, len(lines) - len(events)
