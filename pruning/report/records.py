"""Read finished run folders into compact records, keep them as JSON, list them as CSV."""

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from data.files import JsonObject, read_json, read_json_lines, to_json, write_file
from data.metrics import deciding_metric
from data.significance import pooled_rate
from models.training.distill import DistillOptions
from pruning.report.schema import CONFIG, EVENTS, RESULTS, RUNS, UTTERANCE, Checker
from pruning.run.options import CHANGES_NOTHING, NOT_RECORDED, as_recorded_now
from pruning.schedules import SCHEDULES, prunes

Record = JsonObject

FORMAT = "parp-runs"
VERSION = 1
REPEAT = "run it again, or leave it out"
CURVE_POINTS = 60
ENVIRONMENT = ("versions", "git", "device")
AXES = ("model", "target", "method", "sparsity", "lr", "seed", "steps")
TEACHING = tuple(field.name for field in fields(DistillOptions))
COUNTS = ("substitutions", "deletions", "insertions", "reference_tokens")


@dataclass
class Runs:
    """Finished runs and what was computed from several of them.

    Attributes:
        records: One record for each run, see :func:`load_records`.
        folders: Folder of each run that was read from one, by its name.
        overlaps: Intersection over union of the masks of two runs, by their names.
        repeated: Names of runs that were found a second time with other results; the first counts.
    """

    records: list[Record] = field(default_factory=list)
    folders: dict[str, Path] = field(default_factory=dict)
    overlaps: dict[frozenset[str], float] = field(default_factory=dict)
    repeated: list[str] = field(default_factory=list)


def load_records(paths: Sequence[Path]) -> list[Record]:
    """Read the records of all finished runs under ``paths``, sorted by what was run.

    A record has "name" (of the run folder), "options", "recipe" and "environment" of config.json,
    "results" (results.json), "curves" ("train" thinned, "dev", "reprune") and "utterances"
    ("utt_id", "speaker" and "operations" of each test utterance).

    Args:
        paths: Run folders, folders that hold some at any depth, or runs.json files of a report.

    Raises:
        ValueError: If there is no finished run, a file is damaged, or two runs have one name.
    """
    return load_runs(paths).records


def load_runs(paths: Sequence[Path]) -> Runs:
    """Read what :func:`load_records` reads, with the folders and the overlaps known so far."""
    runs = Runs()
    found: list[Record] = []
    folders: dict[Path, None] = {}  # a set in order
    for path in map(Path, paths):
        if path.is_file():
            found += _read_runs_file(path, runs)
        else:
            folders |= dict.fromkeys(_finished_folders(path))

    runs.folders = _named(list(folders))
    found += [_read_folder(folder, name) for name, folder in runs.folders.items()]
    known: dict[str, Record] = {}
    for record in found:
        first = known.setdefault(record["name"], record)
        if first["options"] != record["options"]:
            raise ValueError(
                f"two different runs are called {record['name']!r}: rename one of the folders"
            )
        if _outcome(first) != _outcome(record):
            runs.repeated.append(record["name"])
            runs.folders.pop(record["name"], None)

    runs.records = sorted(known.values(), key=lambda record: (*sort_key(record), record["name"]))
    return runs


def _outcome(record: Record) -> tuple[Any, Any]:
    """Return what a run gives again when it is repeated: what it recognises, and its weights."""
    return record["utterances"], record["results"]["tensors"]


def dump_runs(runs: Runs) -> str:
    """Return the content of runs.json: the records, a line each, and the overlaps."""
    lines = [to_json(record, compact=True) for record in runs.records]
    overlaps = [
        to_json({"runs": sorted(names), "iou": iou}, compact=True)
        for names, iou in sorted(runs.overlaps.items(), key=lambda item: sorted(item[0]))
    ]
    return (
        f'{{"format":"{FORMAT}","version":{VERSION},\n"runs":[\n'
        + ",\n".join(lines)
        + '\n],\n"overlaps":[\n'
        + ",\n".join(overlaps)
        + "\n]}\n"
    )


def _finished_folders(path: Path) -> list[Path]:
    if not path.is_dir():
        raise ValueError(f"{path} does not exist: give a run folder, or a runs.json of a report")
    folders = [file.parent for file in sorted(path.rglob("results.json"))]
    folders = [folder.resolve() for folder in folders if (folder / "config.json").is_file()]
    if not folders:
        raise ValueError(
            f"no results.json under {path}: finish a run, or give a folder of finished runs or "
            "the runs.json of a report"
        )
    return folders


def _named(folders: Sequence[Path]) -> dict[str, Path]:
    """Name folders by their own name, with as many parents as it takes to tell them apart."""
    depth = 1
    while len(names := {"/".join(path.parts[-depth:]): path for path in folders}) < len(folders):
        depth += 1
    return names


