"""Run a study: every combination of methods, sparsities, seeds and other options of train.py.

    python -m pruning.sweep --config study.toml             # several runs at once on this machine
    python -m pruning.sweep --config study.toml --ray       # on a Ray cluster
    python -m pruning.sweep --config study.toml --dry-run   # only show the commands

Each run is a train.py of its own in a folder of its own under ``out``, with its output in a .log
beside it. The same command goes on with a sweep that was interrupted, and tries failed runs again.
"""

import argparse
import fcntl
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from pruning.sweep.executors import POLL_SECONDS, Executor, LocalExecutor, RayExecutor
from pruning.sweep.plan import (
    PlannedRun,
    SweepConfig,
    chosen_runs,
    count_runs,
    first_runs,
    load_config,
    train_command,
    train_flags,
)

LOCK_SECONDS = 3.0


@dataclass
class Sweep:
    """A sweep under way.

    Attributes:
        config: What is run.
        executor: What it is run by.
        interrupted: Signals received.
        failed: Names of the runs that failed, or that one which failed was needed for.
    """

    config: SweepConfig
    executor: Executor
    interrupted: list[int]
    failed: set[str] = field(default_factory=set)

    def run_all(self) -> list[PlannedRun]:
        """Run everything, as far as it gets; return what was planned."""
        first = first_runs(self.config)
        self.run(first)
        if self.interrupted:
            return first
        rates = {run.name: self.rates(run)[1] for run in first if self.is_finished(run.name)}
        others = chosen_runs(self.config, first, rates)
        asked = [run for run in (*first, *others) if not run.support]
        if missing := count_runs(self.config) - len(asked):
            _say(f"runs left out at other seeds: {missing}, for runs that tune them did not finish")
        self.run(others)
        return [*first, *others]

    def run(self, plan: Sequence[PlannedRun]) -> None:
        """Run ``plan``, each run after the one that it takes stages over from."""
        waiting = {}
        for run in plan:
            if self.is_finished(run.name):
                _say(f"{run.name}: finished before, skipped")
            else:
                waiting[run.name] = run
        stopped = False
        while waiting or self.executor.running():
            if self.interrupted and not stopped:
                waiting.clear()
                self.executor.stop()
                stopped = True
            for run in list(waiting.values()):
                if run.source in self.failed:
                    _say(f"{run.name}: skipped, for {run.source} did not finish")
                    self.failed.add(run.name)
                    del waiting[run.name]
                elif self.executor.is_free() and (not run.source or self.is_finished(run.source)):
                    _say(f"{run.name}: submitted")
                    command = train_command(self.config, run)
                    self.executor.submit(run.name, command, self.log(run.name))
                    del waiting[run.name]
            if self.executor.running():
                for name, status in self.executor.wait():
                    self.settle(name, status)

    def settle(self, name: str, status: int) -> None:
        """Say how a run ended."""
        if self.is_finished(name):
            _say(f"{name}: finished")
        elif self.interrupted:
            _say(f"{name}: interrupted")
        else:
            self.failed.add(name)
            what = f"failed with exit status {status}" if status != 130 else "was interrupted"
            _say(f"{name}: {what}: {_last_line(self.log(name))}")

    def log(self, name: str) -> Path:
        """Return the file that a run's output goes to."""
        return self.config.out / f"{name}.log"

    def is_finished(self, name: str) -> bool:
        """Say whether a run has left its results."""
        return (self.config.out / name / "results.json").is_file()

    def rates(self, run: PlannedRun) -> tuple[str, float, float]:
        """Return the name of a finished run's error, PER or WER, and its value on dev and test."""
        path = self.config.out / run.name / "results.json"
        try:
            results = json.loads(path.read_text(encoding="utf-8"))
            name = "per" if "per" in results else "wer"
            return name.upper(), results["dev"][name]["rate"], results[name]["rate"]
        except (OSError, ValueError, KeyError, TypeError):
            raise ValueError(
                f"{path} is damaged: delete the folder, and the run is repeated"
            ) from None


