"""Run a study: every combination of methods, sparsities, seeds and other options of train.py.

    python -m pruning.sweep --config study.toml             # several runs at once on this machine
    python -m pruning.sweep --config study.toml --ray       # on a Ray cluster
    python -m pruning.sweep --config study.toml --dry-run   # only show the commands

Each run is a train.py of its own in a folder of its own under ``out``, with its output in a .log
beside it. The same command goes on with a sweep that was interrupted, and tries failed runs again.
"""

import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.files import Schema, check_fields, read_json, remove_left_overs, take_lock, write_json
from data.metrics import METRICS, deciding_metric
from data.options import OptionParser, command, interrupts, run_program
from pruning.report.records import Record, load_records, write_csv
from pruning.run.progress import describe_seconds
from pruning.sweep.config import SweepConfig, load_config
from pruning.sweep.executors import Executor, LocalExecutor, RayExecutor
from pruning.sweep.plan import (
    PlannedRun,
    chosen_runs,
    count_runs,
    first_runs,
    has_files,
    train_command,
    unused_options,
)

LOCK_SECONDS = 3.0


@dataclass
class Sweep:
    """A sweep under way.

    Attributes:
        config: What is run.
        executor: What it is run by.
        interrupted: Signals received.
        failed: Names of the runs that failed, or that needed one that failed.
        planned: Every run planned so far, by name.
        done: Names of the runs that are finished, before or now.
        started: When it began, on the monotonic clock.
        ended: How many runs have finished since then.
    """

    config: SweepConfig
    executor: Executor
    interrupted: list[int]
    failed: set[str] = field(default_factory=set)
    planned: dict[str, PlannedRun] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    started: float = field(default_factory=time.monotonic)
    ended: int = 0

    def run_all(self, first: Sequence[PlannedRun]) -> list[PlannedRun]:
        """Run everything, as far as it gets; return what was planned.

        Args:
            first: What :func:`first_runs` returned.
        """
        self.run(first)
        if self.interrupted:
            return [*first]
        rates = {run.name: self.rates(run)[1] for run in first if self.is_finished(run.name)}
        others = chosen_runs(self.config, first, rates)
        asked = [run for run in (*first, *others) if not run.support]
        if missing := count_runs(self.config) - len(asked):
            _say(f"runs left out at other seeds: {missing}, for runs that tune them did not finish")
        self.run(others)
        return [*first, *others]

    def run(self, plan: Sequence[PlannedRun]) -> None:
        """Run what is not finished of ``plan``, each run after those that it needs."""
        waiting = self.outstanding(plan)
        stopped = False
        while waiting or self.executor.running():
            if self.interrupted and not stopped:
                waiting.clear()
                self.executor.stop()
                stopped = True

            for run in list(waiting.values()):
                lost = [name for name in run.needs if name in self.failed]
                if lost:
                    _say(f"{run.name}: skipped, for {lost[0]} did not finish")
                    self.failed.add(run.name)
                    del waiting[run.name]
                elif self.executor.is_free() and all(map(self.is_ready, run.needs)):
                    _say(f"{run.name}: submitted")
                    command = train_command(self.config, run)
                    self.executor.submit(run.name, command, self.log(run.name))
                    del waiting[run.name]

            if self.executor.running():
                for name, status in self.executor.wait():
                    self.settle(name, status)

    def outstanding(self, plan: Sequence[PlannedRun]) -> dict[str, PlannedRun]:
        """Return what has to be run of ``plan``, in order, and say what has not.

        Before each run that is not finished stand those whose files it needs, where these are not
        at hand: finished or not, they are run.
        """
        self.planned |= {run.name: run for run in plan}
        waiting: dict[str, PlannedRun] = {}
        for run in plan:
            if self.is_finished(run.name):
                self.done.add(run.name)
                _say(f"{run.name}: finished before, skipped")
            elif not run.support:
                self._add_with_needs(run, waiting)
        return waiting

    def _add_with_needs(self, run: PlannedRun, waiting: dict[str, PlannedRun]) -> None:
        for name in run.needs:
            if not self.is_ready(name) and name not in waiting and name not in self.failed:
                if self.is_finished(name):
                    _say(f"{name}: run again, for {run.name} needs its files")
                self._add_with_needs(self.planned[name], waiting)
        waiting.setdefault(run.name, run)

    def settle(self, name: str, status: int) -> None:
        """Say how a run ended."""
        if self.is_ready(name):
            self.done.add(name)
            self.ended += 1
            metric, dev, test = self.rates(self.planned[name])
            scores = f"dev {metric} {dev:.4f}, test {metric} {test:.4f}"
            _say(f"{name}: finished, {scores}; {self.progress()}")
        elif self.interrupted:
            _say(f"{name}: interrupted")
        else:
            self.failed.add(name)
            what = f"failed with exit status {status}" if status != 130 else "was interrupted"
            _say(f"{name}: {what}: {_last_line(self.log(name))}")

    def progress(self) -> str:
        """Say how far the sweep is, and how long the rest takes at the pace so far."""
        asked = [run for run in self.planned.values() if not run.support]
        done, total = sum(run.name in self.done for run in asked), count_runs(self.config)
        seconds = (time.monotonic() - self.started) / max(1, self.ended) * (total - done)
        left = f", about {describe_seconds(seconds)} left" if done < total else ""
        return f"{done} of {total}{left}"

    def log(self, name: str) -> Path:
        """Return the file that a run's output goes to."""
        return self.config.out / f"{name}.log"

    def is_ready(self, name: str) -> bool:
        """Return whether a run is finished and its files are at hand."""
        return has_files(self.config, name)

    def is_finished(self, name: str) -> bool:
        """Return whether a run has left its results, in its folder or in a report."""
        return name in self.config.records or self.is_ready(name)

    def rates(self, run: PlannedRun) -> tuple[str, float, float]:
        """Return the name of a finished run's error rate, and its value on dev and test."""
        record = self.config.records.get(run.name)
        path = self.config.out / run.name / "results.json"
        remedy = "delete the folder, and the run is repeated"
        results = record["results"] if record else read_json(path, remedy)
        name = deciding_metric(results) or next(iter(METRICS))
        rate: Schema = {name: {"rate": "number"}}
        check_fields(results, {"dev": rate, **rate}, path, remedy)
        return name.upper(), results["dev"][name]["rate"], results[name]["rate"]

    def records(self, plan: Sequence[PlannedRun]) -> list[Record]:
        """Return the records of finished runs; one of a report wins over a run made again."""
        known = self.config.records
        folders = [self.config.out / run.name for run in plan if run.name not in known]
        return [known[run.name] for run in plan if run.name in known] + load_records(folders)


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
        take_lock(lock, f"another sweep is running in {out}", LOCK_SECONDS)
        for path in sorted(out.glob("*.log")):
            with path.open("ab") as log:
                run = path.with_suffix("")
                take_lock(log, f"{run} is a run that a killed sweep left alive", LOCK_SECONDS)
        remove_left_overs(out)
        options = out / ".sweep.json"
        if options.is_file() and any(out.glob("*/config.json")):
            remedy = "delete it, if [train] is what the runs there were begun with"
            before = read_json(options, remedy)
            keys = [key for key in {**before, **train} if before.get(key) != train.get(key)]
            if keys:
                shown = ", ".join(f"{key} was {before.get(key)!r}" for key in keys)
                raise ValueError(
                    f"{out} holds runs with other options in [train] ({shown}): repeat those, or "
                    "give another out"
                )
        write_json(options, train, indent=None)
        yield


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")