def _read_folder(folder: Path, name: str) -> Record:
    path = folder / "config.json"
    config = read_json(path, REPEAT)
    Checker(path, REPEAT).check(config, CONFIG)

    path = folder / "metrics.jsonl"
    events = read_json_lines(path, REPEAT)
    for number, event in enumerate(events, start=1):
        place = f"line {number}"
        Checker(path, REPEAT).check(event, {"event": "str"}, place)
        Checker(path, REPEAT).check(event, EVENTS.get(event["event"], {}), place)
    curves = _curves(events)

    path = folder / "results.json"
    results = read_json(path, REPEAT)
    Checker(path, REPEAT).check(results, RESULTS)
    Checker(path, REPEAT).check_rates(results, curves["dev"])

    path = folder / "test.jsonl"
    utterances = read_json_lines(path, REPEAT)
    Checker(path, REPEAT).check(utterances, [UTTERANCE], "line")
    Checker(path, REPEAT).check_utterances(utterances, "line", results)
    return {
        "name": name,
        "options": config["options"],
        "recipe": config["recipe"],
        "environment": {key: config[key] for key in ENVIRONMENT},
        "results": results,
        "curves": curves,
        "utterances": [{key: line[key] for key in UTTERANCE} for line in utterances],
    }


def _read_runs_file(path: Path, runs: Runs) -> list[Record]:
    content = read_json(path, "give a report's runs.json, or a run folder")
    if content.get("format") != FORMAT:
        raise ValueError(f"{path} is no report's runs.json: give one, or a run folder")
    if content.get("version") != VERSION:
        raise ValueError(
            f"{path} is of version {content.get('version')}, this program reads {VERSION}: "
            "use the program that wrote it"
        )
    checker = Checker(path, "make the report again from the run folders")
    checker.check(content, RUNS)
    if not content["runs"]:
        raise checker.error("runs", [], "at least one run")
    for number, record in enumerate(content["runs"]):
        place = f"runs[{number}]"
        checker.check_rates(record["results"], record["curves"]["dev"], f"{place}.results")
        checker.check_utterances(record["utterances"], f"{place}.utterances", record["results"])
    runs.overlaps |= {frozenset(entry["runs"]): entry["iou"] for entry in content["overlaps"]}
    return list(content["runs"])


def _curves(events: Iterable[Mapping[str, Any]]) -> dict[str, list[JsonObject]]:
    curves: dict[str, list[JsonObject]] = {"train": [], "dev": [], "reprune": []}
    train: dict[int, list[JsonObject]] = {}
    for event in events:
        values = {key: value for key, value in event.items() if key != "event"}
        if event["event"] == "train":
            kept = {key: values[key] for key in ("stage", "step", "loss", "lr")}
            train.setdefault(values["stage"], []).append(kept)
        elif event["event"] in curves:
            curves[event["event"]].append(values)
    for points in train.values():
        every = math.ceil(len(points) / CURVE_POINTS)
        curves["train"] += points[::-1][::every][::-1]  # from the end: the last one stays
    return curves


def rate_name(record: Record) -> str:
    """Return the name of the rate that decides, a key of METRICS."""
    name = deciding_metric(record["results"])
    assert name is not None, "every record is checked when it is read"
    return name


def learning_rate(record: Record) -> float:
    """Return the peak learning rate that was used, given on the command line or not."""
    return float(record["recipe"]["lr"])


def sparsity(record: Record) -> float:
    """Return the sparsity asked for, 0 for a method that prunes nothing."""
    results = record["results"]
    return float(results["sparsity"]["target"]) if prunes(results["method"]) else 0.0


def error_rate(record: Record, split: str = "test") -> float:
    """Return the rate that decides on "test" or "dev", a fraction."""
    results = record["results"]
    return float((results if split == "test" else results["dev"])[rate_name(record)]["rate"])


def method_rank(method: str) -> int:
    """Return the place of a method in the order in which methods are listed."""
    order = list(SCHEDULES)
    return order.index(method) if method in order else len(order)


def telling_options(record: Record) -> JsonObject:
    """Return the options of a run that tell it from others; those it lacks were at their defaults.

    Without a teacher those of teaching do not. In the paths of a teacher and of initial weights the
    run's own seed is ``seed*``, as the seeds of one setting may each have a model of theirs.
    """
    options = as_recorded_now(record["options"])
    kept = options.keys() - {*CHANGES_NOTHING, *NOT_RECORDED}
    options = {name: options[name] for name in kept}
    if options.get("teacher") is None:
        options = {name: value for name, value in options.items() if name not in TEACHING}
    own_seed = rf"seed{record['results']['seed']}(?!\d)"
    models = {name: options[name] for name in ("init", "teacher") if options.get(name)}
    return options | {name: re.sub(own_seed, "seed*", path) for name, path in models.items()}


