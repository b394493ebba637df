"""Write the page results.md from groups of runs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

from data.significance import mapsswe, paired_bootstrap
from pruning.report.groups import Cell, Group, layer_and_role, overlap, pair_runs
from pruning.report.records import Record, Runs, error_rate, tuning_error

REFERENCES = ("dense", "mpi", "omp")
NUM_TENSORS = 3
INTRODUCTION = """# Results

Made by `python -m pruning.report` from [runs.json](runs.json); each run is a line of
[results.csv](results.csv), its timings are in [costs.csv](costs.csv).

Rates are (substitutions + deletions + insertions) / reference tokens, pooled over the test set,
means over the seeds; the brackets hold the 95 % interval from speakers drawn with replacement. The
learning rate of a method at a sparsity is the one with the lowest dev rate; the test set played no
part in the choice. Sparsity is the share of zeros: asked for, in the pruned scope, of the whole
model. Steps are optimizer steps of all fine-tuning runs that a method needs together.
"""

Rows = Iterable[Sequence[str]]


def results_page(
    runs: Runs, groups: Sequence[Group], plots: Mapping[str, Mapping[str, str]]
) -> str:
    """Return the page.

    Args:
        runs: Every run, with the overlaps of the masks.
        groups: The same runs as :func:`pruning.report.groups.build_groups` arranged them.
        plots: By slug of a group the captions of its plots by file name.
    """
    parts = [INTRODUCTION]
    for group in groups:
        parts += [f"## {group.title}\n", _protocol(group), _main_table(group)]
        for section in (_tuning, _tests, _zeros, _revival, _shift, _size, _cost):
            parts += section(group)
        parts += _overlaps(group, runs)
        parts += _links(plots.get(group.slug, {}))
    parts += _between_targets(groups, runs)
    return "\n".join(parts)


def table(header: Sequence[str], rows: Rows) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _protocol(group: Group) -> str:
    records = group.records
    protocols = _unique(record["results"]["protocol"] for record in records)
    seeds = sorted({record["results"]["seed"] for record in records})
    environments = [record["environment"] for record in records]
    versions = _unique(
        ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
        for environment in environments
    )
    revisions = _unique(str(environment["git"])[:12] for environment in environments)
    devices = _unique(environment["device"] for environment in environments)
    lines = [
        f"Protocol: {'; or: '.join(protocols)}.",
        f"Seeds: {', '.join(map(str, seeds))}. Revision: {', '.join(revisions)}. "
        f"Versions: {'; '.join(versions)}. Device: {', '.join(devices)}.",
    ]
    single = [cell for cell in group.cells if len(set(cell.seeds)) == 1]

    if single:
        which = (
            "Every number is of one seed"
            if len(single) == len(group.cells)
            else "Numbers with 1 in the column of seeds are of one seed"
        )
        lines.append(
            f"{which}: the interval tells how much the test speakers matter, not how much another "
            "seed would."
        )

    return "\n".join(lines) + "\n"


def _main_table(group: Group) -> str:
    header = (
        "method",
        "asked for",
        "in scope",
        "whole model",
        f"test {group.rate_name} [95 %]",
        f"dev {group.rate_name}",
        "learning rate",
        "seeds",
        "fine-tuning runs",
        "steps",
        "seconds",
    )
    rows = []

    for cell in group.cells:
        rows.append(
            (
                cell.label,
                f"{cell.sparsity:g}",
                f"{cell.mean(_zeros_of('in_scope')):.6f}",
                f"{cell.mean(_zeros_of('whole_model')):.4f}",
                f"{cell.rate:.4f} {_interval(*cell.interval)}",
                f"{cell.mean(lambda record: error_rate(record, 'dev')):.4f}",
                f"{_lr(cell):g}",
                f"{len(cell.runs)}",
                f"{cell.mean(_cost_of('fine_tuning_runs')):g}",
                f"{cell.mean(_cost_of('steps')):.0f}",
                f"{cell.mean(_cost_of('training_seconds')):.0f}",
            )
        )

    return table(header, rows)


def _tuning(group: Group) -> list[str]:
    rows = []
    for cell in (cell for cell in group.cells if len(cell.tried) > 1):
        for lr, runs in cell.tried.items():
            chosen = lr == _lr(cell)
            seeds = [str(record["results"]["seed"]) for record in runs]
            dev = f"{tuning_error(cell.tried, lr):.4f}"
            test = f"{fmean(map(error_rate, runs)):.4f}"
            rows.append(
                (
                    cell.label,
                    f"{cell.sparsity:g}",
                    f"{lr:g}",
                    ", ".join(seeds),
                    dev,
                    test,
                    "chosen" if chosen else "",
                )
            )

    title = "### Learning rates tried\n"
    if not rows:
        return [title, "One for each method and sparsity: nothing was tuned in these runs.\n"]
    name = group.rate_name
    header = ("method", "sparsity", "learning rate", "seeds", f"dev {name}", f"test {name}", "")
    note = "The dev rate is the mean over the seeds that all rates of a method and sparsity share."

    return [title, note + "\n", table(header, rows)]


def _tests(group: Group) -> list[str]:
    rows = []
    for cell in group.cells:
        others = [*group.dense, *(c for c in group.at(cell.sparsity) if c.method in REFERENCES)]
        for other in others:
            pairs = pair_runs(cell, other)
            if cell is not other and cell.method != "dense" and pairs:
                rows.append((cell.label, f"{cell.sparsity:g}", other.label, *_test(pairs)))
    if not rows:
        return []
    header = ("method", "sparsity", "against", f"difference of {group.rate_name} [95 %]")
    header_mapsswe = ("MAPSSWE: segments", "z", "two-sided p")
    note = (
        "First minus second: negative where the method errs less. The interval is by paired "
        "bootstrap over speakers, over the seeds that both have; MAPSSWE is a test of its own for "
        "each of those seeds, in their order. No correction for the number of tests is made."
    )
    return ["### Paired tests\n", note + "\n", table((*header, *header_mapsswe), rows)]


def _test(pairs: Sequence[tuple[Record, Record]]) -> tuple[str, str, str, str]:
    pooled = [
        [line for run in runs for line in run["utterances"]] for runs in zip(*pairs, strict=True)
    ]
    difference = paired_bootstrap(pooled[0], pooled[1])
    tests = [mapsswe(first["utterances"], second["utterances"]) for first, second in pairs]
    return (
        f"{difference.rate:+.4f} {_interval(difference.low, difference.high, sign='+')}",
        ", ".join(str(test.segments) for test in tests),
        ", ".join(f"{test.z:+.2f}" for test in tests),
        ", ".join(f"{test.p:.2g}" for test in tests),
    )


def _overlaps(group: Group, runs: Runs) -> list[str]:
    parts = []
    for sparsity in group.sparsities:
        cells = group.at(sparsity)
        found = {
            (a.label, b.label): known
            for a, b in combinations(cells, 2)
            if (known := overlap(runs, pair_runs(a, b)))
        }
        if found:
            nulls = sorted({f"{null:.3f}" for _, null in found.values()})
            labels = [cell.label for cell in cells]
            both = found | {(b, a): known for (a, b), known in found.items()}
            rows = [
                [a, *(f"{both[a, b][0]:.3f}" if (a, b) in both else "" for b in labels)]
                for a in labels
            ]
            null = " to ".join(dict.fromkeys((nulls[0], nulls[-1])))
            parts.append(f"Sparsity {sparsity:g}; two independent random masks: {null}.\n")
            parts.append(table(("", *labels), rows))

    seeds = []
    for cell in group.cells:
        if known := overlap(runs, combinations(cell.runs, 2)):
            seeds.append((cell.label, f"{cell.sparsity:g}", *(f"{value:.3f}" for value in known)))

    if seeds:
        parts.append("Between the seeds of a method:\n")
        parts.append(table(("method", "sparsity", "overlap", "random masks"), seeds))

    note = (
        "Intersection over union of the kept weights, mean over the seeds; what two independent "
        "random masks of the same sparsities would have stands beside it."
    )
    return ["### Overlap of the masks\n", note + "\n", *parts] if parts else []


def _between_targets(groups: Sequence[Group], runs: Runs) -> list[str]:
    rows = []
    for first, second in combinations(groups, 2):
        for cell in first.cells:
            for other in second.cells:
                if (cell.label, cell.sparsity) != (other.label, other.sparsity):
                    continue
                if known := overlap(runs, pair_runs(cell, other)):
                    values = (f"{value:.3f}" for value in known)
                    what = (cell.label, f"{cell.sparsity:g}", first.title, second.title)
                    rows.append((*what, *values))
    header = ("method", "sparsity", "first", "second", "overlap", "random masks")
    return ["## Overlap of the masks of two targets\n", table(header, rows)] if rows else []


def _zeros(group: Group) -> list[str]:
    cells = group.middle
    if not cells:
        return []
    parts = [f"### Where the zeros are, at sparsity {cells[0].sparsity:g}\n"]
    for part, name in ((0, "layer"), (1, "role")):
        shares = [cell.zero_shares([part]) for cell in cells]
        keys = dict.fromkeys(key for share in shares for key in share)
        rows = [
            (key[0], *(f"{share[key]:.4f}" if key in share else "" for share in shares))
            for key in keys
        ]
        parts.append(table((name, *(cell.label for cell in cells)), rows))
    return parts


def _revival(group: Group) -> list[str]:
    rows = []
    for cell in group.cells:
        record = cell.runs[0]
        events = record["curves"]["reprune"]
        if events:
            size = sum(tensor["size"] for tensor in record["results"]["tensors"].values())
            moments = (events[0], events[len(events) // 2], events[-1])
            rows.append(
                (
                    cell.label,
                    f"{cell.sparsity:g}",
                    f"{len(events)}",
                    *(f"{event['revived']:,}" for event in moments),
                    f"{sum(event['revived'] for event in events) / size:.4%}",
                    f"{events[0]['threshold']:.3g} to {events[-1]['threshold']:.3g}",
                    f"{events[-1]['iou_first']:.4f}",
                    f"{events[-1]['iou_previous']:.4f}",
                )
            )

    header = (
        "method",
        "sparsity",
        "re-prunes",
        "revived at the first",
        "at the middle one",
        "at the last",
        "all together, of the scope",
        "threshold, first to last",
        "overlap with the first mask",
        "with the one before",
    )
    note = "Weights that a re-prune let back in, of the lowest seed; overlaps are of the last one."

    return ["### Revival\n", note + "\n", table(header, rows)] if rows else []


def _shift(group: Group) -> list[str]:
    rows = []
    for cell in [*group.dense, *group.middle]:
        tensors = cell.runs[0]["results"]["tensors"]
        order = sorted(tensors, key=lambda name: (-tensors[name]["shift"], name))
        if order:
            ends = (order[:NUM_TENSORS], order[-NUM_TENSORS:])
            shown = (", ".join(f"{_tensor(n)} {tensors[n]['shift']:.2e}" for n in e) for e in ends)
            rows.append((cell.label, f"{cell.sparsity:g}", *shown))
    note = (
        "L2 distance of a tensor to its initial weights over the number of its weights, of the "
        "lowest seed."
    )
    header = ("method", "sparsity", "largest", "smallest")
    return ["### Distribution shift\n", note + "\n", table(header, rows)] if rows else []


def _size(group: Group) -> list[str]:
    rows = [
        (
            cell.label,
            f"{cell.sparsity:g}",
            *(f"{cell.mean(_bytes_of(kind)) / 1e6:.2f}" for kind in ("dense", "bitmask", "zip")),
            f"{cell.mean(lambda record: record['results']['real_time_factor']):.4f}",
        )
        for cell in group.cells
    ]
    header = ("method", "sparsity", "dense", "bitmask and values", "zip", "real-time factor")
    note = (
        "Size on disk in MB (10^6 bytes) of the whole model, stored three ways, and the measured "
        "seconds of computing for a second of audio. Zeros are stored and multiplied like any "
        "other number, so neither the dense size nor the speed depends on them."
    )
    return ["### Size and speed\n", note + "\n", table(header, rows)]


def _cost(group: Group) -> list[str]:
    if not group.middle:
        return []
    cells = sorted([*group.dense, *group.middle], key=lambda cell: cell.mean(_cost_of("steps")))
    rows = [
        (
            cell.label,
            f"{cell.mean(_cost_of('fine_tuning_runs')):g}",
            f"{cell.mean(_cost_of('steps')):.0f}",
            f"{cell.mean(_cost_of('training_seconds')):.0f}",
            f"{cell.rate:.4f} {_interval(*cell.interval)}",
        )
        for cell in cells
    ]
    header = ("method", "fine-tuning runs", "steps", "seconds", f"test {group.rate_name} [95 %]")
    title = f"### Error against cost, at sparsity {group.middle[0].sparsity:g}\n"
    return [title, table(header, rows)]


def _links(plots: Mapping[str, str]) -> list[str]:
    if not plots:
        return []
    return ["### Plots\n", "".join(f"![{caption}]({name})\n\n" for name, caption in plots.items())]


def _lr(cell: Cell) -> float:
    return float(cell.runs[0]["recipe"]["lr"])


def _cost_of(key: str) -> Callable[[Record], Any]:
    return lambda record: record["results"]["cost"][key]


def _zeros_of(part: str) -> Callable[[Record], float]:
    return lambda record: record["results"]["sparsity"][part]


def _bytes_of(kind: str) -> Callable[[Record], Any]:
    return lambda record: record["results"]["bytes"][kind]


def _tensor(name: str) -> str:
    layer, role = layer_and_role(name)
    return f"{layer} {role}"


def _interval(low: float, high: float, sign: str = "") -> str:
    return f"[{low:{sign}.3f}, {high:{sign}.3f}]"


def _unique(values: Iterable[str]) -> list[str]:
    return sorted(set(values))
