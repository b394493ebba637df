"""The runs that a sweep's config stands for, their names, their order and their commands."""

import graphlib
import itertools
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import train
from data.options import check_value
from models.training.distill import SELF
from pruning.interface import Schedule
from pruning.report.records import Record
from pruning.run.options import (
    CHANGES_NOTHING,
    TrainOptions,
    as_recorded_now,
    default_options,
    method_of,
    recorded_options,
    used_options,
)
from pruning.schedules import SCHEDULES, build_schedule, prunes
from pruning.sweep.config import Grid, Options, SweepConfig

TRAIN_SCRIPT = Path(train.__file__).resolve()
NAMED_FIRST = ("target", "method", "sparsity")
PATHS = ("init", "init_mask", "teacher")  # options that may name files of another run
DEFAULTS = default_options()


@dataclass(frozen=True)
class Point:
    """A combination of a grid, before what is tuned is chosen.

    Attributes:
        grid: The grid; its options are told in the names of the runs.
        options: Options of train.py, also such as change nothing in this run.
    """

    grid: Grid
    options: Options

    def at_first_seed(self) -> Options:
        """Return the options at the first seed of the grid, at which tuning is done."""
        return (
            self.options | {"seed": self.grid["seed"][0]} if "seed" in self.grid else self.options
        )


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep.

    Attributes:
        name: Name of its folder.
        options: Its options of train.py.
        varied: Those that its name tells.
        source: Name of the run whose finished stages it takes over.
        read: Names of the runs whose files its options name.
        support: Whether it is there only because others take over a stage of it.
    """

    name: str
    options: Options
    varied: tuple[str, ...] = ()
    source: str | None = None
    read: tuple[str, ...] = ()
    support: bool = False

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the runs whose files have to be there first."""
        return ((self.source,) if self.source else ()) + self.read


Known = Mapping[frozenset[tuple[str, Any]], PlannedRun]
"""Planned runs by their options, see :func:`_key`."""


def first_runs(config: SweepConfig) -> list[PlannedRun]:
    """Return the runs that need no result of others: all, or where there is [tune] its trials.

    Raises:
        ValueError: If two would have one name, train.py would refuse the options of one, one has
            other options than its record among the finished, or runs wait for one another.
    """
    runs = [
        _named((*point.grid, *config.tune), trial)
        for point in _points(config)
        if _is_tuned(config, point)
        for trial in _trials(config, point.options)
    ]
    return _link(config, runs, earlier=[])


def chosen_runs(
    config: SweepConfig, first: Sequence[PlannedRun], dev_rates: Mapping[str, float]
) -> list[PlannedRun]:
    """Return the runs at the other seeds, each with the tuned values that were best on dev.

    Runs whose trials are not all finished are left out. Among equals the lower value wins, as in
    the report.

    Args:
        config: The sweep.
        first: What :func:`first_runs` returned.
        dev_rates: Error on dev by name of the finished runs.

    Raises:
        ValueError: As :func:`first_runs` does.
    """
    names = {_key(run.options): run.name for run in first}
    chosen = []
    for point in _points(config):
        if _is_tuned(config, point):
            continue
        trials = _trials(config, point.at_first_seed())
        rates = [dev_rates.get(names.get(_key(trial), "")) for trial in trials]
        ranked = [
            (rate, {key: trial[key] for key in config.tune if key in trial})
            for rate, trial in zip(rates, trials, strict=True)
            if rate is not None
        ]
        if len(ranked) == len(trials):
            best = min(ranked, key=lambda pair: (pair[0], *pair[1].values()))[1]
            options = _of_its_own(point.options | best)
            chosen.append(_named((*point.grid, *config.tune), options))
    return _link(config, chosen, first)


def count_runs(config: SweepConfig) -> int:
    """Return how many runs the config file asks for, without those that only support others."""
    return sum(
        len(_trials(config, point.options)) if _is_tuned(config, point) else 1
        for point in _points(config)
    )