def _say(text: str) -> None:
    print(text, flush=True)


def show_plan(config: SweepConfig, first: Sequence[PlannedRun]) -> None:
    """Print the command of each run; those that wait for the choice on dev have none yet."""
    for run in first:
        command = [*train_command(config, run), f"--device={config.devices[0]}"]
        is_finished = run.name in config.records or has_files(config, run.name)
        note = " (finished)" if is_finished else " (only if others need it)" if run.support else ""
        _say(f"{run.name}{note}: {shlex.join(command)}")
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
    write_csv(sweep.records(asked), sweep.config.out / "results.csv")
    _say(f"wrote {sweep.config.out / 'results.csv'}")
    return 0


def run_command(argv: Sequence[str] | None) -> int:
    """Do what the command line says; return the exit status."""
    description = (__doc__ or "").split("\n")[0]
    parser = OptionParser(prog=command("sweep"), description=description, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE.toml", required=True, help="what to run")
    parser.add_argument("--ray", action="store_true", help="run on the Ray cluster $RAY_ADDRESS")
    parser.add_argument("--dry-run", action="store_true", help="only print the commands")
    arguments = parser.parse_args(argv)

    config = load_config(arguments.config)
    first = first_runs(config)
    for line in unused_options(config):
        sys.stderr.write(f"{line}\n")
    if arguments.dry_run:
        show_plan(config, first)
        return 0

    threads = {"OMP_NUM_THREADS": str(config.threads)} if config.threads else {}
    again = f"{parser.prog} --config {arguments.config}" + " --ray" * arguments.ray
    with hold(config.out, config.train):
        kind = RayExecutor if arguments.ray else LocalExecutor
        executor: Executor = kind(config, threads)
        with interrupts() as interrupted:
            sweep = Sweep(config, executor, interrupted)
            return report(sweep, sweep.run_all(first), again)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    return run_program(command("sweep"), lambda: run_command(argv))


if __name__ == "__main__":
    sys.exit(main())
