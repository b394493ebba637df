"""Arrange records for a report: groups of comparable runs, and in each a cell for each method."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev
from typing import Any

from data.files import JsonObject
from data.intervals import Estimate
from data.significance import paired_difference, pooled_rate
from pruning.mask_file import load_masks
from pruning.masks import mask_iou
from pruning.report.records import (
    TEACHING,
    Record,
    Runs,
    choose_tuned,
    default_of,
    error_rate,
    learning_rate,
    method_rank,
    rate_name,
    setting,
    sparsity,
    telling_options,
)
from pruning.schedules import prunes, title_of

DATA = ("data", "corpus", "splits", "subset", "resample")  # options that make groups
IN_COLUMNS = ("model", "target", "method", "sparsity", "lr", "seed")  # never in a label

Told = Mapping[str, JsonObject]
"""What :func:`telling_options` returns, by name of the run."""


@dataclass(frozen=True)
class Cell:
    """The runs of one row: one method at one sparsity, with the same options.

    Attributes:
        label: The method, with the options in which its runs in the group differ, where they are
            not at their defaults.
        method: Name of the method.
        sparsity: Sparsity asked for.
        runs: Runs at the chosen learning rate, one a seed, by seed.
        tried: Runs by learning rate.
    """

    label: str
    method: str
    sparsity: float
    runs: list[Record]
    tried: dict[float, list[Record]]

    @property
    def seeds(self) -> list[int]:
        """Seeds of the runs at the chosen learning rate."""
        return [record["results"]["seed"] for record in self.runs]

    @cached_property
    def test(self) -> Estimate:
        """Test error over the seeds."""
        with _naming(*self.runs):
            return pooled_rate([record["utterances"] for record in self.runs])

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the test error over the seeds; None for a single one."""
        return stdev(map(error_rate, self.runs)) if len(self.runs) > 1 else None

    def mean(self, value: Callable[[Record], float]) -> float:
        """Return the mean over the seeds of what ``value`` returns for a record."""
        return fmean(value(record) for record in self.runs)

    def zero_shares(self, parts: Iterable[int] = (0, 1)) -> dict[tuple[str, ...], float]:
        """Return the share of zeros by layer and role, or by one of the two.

        Args:
            parts: What to tell apart: 0 the layer, 1 the role, see :func:`layer_and_role`.
        """
        parts = tuple(parts)
        sums: dict[tuple[str, ...], list[int]] = {}
        for record in self.runs:
            for name, tensor in record["results"]["tensors"].items():
                place = layer_and_role(name)
                total = sums.setdefault(tuple(place[part] for part in parts), [0, 0])
                total[0] += tensor["zeros"]
                total[1] += tensor["size"]
        return {key: zeros / size for key, (zeros, size) in sums.items()}


