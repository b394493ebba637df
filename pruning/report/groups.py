"""Arrange records for a report: groups of comparable runs, and in each a cell for each method."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from data.significance import pooled_interval
from pruning.mask_file import load_masks
from pruning.masks import mask_iou
from pruning.report.records import (
    TEACHING,
    Record,
    Runs,
    choose_tuned,
    error_rate,
    learning_rate,
    method_rank,
    rate_name,
    setting,
    sparsity,
    telling_options,
)

NOT_GROUPED = ("method", "sparsity", "lr", "seed")


@dataclass(frozen=True)
class Cell:
    """The runs of one method at one sparsity.

    Attributes:
        label: The method, with the pruning options in which its runs in the report differ.
        method: Name of the method.
        sparsity: Sparsity asked for.
        runs: Runs at the chosen learning rate, by seed.
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

    @property
    def rate(self) -> float:
        """Mean test error over the seeds."""
        return self.mean(error_rate)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the test error; a speaker is drawn with its utterances of all seeds."""
        return pooled_interval([line for record in self.runs for line in record["utterances"]])

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
    """Runs that may be compared: one model, one target, one set of the options beside pruning.

    Attributes:
        title: What they have in common and other groups have not.
        slug: The same as part of a file name.
        rate_name: The error rate that decides, as "PER".
        cells: Cells by sparsity, dense first, then method.
    """

    title: str
    slug: str
    rate_name: str
    cells: list[Cell]

    @property
    def records(self) -> list[Record]:
        """Every run, also those at learning rates that were not chosen."""
        return [record for cell in self.cells for runs in cell.tried.values() for record in runs]

    @property
    def sparsities(self) -> list[float]:
        """Sparsities of the pruned runs."""
        return sorted({cell.sparsity for cell in self.cells if cell.method != "dense"})

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
        return [cell for cell in self.cells if cell.method == "dense"]

    @property
    def middle(self) -> list[Cell]:
        """Cells at the median sparsity, the upper of two."""
        sparsities = self.sparsities
        return self.at(sparsities[len(sparsities) // 2]) if sparsities else []

    def at(self, wanted: float) -> list[Cell]:
        """Return the cells of pruned models at one sparsity."""
        return [c for c in self.cells if c.method != "dense" and c.sparsity == wanted]


def build_groups(records: Sequence[Record]) -> list[Group]:
    """Arrange ``records`` in groups and cells.

    Options of pruning and of teaching tell methods apart, all others groups. Learning rates and
    seeds are gathered in a cell, at the learning rate that :func:`choose_tuned` chose.
    """
    chosen = choose_tuned(records)
    pruning = _pruning_options(records)
    names = {name for record in records for name in record["options"]}
    grouping = sorted(names - pruning - {*NOT_GROUPED, "model", "target"})
    shown = [name for name in grouping if _differ(records, name)]
    gathered: dict[Any, list[Record]] = {}
    for record in records:
        gathered.setdefault(_values(record, ("model", "target", *grouping)), []).append(record)
    groups: list[Group] = []

    for members in gathered.values():
        first = members[0]["results"]
        others = [f"{name} {members[0]['options'].get(name)}" for name in shown]
        title = ", ".join([first["model"], first["target"], *others])
        slug = re.sub(r"[^a-z0-9.]+", "-", title.lower()).strip("-.")[:80]
        taken = slug in {group.slug for group in groups}
        groups.append(
            Group(
                title=title,
                slug=f"{slug}-{len(groups) + 1}" if taken else slug,
                rate_name=rate_name(members[0]).upper(),
                cells=_build_cells(members, records, pruning, chosen),
            )
        )

    return groups


def _build_cells(
    members: Sequence[Record], records: Sequence[Record], pruning: set[str], chosen: set[str]
) -> list[Cell]:
    gathered: dict[Any, list[Record]] = {}
    for record in members:
        gathered.setdefault(setting(record), []).append(record)
    cells = []

    for runs in gathered.values():
        method = runs[0]["results"]["method"]
        tried: dict[float, list[Record]] = {}
        for record in sorted(runs, key=lambda record: (learning_rate(record), _seed(record))):
            tried.setdefault(learning_rate(record), []).append(record)
        mates = [record for record in records if record["results"]["method"] == method]
        options = [
            f" {name}={telling_options(runs[0]).get(name)}"
            for name in sorted(pruning)
            if _is_shown(name, runs[0], mates)
        ]
        best = [record for rates in tried.values() for record in rates if record["name"] in chosen]
        cells.append(Cell(method + "".join(options), method, sparsity(runs[0]), best, tried))

    return sorted(
        cells,
        key=lambda c: (c.method != "dense", c.sparsity, method_rank(c.method), _natural(c.label)),
    )


def _pruning_options(records: Sequence[Record]) -> set[str]:
    """Return the options that say what is pruned and when, and who teaches, but the sparsity."""
    names = {name for record in records for name in record["results"]["pruning"]}
    return (names | {"init_mask", *TEACHING}) - set(NOT_GROUPED)


def _values(record: Record, names: Iterable[str]) -> tuple[Any, ...]:
    options = telling_options(record)
    return tuple(options.get(name) for name in names)


def _differ(records: Sequence[Record], name: str) -> bool:
    return len({telling_options(record).get(name) for record in records}) > 1


def _is_shown(name: str, record: Record, mates: Sequence[Record]) -> bool:
    """Say whether an option belongs in the label of a run, among runs of its method."""
    if name in TEACHING and name not in telling_options(record):
        return False
    if name in TEACHING and name != "teacher":
        mates = [mate for mate in mates if name in telling_options(mate)]
    return _differ(mates, name)


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


def pair_runs(first: Cell, second: Cell) -> list[tuple[Record, Record]]:
    """Return the runs of two cells seed by seed, for the seeds that both have."""
    others = {_seed(record): record for record in second.runs}
    return [(record, others[_seed(record)]) for record in first.runs if _seed(record) in others]


def add_overlaps(runs: Runs, groups: Sequence[Group]) -> None:
    """Compute the overlaps between masks that are not known yet, where the folders are at hand.

    Compared are runs at the chosen learning rate of the same sparsity that differ in one thing:
    method, seed or target.
    """
    pruning = _pruning_options(runs.records)
    rest = {name for record in runs.records for name in record["options"]} - pruning
    rest -= {*NOT_GROUPED, "target"}
    by_sparsity: dict[Any, list[tuple[Record, tuple[Any, ...]]]] = {}

    for cell in (cell for group in groups for cell in group.cells if cell.method != "dense"):
        for record in cell.runs:
            what = (cell.label, _seed(record), record["results"]["target"])
            place = (cell.sparsity, _values(record, sorted(rest)))
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
