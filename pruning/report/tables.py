"""Write the page results.md from groups of runs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

from data.intervals import MIN_UNITS, UNITS, Estimate
from data.significance import mapsswe
from pruning.report.groups import (
    Group,
    difference_of,
    layer_and_role,
    mask_drift,
    overlap,
    pair_runs,
)
from pruning.report.records import (
    Record,
    Runs,
    csv_of,
    error_rate,
    learning_rate,
    telling_options,
    tuning_error,
)
from pruning.report.words import (
    describe_value,
    p_value,
    percent,
    rate_and_interval,
    table,
    whole_percent,
)
from pruning.run.options import TrainOptions
from pruning.schedules import is_reference, prunes

NUM_TENSORS = 3
MARGIN = 0.01  # of the error rate: what may count as no worse
INTRODUCTION = """# Results

Made by `python -m pruning.report` from [runs.json](runs.json); each run is a line of
[results.csv](results.csv), each row of the first table of a section one of
[summary.csv](summary.csv), and timings are in [costs.csv](costs.csv).

Rates are (substitutions + deletions + insertions) / reference tokens in percent, pooled over the
test set, means over the seeds; sd is their standard deviation. Brackets hold 95 % intervals:
speakers are drawn with replacement, or utterances where there are fewer than ten speakers, and what
seeds vary beyond that is added. The learning rate of a row is the one with the lowest dev rate; the
test set played no part in the choice. Sparsity is the share of zeros in percent: asked for, in the
pruned scope, of the whole model. Steps are optimizer steps of all fine-tuning runs that a method
needs together; one-shot rows have none of their own, they were pruned and scored without training.
"""


def results_page(
    runs: Runs,
    groups: Sequence[Group],
    plots: Mapping[str, Mapping[str, str]],
    margin: float = MARGIN,
) -> str:
    """Return the page.

    Args:
        runs: Every run, with the overlaps of the masks.
        groups: The same runs as :func:`pruning.report.groups.build_groups` arranged them.
        plots: By slug of a group the captions of its plots by file name.
        margin: What a pruned model may err more than a dense one and count as no worse.
    """
    parts = [INTRODUCTION]
    for group in groups:
        parts += [f"## {group.title}\n", _protocol(group), _main_table(group)]
        parts += _options(group) + _against_dense(group, margin)
        for section in (_tuning, _tests, _zeros, _revival, _shift, _size, _cost):
            parts += section(group)
        parts += _overlaps(group, runs)
        parts += _links(plots.get(group.slug, {}))
    parts += _between_targets(groups, runs)
    return "\n".join(parts)


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
    single = [cell for cell in group.cells if len(cell.runs) == 1]
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
    if left_out := _repeated(group):
        lines.append(f"Left out, for runs of the same options and seed: {', '.join(left_out)}.")
    if unit := _other_unit(cell.test for cell in group.cells):
        lines.append(unit)

    return "\n".join(lines) + "\n"


def _repeated(group: Group) -> list[str]:
    """Return the names of runs at a chosen rate that repeat a seed."""
    counted = {record["name"] for cell in group.cells for record in cell.runs}
    return [
        record["name"]
        for cell in group.cells
        for record in cell.tried[learning_rate(cell.runs[0])]
        if record["name"] not in counted
    ]


def _other_unit(estimates: Iterable[Estimate]) -> str:
    """Say what intervals are drawn from where that is not speakers; "" where it is."""
    units = {estimate.unit for estimate in estimates}
    if units == {"speaker"}:
        return ""
    if units == {None}:
        return f"There are no intervals, which take {MIN_UNITS} utterances."
    names = " or ".join(UNITS[unit] for unit in sorted(unit for unit in units if unit))
    return (
        f"Intervals are by bootstrap over {names}: the test set has no ten speakers, so they say "
        "nothing of other speakers."
    )


def _main_table(group: Group) -> str:
    header = (
        "method",
        "asked for",
        "in scope",
        "whole model",
        f"test {group.rate_name} [95 %]",
        "sd",
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
                whole_percent(cell.sparsity),
                percent(cell.mean(_zeros_of("in_scope")), 4),
                percent(cell.mean(_zeros_of("whole_model")), 2),
                rate_and_interval(cell.test),
                "" if cell.deviation is None else percent(cell.deviation),
                percent(cell.mean(lambda record: error_rate(record, "dev"))),
                f"{learning_rate(cell.runs[0]):g}",
                f"{len(cell.runs)}",
                f"{cell.mean(_cost_of('fine_tuning_runs')):g}",
                f"{cell.mean(_cost_of('steps')):.0f}",
                f"{cell.mean(_cost_of('training_seconds')):.0f}",
            )
        )

    return table(header, rows)


def summary_csv(groups: Sequence[Group]) -> str:
    """Return the content of summary.csv: a line for each row of the main tables, as fractions."""
    rows = []
    for group in groups:
        for cell in group.cells:
            low, high = cell.test.interval or (None, None)
            rows.append(
                {
                    "group": group.title,
                    "label": cell.label,
                    "method": cell.method,
                    "sparsity": cell.sparsity,
                    "lr": learning_rate(cell.runs[0]),
                    "seeds": len(cell.runs),
                    "rate_name": group.rate_name.lower(),
                    "test_mean": cell.test.rate,
                    "test_sd": cell.deviation,
                    "ci_low": low,
                    "ci_high": high,
                    "ci_unit": cell.test.unit,
                    "dev_mean": cell.mean(lambda record: error_rate(record, "dev")),
                    "sparsity_in_scope": cell.mean(_zeros_of("in_scope")),
                    "sparsity_whole_model": cell.mean(_zeros_of("whole_model")),
                    "fine_tuning_runs": cell.mean(_cost_of("fine_tuning_runs")),
                    "total_steps": cell.mean(_cost_of("steps")),
                }
            )
    return csv_of(rows)


def _options(group: Group) -> list[str]:
    """List what the rows were trained with, as far as they differ."""
    if not group.varied:
        return []
    rows = []
    for cell in group.cells:
        options = telling_options(cell.runs[0])
        unused = TrainOptions.unused_options(cell.runs[0]["options"])
        recipe = cell.runs[0]["recipe"]
        values = []
        for name in group.varied:
            value = options.get(name)
            value = recipe.get(name) if value is None else value
            if name in unused:
                value = None
            values.append("" if value is None else describe_value(value))
        rows.append((cell.label, whole_percent(cell.sparsity), *values))
    names = [name.replace("_", " ") for name in group.varied]
    note = "What the runs differ in. A label leaves out what is at its default."
    return ["### Options\n", note + "\n", table(("method", "sparsity", *names), rows)]


def _against_dense(group: Group, margin: float) -> list[str]:
    """Compare every pruned row with every dense one that has a seed in common with it."""
    rows = []
    units = []
    for cell in group.cells:
        for dense in group.dense if prunes(cell.method) else ():
            pairs = pair_runs(cell, dense)
            if not pairs:
                continue
            difference = difference_of(pairs)
            units.append(difference)
            limit, verdict = "", ""
            if difference.upper is not None:
                limit = percent(difference.upper, sign="+")
                verdict = "yes" if difference.upper < margin else "no"
            shown = rate_and_interval(difference, "+")
            first = (cell.label, whole_percent(cell.sparsity), dense.label, f"{len(pairs)}")
            rows.append((*first, shown, limit, verdict))
    if not rows:
        return []
    points = whole_percent(margin)
    header = (
        "method",
        "sparsity",
        "against",
        "seeds",
        f"difference of {group.rate_name} [95 %]",
        "one-sided 95 % limit",
        f"no worse by {points}",
    )
    paired = sorted({UNITS[each.unit] for each in units if each.unit}) or ["utterances"]
    note = (
        "In percentage points; negative where the pruned model errs less. Paired over "
        f"{' or '.join(paired)} and the seeds that both have. No worse: the one-sided limit is "
        f"under {points}, so with 95 % confidence the pruned model errs less than that more often "
        "than the dense one."
    )
    return ["### Sparse minus dense\n", f"{note} {_other_unit(units)}".strip() + "\n"] + [
        table(header, rows)
    ]


def _tuning(group: Group) -> list[str]:
    rows = []
    for cell in (cell for cell in group.cells if len(cell.tried) > 1):
        for lr, runs in cell.tried.items():
            chosen = lr == learning_rate(cell.runs[0])
            seeds = [str(record["results"]["seed"]) for record in runs]
            dev = percent(tuning_error(cell.tried, lr))
            test = percent(fmean(map(error_rate, runs)))
            rows.append(
                (
                    cell.label,
                    whole_percent(cell.sparsity),
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
        others = [*group.dense, *(c for c in group.at(cell.sparsity) if is_reference(c.method))]
        for other in others:
            pairs = pair_runs(cell, other)
            if cell is not other and prunes(cell.method) and pairs:
                rows.append((cell.label, whole_percent(cell.sparsity), other.label, *_test(pairs)))
    if not rows:
        return []
    header = ("method", "sparsity", "against", f"difference of {group.rate_name} [95 %]")
    header_mapsswe = ("MAPSSWE: segments", "z", "two-sided p")
    note = (
        "First minus second in percentage points, over the seeds that both have: negative where "
        "the method errs less. MAPSSWE is a test of its own for each of those seeds, in their "
        "order. No correction for the number of tests is made."
    )
    return ["### Paired tests\n", note + "\n", table((*header, *header_mapsswe), rows)]


def _test(pairs: Sequence[tuple[Record, Record]]) -> tuple[str, str, str, str]:
    tests = [mapsswe(first["utterances"], second["utterances"]) for first, second in pairs]
    return (
        rate_and_interval(difference_of(pairs), "+"),
        ", ".join(str(test.segments) for test in tests),
        ", ".join(f"{test.z:+.2f}" for test in tests),
        ", ".join(p_value(test.p) for test in tests),
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
            parts.append(
                f"Sparsity {whole_percent(sparsity)} %; two independent random masks: {null}.\n"
            )
            parts.append(table(("", *labels), rows))

    seeds = []
    for cell in group.cells:
        if known := overlap(runs, combinations(cell.runs, 2)):
            seeds.append(
                (cell.label, whole_percent(cell.sparsity), *(f"{value:.3f}" for value in known))
            )

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
                    what = (cell.label, whole_percent(cell.sparsity), first.title, second.title)
                    rows.append((*what, *values))
    header = ("method", "sparsity", "first", "second", "overlap", "random masks")
    return ["## Overlap of the masks of two targets\n", table(header, rows)] if rows else []


def _zeros(group: Group) -> list[str]:
    cells = group.middle
    if not cells:
        return []
    parts = [f"### Where the zeros are, at sparsity {whole_percent(cells[0].sparsity)} %\n"]
    for part, name in ((0, "layer"), (1, "role")):
        shares = [cell.zero_shares([part]) for cell in cells]
        keys = dict.fromkeys(key for share in shares for key in share)
        rows = [
            (key[0], *(percent(share[key]) if key in share else "" for share in shares))
            for key in keys
        ]
        parts.append(table((name, *(cell.label for cell in cells)), rows))
    return parts


def _revival(group: Group) -> list[str]:
    rows = []
    for cell in group.cells:
        drifts = mask_drift(cell.runs[0])
        if not drifts:
            continue
        moments = (drifts[0], drifts[len(drifts) // 2], drifts[-1])
        rows.append(
            (
                cell.label,
                whole_percent(cell.sparsity),
                f"{len(drifts)}",
                *(f"{drift.revived:,}" for drift in moments),
                percent(sum(drift.revived for drift in drifts) / drifts[0].size, 4),
                f"{drifts[0].threshold:.3g} to {drifts[-1].threshold:.3g}",
                "" if drifts[-1].first is None else f"{drifts[-1].first:.4f}",
                f"{drifts[-1].previous:.4f}",
            )
        )

    header = (
        "method",
        "sparsity",
        "re-prunes",
        "revived at the first",
        "at the middle one",
        "at the last",
        "all together, % of the scope",
        "threshold, first to last",
        "overlap with the first mask",
        "with the one before",
    )
    note = (
        "Weights that a re-prune let back in, of the lowest seed; overlaps are of the last one, as "
        "shares of what masks of the two sparsities can have at most: 1 where none came back. A "
        "first mask that dropped nothing holds every other."
    )

    return ["### Revival\n", note + "\n", table(header, rows)] if rows else []


def _shift(group: Group) -> list[str]:
    rows = []
    for cell in [*group.dense, *group.middle]:
        tensors = cell.runs[0]["results"]["tensors"]
        order = sorted(tensors, key=lambda name: (-tensors[name]["shift"], name))
        if order:
            ends = (order[:NUM_TENSORS], order[-NUM_TENSORS:])
            shown = (", ".join(f"{_tensor(n)} {tensors[n]['shift']:.2e}" for n in e) for e in ends)
            rows.append((cell.label, whole_percent(cell.sparsity), *shown))
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
            whole_percent(cell.sparsity),
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
            rate_and_interval(cell.test),
        )
        for cell in cells
    ]
    header = ("method", "fine-tuning runs", "steps", "seconds", f"test {group.rate_name} [95 %]")
    title = f"### Error against cost, at sparsity {whole_percent(group.middle[0].sparsity)} %\n"
    return [title, table(header, rows)]


def _links(plots: Mapping[str, str]) -> list[str]:
    if not plots:
        return []
    return ["### Plots\n", "".join(f"![{caption}]({name})\n\n" for name, caption in plots.items())]


def _cost_of(key: str) -> Callable[[Record], Any]:
    return lambda record: record["results"]["cost"][key]


def _zeros_of(part: str) -> Callable[[Record], float]:
    return lambda record: record["results"]["sparsity"][part]


def _bytes_of(kind: str) -> Callable[[Record], Any]:
    return lambda record: record["results"]["bytes"][kind]


def _tensor(name: str) -> str:
    layer, role = layer_and_role(name)
    return f"{layer} {role}"


def _unique(values: Iterable[str]) -> list[str]:
    return sorted(set(values))
