"""What a run leaves on disk beside its checkpoints: options, events and results as JSON."""

import json
import os
import platform
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "torchaudio", "numpy", "sentencepiece", "tqdm")


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` as JSON to a temporary file beside ``path``, then rename it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def open_run_folder(out: Path, options: Mapping[str, Any], resuming: bool) -> None:
    """Make sure that ``out`` can take a run with ``options``, without changing what is in it.

    Args:
        out: The run folder, new, or empty, or the run's own when ``resuming``.
        options: Every option of the run, JSON-able.
        resuming: Whether the run in ``out`` is to go on.

    Raises:
        ValueError: If ``out`` holds another run, or the options differ from those that it was
            begun with.
    """
    config = out / "config.json"
    if not resuming:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ValueError(
                f"{out} is not empty: give another --out, or --resume auto to go on with its run"
            )
        return
    if not config.is_file():
        raise ValueError(f"{out} has no config.json, so it holds no run: give the run's own folder")
    before = json.loads(config.read_text(encoding="utf-8"))["options"]
    differing = [name for name in options if before.get(name) != options[name]]
    if differing:
        shown = ", ".join(f"{name} was {before.get(name)!r}" for name in differing)
        raise ValueError(f"the run in {out} was begun with other options ({shown}): repeat those")


def describe_environment(device: str) -> dict[str, Any]:
    """Return library versions, git revision and device, for config.json."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    git = subprocess.run(
        ["git", "rev-parse", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    revision = git.stdout.strip() or None
    return {"versions": versions, "git": revision, "device": device, "machine": platform.platform()}


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


class EventLog:
    """A JSON-lines file of events, each with its kind and its optimizer step.

    Args:
        path: The file; events after ``step`` that an interrupted run left are dropped.
        step: The step that the run goes on from.
    """

    def __init__(self, path: Path, step: int = 0) -> None:
        self._path = path
        kept = []
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
                if line.endswith("\n") and json.loads(line)["step"] <= step:
                    kept.append(line)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(kept), encoding="utf-8")

    def write(self, event: str, step: int, **values: Any) -> None:
        """Append one event."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "step": step, **values}) + "\n")