def unused_options(config: SweepConfig) -> list[str]:
    """Return a line for each option that changes nothing in any run that it is given to."""
    said = []
    used_by_any = set()
    for grid in config.grids:
        combinations = [config.train | values for values in _product(grid)]
        used = {key for each in combinations for trial in _trials(config, each) for key in trial}
        said += [_unused("grid", key, combinations) for key in grid if key not in used]
        used_by_any |= used
    for table, options in (("train", config.train), ("tune", config.tune)):
        said += [_unused(table, key, combinations) for key in options if key not in used_by_any]
    return said


def _unused(table: str, name: str, combinations: Sequence[Options]) -> str:
    why = TrainOptions.unused_options(combinations[0])[name]
    return f"{name} in [{table}] {why}; left out"


def _points(config: SweepConfig) -> list[Point]:
    """Return each combination of each grid; where several are the same runs, the first."""
    points: dict[frozenset[Any], Point] = {}
    for grid in config.grids:
        for values in _product(grid):
            options = config.train | values
            runs = frozenset(_key(trial) for trial in _trials(config, options))
            points.setdefault(runs, Point(grid, options))
    return list(points.values())


def _trials(config: SweepConfig, options: Options) -> list[Options]:
    """Return options with each combination of the tuned values that changes something."""
    trials = (_of_its_own(options | values) for values in _product(config.tune))
    return list({_key(trial): trial for trial in trials}.values())


def _is_tuned(config: SweepConfig, point: Point) -> bool:
    """Return whether a run is tuned itself; without [tune] every run is."""
    return not config.tune or point.options == point.at_first_seed()


def _product(lists: Mapping[str, Sequence[Any]]) -> Iterable[Options]:
    return (dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values()))


def _key(options: Options) -> frozenset[tuple[str, Any]]:
    """Return what options are looked up by."""
    return frozenset(options.items())


def _of_its_own(options: Options) -> Options:
    """Return a run's options without those, meant for other runs, that change nothing in it."""
    if options.get("teacher") == SELF and not prunes(method_of(options)):
        options = options | {"teacher": "none"}  # it is the one who would teach
    return used_options(options, keep_vital=True)


def _first_run(options: Options) -> Options | None:
    """Return the options of the run that is the first stage of this one, if there is such a run."""
    lender = _schedule(options).first_run
    if lender is None:
        return None
    (name,) = (name for name, cls in SCHEDULES.items() if cls is lender)
    return _of_its_own(options | {"method": name})


def _schedule(options: Options) -> type[Schedule]:
    return SCHEDULES[method_of(options)]


def _named(varied: Sequence[str], options: Options) -> PlannedRun:
    """Name a run by the options that vary, such as phone-parp-0.5-seed0."""
    varied = [key for key in varied if key in options]
    first = [key for key in NAMED_FIRST if key in varied or (key == "method" and key in options)]
    others = [key for key in varied if key not in (*NAMED_FIRST, "seed")]
    last = ["seed"] if "seed" in varied else []
    parts = [str(options[key]) for key in first]
    parts += [f"{key.replace('_', '-')}{options[key]}" for key in (*others, *last)]
    name = re.sub(r"[^\w.+=-]+", "_", "-".join(parts)).lstrip(".") or "run"
    return PlannedRun(name, options, tuple(varied))


def _link(
    config: SweepConfig, runs: Sequence[PlannedRun], earlier: Sequence[PlannedRun]
) -> list[PlannedRun]:
    """Add the runs that are first stages of others, say which needs which, and check them all."""
    known = {_key(run.options): run for run in (*earlier, *runs)}
    linked = list(runs)
    for run in runs:
        first = _first_run(run.options)
        if first is not None and _key(first) not in known:
            known[_key(first)] = replace(_named(run.varied, first), support=True)
            linked.append(known[_key(first)])
    if len({run.name for run in known.values()}) < len(earlier) + len(linked):
        raise ValueError("two runs would share a folder: their values differ in signs only")

    linked = [
        replace(run, source=_source(config, run, known), read=_read(config, run, known))
        for run in linked
    ]
    for run in linked:
        _check(config, run)
    try:
        graphlib.TopologicalSorter({run.name: run.needs for run in linked}).prepare()
    except graphlib.CycleError as error:
        names = ", ".join(sorted(set(error.args[1])))
        raise ValueError(f"{names} would wait for itself: name the files of another run") from None
    return linked