def default_of(name: str, method: str) -> Any:
    """Return what an option of train.py is where a run with ``method`` is not given it."""
    return as_recorded_now({"method": method}).get(name)


def setting(record: Record, without: Iterable[str] = ("lr", "seed")) -> tuple[tuple[str, Any], ...]:
    """Return what was run, as sorted pairs of option and value, but for some options."""
    known = {"method": record["results"]["method"], "sparsity": sparsity(record)}
    options = telling_options(record) | known | {"lr": learning_rate(record)}
    return tuple((key, options[key]) for key in sorted(options) if key not in set(without))


def differing_options(records: Sequence[Record]) -> list[str]:
    """Return the options, beside those every table lists, in which the runs differ."""
    names = {name for record in records for name in record["options"]} - set(AXES)
    return sorted(
        name for name in names if len({record["options"].get(name) for record in records}) > 1
    )


def sort_key(record: Record) -> tuple[Any, ...]:
    """Return what runs are sorted by: model, target, other options, method, sparsity, lr, seed."""
    results, options = record["results"], record["options"]
    others = [(key, str(options[key])) for key in sorted(options) if key not in AXES]
    method = results["method"]
    place = (method_rank(method), method, sparsity(record))
    end = (learning_rate(record), results["seed"], results["steps"])
    return (results["model"], results["target"], *place, others, *end)


def choose_tuned(records: Sequence[Record]) -> set[str]:
    """Return the names of the runs at the learning rate that dev chose for their setting.

    Runs that differ in nothing but learning rate and seed compete. Chosen is the rate whose dev
    error, averaged over the seeds that all rates have in common, is lowest; the lower rate among
    equals. Where they have no seed in common, each is averaged over its own seeds.
    """
    settings: dict[Any, dict[float, list[Record]]] = {}
    for record in records:
        rates = settings.setdefault(setting(record), {})
        rates.setdefault(learning_rate(record), []).append(record)
    chosen = set()
    for rates in settings.values():
        best = min(rates, key=lambda lr: (tuning_error(rates, lr), lr))
        chosen |= {record["name"] for record in rates[best]}
    return chosen


def tuning_error(rates: Mapping[float, Sequence[Record]], lr: float) -> float:
    """Return the mean dev error of ``lr`` by which :func:`choose_tuned` compares it."""
    seeds = [{record["results"]["seed"] for record in runs} for runs in rates.values()]
    shared = set.intersection(*seeds)
    compared = [
        error_rate(record, "dev")
        for record in rates[lr]
        if not shared or record["results"]["seed"] in shared
    ]
    return sum(compared) / len(compared)


def write_csv(records: Sequence[Record], path: Path) -> None:
    """Write results.csv: a line for each run, sorted; no timings, nothing of the machine.

    Raises:
        ValueError: If the file cannot be written.
    """
    write_file(path, results_csv(records).encode())


def results_csv(records: Sequence[Record]) -> str:
    """Return the content of results.csv."""
    chosen = choose_tuned(records)

    def measured(record: Record) -> JsonObject:
        results, name = record["results"], rate_name(record)
        test = results[name]
        tested = pooled_rate([record["utterances"]])
        low, high = tested.interval or (None, None)
        return {
            "rate_name": name,
            "test_rate": test["rate"],
            "ci_low": low,
            "ci_high": high,
            "ci_unit": tested.unit,
            "dev_rate": error_rate(record, "dev"),
            **{count: test[count] for count in COUNTS},
            "sparsity_in_scope": results["sparsity"]["in_scope"],
            "sparsity_whole_model": results["sparsity"]["whole_model"],
            "fine_tuning_runs": results["cost"]["fine_tuning_runs"],
            "total_steps": results["cost"]["steps"],
            "chosen": int(record["name"] in chosen),
        }

    return _csv(records, measured)


def costs_csv(records: Sequence[Record]) -> str:
    """Return the content of costs.csv: what depends on the machine."""

    def measured(record: Record) -> JsonObject:
        results = record["results"]
        return {
            "training_seconds": results["cost"]["training_seconds"],
            "wall_seconds": results["wall_seconds"],
            "real_time_factor": results["real_time_factor"],
            "device": record["environment"]["device"],
        }

    return _csv(records, measured)


def _csv(records: Sequence[Record], measured: Callable[[Record], JsonObject]) -> str:
    differing = differing_options(records)
    rows = []
    for record in sorted(records, key=sort_key):
        results = record["results"]
        axes = {key: results[key] for key in AXES if key in results}
        axes |= {"sparsity": sparsity(record), "lr": learning_rate(record)}
        others = {name: record["options"].get(name) for name in differing}
        rows.append({key: axes[key] for key in AXES} | others | measured(record))
    return csv_of(rows)


def csv_of(rows: Sequence[JsonObject]) -> str:
    """Return rows of the same keys as CSV with a header; None is left empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
