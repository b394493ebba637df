"""The config file of a sweep, read and checked.

    out = "runs/study"                      # folder of the run folders
    devices = ["cuda:0", "cuda:1"]          # one run at a time on each; without it one, "auto"
    threads = 1                             # of a run; without it the libraries decide
    finished = "docs/study/a/runs.json"     # runs of a report, which count as finished

    [train]                                 # options of train.py that every run has
    model = "w2v2"

    [grid]                                  # lists of values; every combination is a run
    method = ["dense", "parp"]
    sparsity = [0.5, 0.7]
    seed = [0, 1, 2]

    [tune]                                  # tried at the first seed; the best on dev is taken
    lr = [1e-4, 2e-4]                       # at the others

A study that is not one full grid has several, each ``[[grid]]``. They share the other tables, and
may give another value to what stands in [train]. Where ``init``, ``init_mask`` or ``teacher`` names
files of another run of the sweep, such as "runs/study/mpi-0.7-seed{seed}/masks.pt", that run comes
first; {seed} stands for the run's own seed.

A run counts as finished by the report that ``finished`` names where it has the same name and the
same options there; its folder may be gone. A run that needs the files of one whose folder is gone
has that one run again first.
"""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from data.files import JsonObject, read_toml
from data.options import check_value
from pruning.report.records import Record, load_records
from pruning.run.options import TrainOptions

Options = JsonObject
Grid = dict[str, list[Any]]

TOP_LEVEL = ("out", "devices", "threads", "finished", "train", "grid", "tune")
SET_BY_SWEEP = ("out", "device", "resume", "reuse")
COMPARED = ("method", "sparsity", "seed")
OPTION_NAMES = [option.name for option in fields(TrainOptions)]


@dataclass(frozen=True)
class SweepConfig:
    """A sweep as its config file describes it, with options of train.py by snake_case name.

    Attributes:
        out: Folder of the run folders.
        devices: One run at a time on each entry.
        threads: Threads of a run; None leaves it to the libraries.
        train: Options that every run has.
        grids: Values by option; every combination of each is a run.
        tune: Values by option; tried at the first seed, the best on dev is that of the others.
        finished: Report whose runs count as finished.
        records: Those runs by name.
    """

    out: Path
    devices: tuple[str, ...] = ("auto",)
    threads: int | None = None
    train: Options = field(default_factory=dict)
    grids: tuple[Grid, ...] = ({},)
    tune: Grid = field(default_factory=dict)
    finished: Path | None = None
    records: Mapping[str, Record] = field(default_factory=dict)


def load_config(path: str | Path) -> SweepConfig:
    """Read and check a config file.

    Raises:
        ValueError: If it cannot be read, or anything in it is not as it should be.
    """
    content = read_toml(path, "give the TOML file of a sweep")
    try:
        return _check(content)
    except ValueError as error:
        raise ValueError(f"config {path}: {error}") from None


def _check(content: Mapping[str, Any]) -> SweepConfig:
    if unknown := [key for key in content if key not in TOP_LEVEL]:
        raise ValueError(
            f"unknown key {unknown[0]!r}: give {', '.join(TOP_LEVEL)}; options of train.py belong "
            "in [train] or [grid]"
        )
    out = content.get("out")
    threads = content.get("threads")
    if not isinstance(out, str) or not out:
        raise ValueError(f"out is {out!r}: give the folder for the run folders, in quotes")
    if threads is not None and (type(threads) is not int or threads < 1):
        raise ValueError(f"threads is {threads!r}: give a positive number")
    devices = _check_devices(content.get("devices", ["auto"]))

    train = _check_table("train", content.get("train", {}))
    grids = _check_grids(content.get("grid", {}))
    tune = _check_table("tune", content.get("tune", {}))
    _check_apart(train, grids, tune, is_one_grid=not isinstance(content.get("grid"), list))

    finished = content.get("finished")
    if finished is not None and not isinstance(finished, str):
        raise ValueError(f"finished is {finished!r}: give the runs.json of a report, in quotes")
    records = load_records([Path(finished)]) if finished else []
    return SweepConfig(
        out=Path(out),
        devices=devices,
        threads=threads,
        train=train,
        grids=grids,
        tune=tune,
        finished=Path(finished) if finished else None,
        records={record["name"]: record for record in records},
    )


def _check_devices(devices: Any) -> tuple[str, ...]:
    if not isinstance(devices, list) or not devices:
        raise ValueError(f'devices is {devices!r}: give a list such as ["cuda:0", "cuda:1"]')
    for device in devices:
        if not isinstance(device, str) or not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
            raise ValueError(f"device {device!r} is unknown: give auto, cpu, cuda or cuda:N")
    return tuple(devices)


def _check_grids(given: Any) -> tuple[Grid, ...]:
    """Return the tables ``[[grid]]``, or the one ``[grid]``."""
    grids = given if isinstance(given, list) else [given]
    return tuple(_check_table("grid", grid) for grid in grids)


def _check_apart(train: Options, grids: tuple[Grid, ...], tune: Grid, is_one_grid: bool) -> None:
    """Refuse options that stand in two tables, and a study without a model."""
    for grid in grids:
        tables = {"train": train, "grid": grid, "tune": tune}
        for first, second in itertools.combinations(tables, 2):
            may_differ = (first, second) == ("train", "grid") and not is_one_grid
            both = [key for key in tables[first] if key in tables[second]]
            if both and not may_differ:
                raise ValueError(f"{both[0]} is in [{first}] and in [{second}]: leave one")
        if not any("model" in table for table in tables.values()):
            raise ValueError('no model is given: add model = "..." to [train]')
    for key in COMPARED:
        if key in tune:
            raise ValueError(
                f"{key} is in [tune], whose values are chosen on dev: move it to [grid]"
            )


def _check_table(table: str, given: Any) -> Options:
    """Return [train], with a value for each option, or [grid] or [tune], with a list for each."""
    if not isinstance(given, dict):
        raise ValueError(f"{table} is {given!r}: give a table [{table}] of options of train.py")
    checked: Options = {}
    for spelled, value in given.items():
        name = spelled.replace("-", "_")
        if name in SET_BY_SWEEP:
            raise ValueError(f"{name} in [{table}] is for the sweep to set: leave it out")
        if name not in OPTION_NAMES:
            raise ValueError(
                f"{spelled!r} in [{table}] is no option of train.py: see python train.py --help"
            )
        if name in checked:
            raise ValueError(f"{name} is in [{table}] in two spellings: leave one")
        if table == "train" and isinstance(value, list):
            raise ValueError(f"{name} in [train] is a list: give one value, or move it to [grid]")
        if table != "train" and (not isinstance(value, list) or not value):
            raise ValueError(f"{name} in [{table}] is {value!r}: give a list of one value or more")

        values = value if isinstance(value, list) else [value]
        for one in values:
            check_value(TrainOptions, name, one, f"{name} in [{table}]")
        if any(values.count(one) > 1 for one in values):
            raise ValueError(f"{name} in [{table}] lists a value twice: {value}; leave one")
        checked[name] = value
    return checked
