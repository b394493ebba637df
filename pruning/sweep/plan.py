"""What a sweep runs: the config file, checked, and the runs that it stands for."""

import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.files import read_toml
from pruning.schedules import SCHEDULES

Options = dict[str, Any]

TRAIN_SCRIPT = Path(__file__).parents[2] / "train.py"
TOP_LEVEL = ("out", "devices", "threads", "train", "grid", "tune")
SET_BY_SWEEP = ("out", "device", "resume", "reuse", "config", "help")
COMPARED = ("method", "sparsity", "seed")
KINDS = {"INT": (int,), "FLOAT": (int, float), "STR": (str,)}
NAMED_FIRST = ("target", "method", "sparsity")


@dataclass(frozen=True)
class SweepConfig:
    """A sweep as its config file describes it, with options of train.py by snake_case name.

    Attributes:
        out: Folder of the run folders.
        devices: One run at a time on each entry.
        threads: Threads of a run; None leaves it to the libraries.
        train: Options that every run has.
        grid: Values by option; every combination is a run.
        tune: Values by option; tried at the first seed, the best on dev is that of the others.
    """

    out: Path
    devices: tuple[str, ...] = ("auto",)
    threads: int | None = None
    train: Options = field(default_factory=dict)
    grid: dict[str, list[Any]] = field(default_factory=dict)
    tune: dict[str, list[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep.

    Attributes:
        name: Name of its folder.
        options: Its options of train.py.
        source: Name of the run whose finished stages it takes over, which has to be finished first.
        support: Whether it is there only because others take over a stage of it.
    """

    name: str
    options: Options
    source: str | None = None
    support: bool = False


def load_config(path: str | Path, flags: Mapping[str, str]) -> SweepConfig:
    """Read and check a config file.

    Args:
        path: The TOML file.
        flags: What train.py takes: kind of value (``INT``, ``FLOAT``, ``STR``, ``BOOL``, or the
            choices joined by ``|``) by option.

    Raises:
        ValueError: If it cannot be read, or anything in it is not as it should be.
    """
    content = read_toml(path, "give the TOML file of a sweep")
    try:
        return _check(content, flags)
    except ValueError as error:
        raise ValueError(f"config {path}: {error}") from None


def _check(content: Mapping[str, Any], flags: Mapping[str, str]) -> SweepConfig:
    if unknown := [key for key in content if key not in TOP_LEVEL]:
        raise ValueError(
            f"unknown key {unknown[0]!r}: give {', '.join(TOP_LEVEL)}; options of train.py belong "
            "in [train] or [grid]"
        )
    out, threads = content.get("out"), content.get("threads")
    if not isinstance(out, str) or not out:
        raise ValueError(f"out is {out!r}: give the folder for the run folders, in quotes")
    if threads is not None and (type(threads) is not int or threads < 1):
        raise ValueError(f"threads is {threads!r}: give a positive number")
    tables = {name: _check_table(name, content, flags) for name in ("train", "grid", "tune")}
    for first, second in itertools.combinations(tables, 2):
        if both := [key for key in tables[first] if key in tables[second]]:
            raise ValueError(f"{both[0]} is in [{first}] and in [{second}]: leave one")
    for key in COMPARED:
        if key in tables["tune"]:
            raise ValueError(f"{key} is in [tune], for what is chosen on dev: move it to [grid]")
    given = {key: _values(table[key]) for table in tables.values() for key in table}
    if "model" not in given:
        raise ValueError('no model is given: add model = "..." to [train]')
    for method in given.get("method", []):
        if method not in SCHEDULES:
            raise ValueError(f"method {method!r} is unknown: choose from {', '.join(SCHEDULES)}")
    for sparsity in given.get("sparsity", []):
        if isinstance(sparsity, str) or not 0.0 <= sparsity < 1.0:
            raise ValueError(
                f"sparsity {sparsity} is out of range: give a fraction in [0, 1), "
                "0.6 for 60 percent"
            )
    devices = _check_devices(content.get("devices", ["auto"]))
    return SweepConfig(Path(out), devices, threads, **tables)


def _check_devices(devices: Any) -> tuple[str, ...]:
    if not isinstance(devices, list) or not devices:
        raise ValueError(f'devices is {devices!r}: give a list such as ["cuda:0", "cuda:1"]')
    for device in devices:
        if not isinstance(device, str) or not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
            raise ValueError(f"device {device!r} is unknown: give auto, cpu, cuda or cuda:N")
    return tuple(devices)


def _check_table(table: str, content: Mapping[str, Any], flags: Mapping[str, str]) -> Any:
    """Return [train], with a value for each option, or [grid] or [tune], with a list for each."""
    given = content.get(table, {})
    if not isinstance(given, dict):
        raise ValueError(f"{table} is {given!r}: give a table [{table}] of options of train.py")
    checked: dict[str, Any] = {}
    for spelled, value in given.items():
        name = spelled.replace("-", "_")
        if name in SET_BY_SWEEP:
            raise ValueError(f"{name} in [{table}] is for the sweep to set: leave it out")
        if name not in flags:
            raise ValueError(
                f"{spelled!r} in [{table}] is no option of train.py: see python train.py --help"
            )
        if name in checked:
            raise ValueError(f"{name} is in [{table}] in two spellings: leave one")
        if table == "train" and isinstance(value, list):
            raise ValueError(f"{name} in [train] is a list: give one value, or move it to [grid]")
        if table != "train" and (not isinstance(value, list) or not value):
            raise ValueError(f"{name} in [{table}] is {value!r}: give a list of one value or more")
        for one in _values(value):
            _check_value(f"{name} in [{table}]", one, flags[name])
        if any(value.count(one) > 1 for one in _values(value) if table != "train"):
            raise ValueError(f"{name} in [{table}] lists a value twice: {value}; leave one")
        checked[name] = value
    return checked


def _check_value(where: str, value: Any, kind: str) -> None:
    if kind == "BOOL":
        fits = type(value) is bool
    elif kind in KINDS:
        fits = type(value) in KINDS[kind]
    else:
        fits = type(value) in (str, int) and str(value) in kind.split("|")
    if not fits and (value != "none" or kind == "BOOL"):
        wanted = {"BOOL": "true or false", "INT": "a whole number", "FLOAT": "a number"}
        wanted["STR"] = "text in quotes"
        raise ValueError(f"{where} is {value!r}: give {wanted.get(kind, kind)}")


def _values(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def first_runs(config: SweepConfig) -> list[PlannedRun]:
    """Return the runs that need no result of others: all, or where there is [tune] its trials."""
    trials = list(_product(config.tune))
    combinations = [options for options in _combinations(config) if _is_first_seed(config, options)]
    return _link(config, [options | trial for options in combinations for trial in trials], [])


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
    """
    trials = list(_product(config.tune))
    chosen = []
    for options in _combinations(config):
        if _is_first_seed(config, options):
            continue
        at_first = options | {"seed": config.grid["seed"][0]}
        rates = [dev_rates.get(_run_name(config, at_first | trial)) for trial in trials]
        known = [rate for rate in rates if rate is not None]
        if len(known) == len(trials):
            ranked = zip(known, trials, strict=True)
            chosen.append(options | min(ranked, key=lambda pair: (pair[0], *pair[1].values()))[1])
    return _link(config, chosen, first)


def count_runs(config: SweepConfig) -> int:
    """Return how many runs the config file asks for, without those that only support others."""
    num_trials = len(list(_product(config.tune)))
    return sum(
        num_trials if _is_first_seed(config, options) else 1 for options in _combinations(config)
    )


def _is_first_seed(config: SweepConfig, options: Options) -> bool:
    """Say whether a run is tuned itself; without [tune] every run is."""
    if not config.tune or "seed" not in config.grid:
        return True
    return options["seed"] == config.grid["seed"][0]


def _product(lists: Mapping[str, Sequence[Any]]) -> Iterable[Options]:
    return (dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values()))


def _combinations(config: SweepConfig) -> list[Options]:
    """Return the options of each combination of the grid, those of dense without a sparsity."""
    combinations: list[Options] = []
    for values in _product(config.grid):
        options = config.train | values
        options = _as_dense(options) if options.get("method") == "dense" else options
        if options not in combinations:
            combinations.append(options)
    return combinations


def _as_dense(options: Options) -> Options:
    """Return the options of the dense run that goes with a run; it can't be its own teacher."""
    dense = {key: options[key] for key in options if key != "sparsity"} | {"method": "dense"}
    return dense | {"teacher": "none"} if dense.get("teacher") == "self" else dense


def _link(
    config: SweepConfig, runs: Sequence[Options], earlier: Sequence[PlannedRun]
) -> list[PlannedRun]:
    """Name the runs, add the dense ones that omp needs, and say which takes over from which."""
    named = {_run_name(config, options): options for options in runs}
    if len(named) < len(runs):
        raise ValueError("two runs would share a folder: their values differ in signs only")
    known = {run.name: run.options for run in earlier}
    asked = set(named)
    for options in runs:
        if options.get("method") == "omp":
            dense = _as_dense(options)
            if (name := _run_name(config, dense)) not in known:
                named.setdefault(name, dense)
    known |= named
    linked = []
    for name, options in named.items():
        source = _source(config, options, known)
        linked.append(PlannedRun(name, options, source, support=name not in asked))
    return linked


def _source(config: SweepConfig, options: Options, known: Mapping[str, Options]) -> str | None:
    """Return the run whose stages are the first ones of this run, if there is one."""
    method = options.get("method")
    if method == "omp":
        return _run_name(config, _as_dense(options))
    if method != "imp" or "sparsity" not in options:
        return None
    rounds = {
        name: other["sparsity"]
        for name, other in known.items()
        if "sparsity" in other and other | {"sparsity": options["sparsity"]} == options
    }
    longest = max(rounds, key=lambda name: rounds[name])
    return longest if rounds[longest] > options["sparsity"] else None


def _run_name(config: SweepConfig, options: Options) -> str:
    """Return a folder name of the values in [grid] and [tune], such as phone-omp-0.5-seed0."""
    varied = [key for key in (*config.grid, *config.tune) if key in options]
    first = [key for key in NAMED_FIRST if key in varied or (key == "method" and key in options)]
    others = [key for key in varied if key not in (*NAMED_FIRST, "seed")]
    last = ["seed"] if "seed" in varied else []
    parts = [str(options[key]) for key in first]
    parts += [f"{key.replace('_', '-')}{options[key]}" for key in (*others, *last)]
    return re.sub(r"[^\w.+=-]+", "_", "-".join(parts)).lstrip(".") or "run"


def train_command(config: SweepConfig, run: PlannedRun) -> list[str]:
    """Return the command of a run, but for its device."""
    command = [sys.executable, str(TRAIN_SCRIPT)]
    for key, value in run.options.items():
        flag = key.replace("_", "-")
        if key == "teacher":  # of every seed its own
            value = value.replace("{seed}", str(run.options.get("seed", 0)))
        if isinstance(value, bool):
            command.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            command.append(f"--{flag}={value}")
    if run.source:
        command.append(f"--reuse={config.out / run.source}")
    return [*command, f"--out={config.out / run.name}", "--resume=auto"]


def train_flags() -> dict[str, str]:
    """Return the options of train.py and what each takes, as its --help lists them.

    Raises:
        ValueError: If train.py does not run.
    """
    shown = subprocess.run(
        [sys.executable, str(TRAIN_SCRIPT), "--help"],
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    if shown.returncode:
        line = (shown.stderr.strip().splitlines() or ["no output"])[-1]
        raise ValueError(f"cannot run {TRAIN_SCRIPT} ({line}): install what it needs")
    found = re.findall(r"^  --([a-z][a-z0-9-]*)(, --no-| \S+|$)", shown.stdout, re.MULTILINE)
    return {
        name.replace("-", "_"): "BOOL" if kind.startswith(",") else kind.strip()
        for name, kind in found
    }