def _source(config: SweepConfig, run: PlannedRun, known: Known) -> str | None:
    """Return the run whose stages are the first ones of this run, if there is one."""
    options = run.options
    first = _first_run(options)
    if first is not None:
        return known[_key(first)].name
    key = _schedule(options).longer_by
    if key is None or key not in options:
        return None
    # The run with the most stages has all those of the others. One that would have to be run again
    # for its files costs more than it saves.
    lenders = {
        other.options[key]: other.name
        for other in known.values()
        if key in other.options
        and other.options | {key: options[key]} == options
        and (other is run or not _is_gone(config, other.name))
    }
    highest = max(lenders)
    return lenders[highest] if highest > options[key] else None


def _read(config: SweepConfig, run: PlannedRun, known: Known) -> tuple[str, ...]:
    """Return the runs of the sweep whose files the options of a run name."""
    names = {other.name for other in known.values()}
    out = config.out.resolve()
    paths = [Path(text).resolve() for key, text in _spelled(run.options).items() if key in PATHS]
    inside = [path.relative_to(out) for path in paths if path.is_relative_to(out)]
    return tuple(path.parts[0] for path in inside if path.parts and path.parts[0] in names)


def _is_gone(config: SweepConfig, name: str) -> bool:
    """Return whether a run is finished according to its record, and its files are not at hand."""
    return name in config.records and not has_files(config, name)


def has_files(config: SweepConfig, name: str) -> bool:
    """Return whether the folder of a finished run is there."""
    return (config.out / name / "results.json").is_file()


def _check(config: SweepConfig, run: PlannedRun) -> None:
    """Refuse what train.py would refuse, and a record of another run of this name."""
    typed = {
        key: check_value(TrainOptions, key, value, key)
        for key, value in _spelled(run.options).items()
    }
    try:
        options = TrainOptions(**typed)
        build_schedule(method_of(vars(options)), options)
    except ValueError as error:
        raise ValueError(f"run {run.name}: {error}") from None
    if record := config.records.get(run.name):
        _check_record(recorded_options(options), record, f"{run.name} in {config.finished}")


def _check_record(options: Options, record: Record, where: str) -> None:
    """Refuse a record of other options; those that it lacks were at their defaults."""
    before = as_recorded_now(record["options"])
    differing = [
        f"{key} was {before.get(key)!r}"
        for key in sorted({*options, *record["options"]} - {*CHANGES_NOTHING})
        if key not in options or before.get(key) != options[key]
    ]
    if differing:
        raise ValueError(
            f"{where} was run with other options ({', '.join(differing)}): repeat those, or give "
            "another report as finished"
        )


def _spelled(options: Options) -> Options:
    """Return options as train.py is given them: with the run's seed in paths to other runs."""
    seed = str(options.get("seed", DEFAULTS["seed"]))
    return {
        key: value.replace("{seed}", seed) if key in PATHS else value
        for key, value in options.items()
    }


def train_command(config: SweepConfig, run: PlannedRun) -> list[str]:
    """Return the command of a run, but for its device."""
    command = [sys.executable, str(TRAIN_SCRIPT)]
    for key, value in _spelled(run.options).items():
        flag = key.replace("_", "-")
        if isinstance(value, bool):
            command.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            command.append(f"--{flag}={value}")
    if run.source:
        command.append(f"--reuse={config.out / run.source}")
    return [*command, f"--out={config.out / run.name}", "--resume=auto"]