@dataclass(frozen=True)
class Group:
    """Runs that may be compared: one model, one target, one corpus.

    Attributes:
        title: What they have in common and other groups have not.
        slug: The same as part of a file name.
        rate_name: The error rate that decides, as "PER".
        cells: Cells by sparsity, dense first, then method.
        varied: Options in which the runs differ, beside those that have a column.
    """

    title: str
    slug: str
    rate_name: str
    cells: list[Cell]
    varied: list[str]

    @property
    def records(self) -> list[Record]:
        """Every run, also those at learning rates that were not chosen."""
        return [record for cell in self.cells for runs in cell.tried.values() for record in runs]

    @property
    def sparsities(self) -> list[float]:
        """Sparsities of the pruned runs."""
        return sorted({cell.sparsity for cell in self.cells if prunes(cell.method)})

    @property
    def labels(self) -> list[str]:
        """Labels of the cells, in the order in which methods are listed."""
        cells = sorted(
            self.cells, key=lambda cell: (method_rank(cell.method), _natural(cell.label))
        )
        return list(dict.fromkeys(cell.label for cell in cells))

    @property
    def dense(self) -> list[Cell]:
        """Cells of unpruned models: one, if there is one."""
        return [cell for cell in self.cells if not prunes(cell.method)]

    @property
    def middle(self) -> list[Cell]:
        """Cells at the median sparsity, the upper of two."""
        sparsities = self.sparsities
        return self.at(sparsities[len(sparsities) // 2]) if sparsities else []

    def at(self, wanted: float) -> list[Cell]:
        """Return the cells of pruned models at one sparsity."""
        return [c for c in self.cells if prunes(c.method) and c.sparsity == wanted]


def build_groups(records: Sequence[Record]) -> list[Group]:
    """Arrange ``records`` in groups and cells.

    Model, target and data make groups. Every other option makes rows: runs that differ in one are
    another cell, which its label tells. Learning rates and seeds are gathered in a cell, at the
    learning rate that :func:`choose_tuned` chose.
    """
    chosen = choose_tuned(records)
    told = {record["name"]: telling_options(record) for record in records}
    shown = [name for name in DATA if _differ(records, name, told)]
    gathered: dict[Any, list[Record]] = {}
    for record in records:
        place = (*(record["results"][key] for key in ("model", "target")), *_data(record, told))
        gathered.setdefault(place, []).append(record)
    groups: list[Group] = []

    for members in gathered.values():
        first = members[0]["results"]
        others = [f"{name} {told[members[0]['name']].get(name)}" for name in shown]
        title = ", ".join([first["model"], first["target"], *others])
        slug = re.sub(r"[^a-z0-9.]+", "-", title.lower()).strip("-.")[:80]
        taken = slug in {group.slug for group in groups}
        groups.append(
            Group(
                title=title,
                slug=f"{slug}-{len(groups) + 1}" if taken else slug,
                rate_name=rate_name(members[0]).upper(),
                cells=_build_cells(members, told, chosen),
                varied=_varied(members, told),
            )
        )

    return groups


def _build_cells(members: Sequence[Record], told: Told, chosen: set[str]) -> list[Cell]:
    gathered: dict[Any, list[Record]] = {}
    for record in members:
        gathered.setdefault(setting(record), []).append(record)
    cells = []

    for runs in gathered.values():
        method = runs[0]["results"]["method"]
        tried: dict[float, list[Record]] = {}
        for record in sorted(runs, key=lambda record: (learning_rate(record), _seed(record))):
            tried.setdefault(learning_rate(record), []).append(record)
        mates = [record for record in members if record["results"]["method"] == method]
        best = [record for rates in tried.values() for record in rates if record["name"] in chosen]
        by_seed = {_seed(record): record for record in reversed(best)}  # a seed counts once
        label = _label(runs[0], mates, told)
        cells.append(
            Cell(label, method, sparsity(runs[0]), [by_seed[key] for key in sorted(by_seed)], tried)
        )

    return sorted(
        cells,
        key=lambda c: (prunes(c.method), c.sparsity, method_rank(c.method), _natural(c.label)),
    )


def _label(record: Record, mates: Sequence[Record], told: Told) -> str:
    """Name a method and those of its options that tell a run from its mates."""
    method = record["results"]["method"]
    options = told[record["name"]]
    words = [title_of(method)]
    if record["results"]["steps"] == 0:
        words.append("one-shot" if prunes(method) else "not trained")
        options = {name: value for name, value in options.items() if name != "steps"}
    for name in _varied(mates, told):
        if name in options and options[name] != default_of(name, method):
            words.append(describe_option(name, options[name], _values(mates, name, told)))
    return ", ".join(words)


def describe_option(name: str, value: Any, others: Iterable[Any] = ()) -> str:
    """Say in words what an option is: "prune every 5", "no biases", "teacher dense-seed*".

    Args:
        name: Name of the option.
        value: Its value.
        others: Every value that it is told from: of a path as much is said as that takes.
    """
    words = name.replace("_", " ")
    if isinstance(value, bool):
        return words if value else f"no {words}"
    if isinstance(value, float):
        return f"{words} {value:g}"
    if isinstance(value, str) and "/" in value.strip("/"):
        paths = {other.strip("/") for other in others if isinstance(other, str)} | {
            value.strip("/")
        }
        return f"{words} {_tail(value.strip('/'), paths)}"
    return f"{words} {value}"


def _tail(path: str, paths: set[str]) -> str:
    """Return the last parts of a path, as many as tell it from the others, long ones cut."""
    parts = path.split("/")
    for depth in range(1, len(parts)):
        tail = "/".join(parts[-depth:])
        if sum(other == tail or other.endswith(f"/{tail}") for other in paths) == 1:
            parts = parts[-depth:]
            break
    return "/".join(f"{part[:16]}...{part[-12:]}" if len(part) > 40 else part for part in parts)


def _varied(records: Sequence[Record], told: Told) -> list[str]:
    """Return the options in which runs differ, but for those that have a column or make groups.

    Those of teaching count among the runs that have a teacher.
    """
    names = {name for record in records for name in told[record["name"]]}
    taught = [record for record in records if "teacher" in told[record["name"]]]
    varied = [
        name
        for name in sorted(names - {*IN_COLUMNS, *DATA})
        if _differ(taught if name in TEACHING and name != "teacher" else records, name, told)
    ]
    return sorted(varied, key=lambda name: TEACHING.index(name) if name in TEACHING else -1)


def _values(records: Sequence[Record], name: str, told: Told) -> list[Any]:
    return [told[record["name"]].get(name) for record in records]


def _differ(records: Sequence[Record], name: str, told: Told) -> bool:
    """Return whether runs differ in what they were given for an option, not in its defaults."""
    given = {
        "" if value == default_of(name, record["results"]["method"]) else repr(value)
        for record, value in zip(records, _values(records, name, told), strict=True)
    }
    return len(given) > 1


def _data(record: Record, told: Told) -> tuple[Any, ...]:
    return tuple(told[record["name"]].get(name) for name in DATA)


def _seed(record: Record) -> int:
    return int(record["results"]["seed"])


def _natural(label: str) -> list[tuple[str, int]]:
    """Return a sort key under which n=5 comes before n=20."""
    parts = re.findall(r"(\D*)(\d*)", label)
    return [(text, int(number or 0)) for text, number in parts]


def layer_and_role(name: str) -> tuple[str, str]:
    """Split a parameter's name: "encoder.layers.3.ffn.fc1.bias" is "encoder 3", "ffn.fc1.bias".

    A name without a layer number is its own role, in layer "-".
    """
    match = re.fullmatch(r"(?:(.*)\.)?layers\.(\d+)\.(.+)", name)
    if match is None:
        return "-", name
    return f"{match[1] or 'layer'} {match[2]}", match[3]


@dataclass(frozen=True)
class Drift:
    """What a re-prune did to a mask.

    Attributes:
        step: Optimizer step.
        revived: Weights that came back.
        size: Weights in scope.
        threshold: Magnitude of the largest weight that was dropped.
        first: Overlap with the first mask of the stage, see :func:`mask_drift`; None where that
            mask dropped nothing, so that every other lies in it.
        previous: The same with the mask before.
    """

    step: int
    revived: int
    size: int
    threshold: float
    first: float | None
    previous: float


def mask_drift(record: Record) -> list[Drift]:
    """Return what each re-prune of a run did.

    Overlaps are intersections over unions of the kept weights, divided by what they are at most:
    with a of the weights kept by the one mask and b < a by the other, b / a, where the smaller set
    lies in the larger. So a mask that has only grown sparser overlaps by 1 with the first.
    """
    size = sum(tensor["size"] for tensor in record["results"]["tensors"].values()) or 1
    drifts = []
    kept_first = 0
    for number, event in enumerate(record["curves"]["reprune"]):
        kept = size - round(event["sparsity"] * size)
        kept_before = kept + event["newly_pruned"] - event["revived"]
        kept_first = kept_first if number else kept_before
        drifts.append(
            Drift(
                event["step"],
                event["revived"],
                size,
                event["threshold"],
                first=_of_nested(event["iou_first"], kept, kept_first)
                if kept_first < size
                else None,
                previous=_of_nested(event["iou_previous"], kept, kept_before),
            )
        )
    return drifts


def _of_nested(iou: float, kept: int, other: int) -> float:
    """Divide the overlap of two masks by what masks that keep so many may have at most."""
    return iou * max(kept, other) / max(1, min(kept, other))


def pair_runs(first: Cell, second: Cell) -> list[tuple[Record, Record]]:
    """Return the runs of two cells seed by seed, for the seeds that both have."""
    others = {_seed(record): record for record in second.runs}
    return [(record, others[_seed(record)]) for record in first.runs if _seed(record) in others]


def difference_of(pairs: Sequence[tuple[Record, Record]]) -> Estimate:
    """Return the difference of two rows, first minus second, from their runs seed by seed."""
    first, second = zip(*pairs, strict=True)
    with _naming(*first, *second):
        return paired_difference(
            [record["utterances"] for record in first], [record["utterances"] for record in second]
        )


@contextmanager
def _naming(*records: Record) -> Iterator[None]:
    """Say in an error which runs it is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{', '.join(record['name'] for record in records)}: {error}") from None


def add_overlaps(runs: Runs, groups: Sequence[Group]) -> None:
    """Compute the overlaps between masks that are not known yet, where the folders are at hand.

    Compared are runs at the chosen learning rate of the same sparsity that differ in one thing:
    method, seed or target.
    """
    told = {record["name"]: telling_options(record) for record in runs.records}
    by_sparsity: dict[Any, list[tuple[Record, tuple[Any, ...]]]] = {}

    for cell in (cell for group in groups for cell in group.cells if prunes(cell.method)):
        for record in cell.runs:
            what = (cell.label, _seed(record), record["results"]["target"])
            place = (cell.sparsity, record["results"]["model"], _data(record, told))
            by_sparsity.setdefault(place, []).append((record, what))

    for members in by_sparsity.values():
        masks: dict[str, Mapping[str, Any]] = {}
        for i, (first, what) in enumerate(members):
            for second, other in members[i + 1 :]:
                names = frozenset((first["name"], second["name"]))
                differing = sum(a != b for a, b in zip(what, other, strict=True))
                if differing != 1 or names in runs.overlaps:
                    continue
                a, b = (_load(record["name"], runs, masks) for record in (first, second))
                if a and a.keys() == b.keys():  # else of another scope
                    runs.overlaps[names] = mask_iou(a, b)


def _load(name: str, runs: Runs, masks: dict[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the masks of a run, none where its mask file is not at hand."""
    if name not in masks:
        folder = runs.folders.get(name)
        path = folder / "masks.pt" if folder else None
        masks[name] = load_masks(path).masks if path and path.is_file() else {}
    return masks[name]


def overlap(runs: Runs, pairs: Iterable[tuple[Record, Record]]) -> tuple[float, float] | None:
    """Return the mean overlap of the masks of pairs of runs, and what random masks would have.

    Two independent random masks that keep the fractions a and b have a * b / (a + b - a * b).
    None where no overlap is known.
    """
    known = []
    for first, second in pairs:
        iou = runs.overlaps.get(frozenset((first["name"], second["name"])))
        if iou is not None:
            a, b = (1.0 - record["results"]["sparsity"]["in_scope"] for record in (first, second))
            known.append((iou, a * b / (a + b - a * b)))
    return (fmean(iou for iou, _ in known), fmean(null for _, null in known)) if known else None