@contextmanager
def hold(out: Path, train: Mapping[str, Any]) -> Iterator[None]:
    """Keep other sweeps out of ``out``, and make sure that it is of the same [train] options.

    Names of run folders tell the values in [grid] and [tune] only.

    Raises:
        ValueError: If another sweep, or a run that a killed one left, is writing there, or ``out``
            holds runs with other options.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / ".sweep.lock").open("ab")
    except OSError as error:
        raise ValueError(
            f"cannot write in {out} ({error.strerror or error}): give another out"
        ) from None
    with lock:
        _take_lock(lock, f"another sweep is running in {out}")
        for path in sorted(out.glob("*.log")):
            with path.open("ab") as log:
                _take_lock(log, f"{path.with_suffix('')} is a run that a killed sweep left alive")
        options = out / ".sweep.json"
        if options.is_file() and any(out.glob("*/config.json")):
            before = json.loads(options.read_text(encoding="utf-8"))
            keys = [key for key in {**before, **train} if before.get(key) != train.get(key)]
            if keys:
                shown = ", ".join(f"{key} was {before.get(key)!r}" for key in keys)
                raise ValueError(
                    f"{out} holds runs with other options in [train] ({shown}): repeat those, or "
                    "give another out"
                )
        temporary = out / ".sweep.json.tmp"
        temporary.write_text(json.dumps(train) + "\n", encoding="utf-8")
        os.replace(temporary, options)
        yield


def _take_lock(file: Any, problem: str) -> None:
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise ValueError(f"{problem}: wait until it ends, or stop it") from None
            time.sleep(POLL_SECONDS)


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Collect interrupt and termination signals in the list that is yielded."""
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(n, lambda number, frame: received.append(number)) for n in numbers]
    try:
        yield received
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")


def _say(text: str) -> None:
    print(text, flush=True)


def show_plan(config: SweepConfig) -> None:
    """Print the command of each run; those that wait for the choice on dev have none yet."""
    first = first_runs(config)
    for run in first:
        command = [*train_command(config, run), f"--device={config.devices[0]}"]
        state = " (finished)" if (config.out / run.name / "results.json").is_file() else ""
        _say(f"{run.name}{state}: {shlex.join(command)}")
    if waiting := count_runs(config) - sum(not run.support for run in first):
        _say(f"and at the other seeds, with the values that are best on dev: {waiting}")


def report(sweep: Sweep, plan: Sequence[PlannedRun], again: str) -> int:
    """Print what has come of the sweep, write results.csv if all of it; return the exit status."""
    finished = [run for run in plan if sweep.is_finished(run.name)]
    asked = [run for run in finished if not run.support]
    if sweep.interrupted and len(asked) < count_runs(sweep.config):
        _say(f"interrupted, {len(finished)} finished; go on with: {again}")
        return 130
    for run in finished:
        name, dev, test = sweep.rates(run)
        note = " (only for others to take over from)" if run.support else ""
        _say(f"{run.name}: dev {name} {dev:.4f}, test {name} {test:.4f}{note}")
    if sweep.failed:
        _say(f"failed or skipped: {len(sweep.failed)}; try again with: {again}")
        return 1
    from pruning.report.records import load_records, write_csv

    folders = [sweep.config.out / run.name for run in asked]
    write_csv(load_records(folders), sweep.config.out / "results.csv")
    _say(f"wrote {sweep.config.out / 'results.csv'}")
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Print the message without the usage and exit."""
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = _Parser(prog="python -m pruning.sweep", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--config", metavar="FILE.toml", required=True, help="what to run")
    parser.add_argument("--ray", action="store_true", help="run on the Ray cluster $RAY_ADDRESS")
    parser.add_argument("--dry-run", action="store_true", help="only print the commands")
    arguments = parser.parse_args(argv)
    try:
        config = load_config(arguments.config, train_flags())
        if arguments.dry_run:
            show_plan(config)
            return 0
        threads = {"OMP_NUM_THREADS": str(config.threads)} if config.threads else {}
        with hold(config.out, config.train):
            kind = RayExecutor if arguments.ray else LocalExecutor
            executor: Executor = kind(config, threads)
            with _interrupts() as interrupted:
                sweep = Sweep(config, executor, interrupted)
                again = f"{parser.prog} --config {arguments.config}"
                return report(sweep, sweep.run_all(), again + " --ray" * arguments.ray)
    except ValueError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before the runs, when signals are not yet collected
        return 130


if __name__ == "__main__":
    sys.exit(main())
