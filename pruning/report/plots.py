"""Draw the plots of a report as PNG images; matplotlib is imported where it is used."""

import io
from collections.abc import Callable, Mapping, Sequence
from itertools import permutations
from statistics import fmean
from typing import Any

import numpy as np

from data.intervals import Estimate
from pruning.report.groups import Cell, Group, mask_drift, overlap, pair_runs
from pruning.report.records import Runs
from pruning.report.words import whole_percent
from pruning.schedules import SCHEDULES, prunes

DPI = 120
# Wong's colours that are told apart with colour-blindness, and four of Tol's.
PALETTE = (
    "#000000",
    "#999999",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#0072B2",
    "#882255",
    "#117733",
    "#332288",
)
COLOURS = dict(zip(SCHEDULES, PALETTE, strict=False))  # methods that come later share a grey
MARKERS = dict(zip(SCHEDULES, "_xs^vDoP*<>", strict=False))
LINES = ("-", "--", ":", "-.")


def draw_plots(group: Group, runs: Runs) -> dict[str, tuple[str, bytes]]:
    """Draw every plot that the runs of ``group`` give matter for.

    Returns:
        Caption and PNG by file name.

    Raises:
        ValueError: If matplotlib is not installed.
    """
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise ValueError(
            'plots need matplotlib: pip install -e ".[plot]", or give --no-plots'
        ) from None

    matplotlib.use("Agg")
    kinds: dict[str, Callable[[Group, Runs], tuple[str, Any] | None]] = {
        "error_vs_sparsity": _error_vs_sparsity,
        "cost": _cost,
        "learning_curves": _learning_curves,
        "iou": _overlaps,
        "sparsity_by_layer": _sparsity_by_layer,
        "revival": _revival,
    }
    drawn = {}

    for kind, draw in kinds.items():
        if result := draw(group, runs):
            caption, figure = result
            drawn[f"{kind}-{group.slug}.png"] = (caption, _png(figure))

    return drawn


def _png(figure: Any) -> bytes:
    """Return the picture in a palette of 256 colours, a third of the bytes."""
    from matplotlib import pyplot
    from PIL import Image  # matplotlib needs it too

    drawn, packed = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI, bbox_inches="tight")
    pyplot.close(figure)
    Image.open(drawn).convert("RGB").quantize(256).save(packed, "PNG", optimize=True)
    return packed.getvalue()


def _figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        rows, columns, figsize=(width, height), squeeze=False, layout="constrained"
    )
    return figure, axes


def _styles(group: Group) -> dict[str, dict[str, Any]]:
    """Return the look of each label: colour and marker of its method, another line a variant."""
    methods = {cell.label: cell.method for cell in group.cells}
    styles: dict[str, dict[str, Any]] = {}
    for label in group.labels:
        method = methods[label]
        variant = sum(methods[other] == method for other in styles)
        styles[label] = {
            "color": COLOURS.get(method, "#444444"),
            "marker": MARKERS.get(method, "."),
            "linestyle": LINES[variant % len(LINES)],
            "markersize": 5,
            "label": label,
        }
    return styles


def _finish(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: Any, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)


def _bounds(estimate: Estimate) -> tuple[float, float]:
    """Return the interval in percent, the rate itself where there is none."""
    low, high = estimate.interval or (estimate.rate, estimate.rate)
    return 100.0 * low, 100.0 * high


def _seeds(group: Group) -> str:
    counts = sorted({len(set(cell.seeds)) for cell in group.cells})
    shown = "-".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    return f"{shown} seed{'' if shown == '1' else 's'}"


def _error_vs_sparsity(group: Group, runs: Runs) -> tuple[str, Any] | None:
    if not group.sparsities:
        return None
    figure, ((axes,),) = _figure(7.5, 4.2)
    styles = _styles(group)
    for cell in group.dense:
        axes.axhline(100 * cell.test.rate, **styles[cell.label] | {"marker": "", "linewidth": 1.2})
        if cell.test.interval:
            axes.axhspan(*_bounds(cell.test), color=PALETTE[0], alpha=0.06, linewidth=0)

    for label in group.labels:
        cells = [cell for cell in group.cells if cell.label == label and prunes(cell.method)]
        if cells:
            x = [100 * cell.sparsity for cell in cells]
            low, high = zip(*(_bounds(cell.test) for cell in cells), strict=True)
            axes.plot(x, [100 * cell.test.rate for cell in cells], **styles[label])
            axes.fill_between(x, low, high, color=styles[label]["color"], alpha=0.12, linewidth=0)
            if len(cells) == 1:
                axes.vlines(x, low, high, color=styles[label]["color"], alpha=0.4)

    title = f"{group.title}: mean of {_seeds(group)}, 95 % intervals"
    _finish(axes, title, "sparsity in scope (%)", f"test {group.rate_name} (%)")
    _legend(figure, axes)
    return f"Test {group.rate_name} against sparsity", figure


def _cost(group: Group, runs: Runs) -> tuple[str, Any] | None:
    if not group.middle:
        return None
    figure, ((axes,),) = _figure(7.5, 4.2)
    styles = _styles(group)

    for cell in [*group.dense, *group.middle]:
        style = styles[cell.label] | {"linestyle": "", "markersize": 8}
        if style["marker"] == "_":
            style["marker"] = "o"
        steps = cell.mean(lambda record: record["results"]["cost"]["steps"])
        tunings = cell.mean(lambda record: record["results"]["cost"]["fine_tuning_runs"])
        axes.vlines(steps, *_bounds(cell.test), color=style["color"], alpha=0.4)
        style["label"] = f"{cell.label}: {tunings:g} run{'' if tunings == 1 else 's'}"
        axes.plot([steps], [100 * cell.test.rate], **style)

    axes.set_xlim(left=0)
    _finish(
        axes,
        f"{group.title}: at sparsity {whole_percent(group.middle[0].sparsity)} %",
        "optimizer steps of all fine-tuning runs",
        f"test {group.rate_name} (%)",
    )
    _legend(figure, axes)

    return f"Test {group.rate_name} against the cost of training", figure


def _learning_curves(group: Group, runs: Runs) -> tuple[str, Any] | None:
    figure, ((axes,),) = _figure(7.5, 4.2)
    styles = _styles(group)
    for cell in [*group.dense, *group.middle]:
        points = _mean_dev_curve(cell, group.rate_name.lower())
        axes.plot(
            list(points),
            [100 * rate for rate in points.values()],
            **styles[cell.label] | {"markersize": 3},
        )
    at = f" at sparsity {whole_percent(group.middle[0].sparsity)} %" if group.middle else ""
    title = f"{group.title}: last fine-tuning run{at}"
    _finish(axes, title, "optimizer step", f"dev {group.rate_name} (%)")
    _legend(figure, axes)
    return f"Dev {group.rate_name} during the last fine-tuning run", figure


def _mean_dev_curve(cell: Cell, name: str) -> dict[int, float]:
    """Return the mean over seeds of the dev rate at each step of the last stage that all scored."""
    curves = []
    for record in cell.runs:
        events = record["curves"]["dev"]
        last = max((event["stage"] for event in events), default=0)
        curves.append({event["step"]: event[name] for event in events if event["stage"] == last})
    shared = [step for step in curves[0] if all(step in curve for curve in curves)]
    return {step: fmean(curve[step] for curve in curves) for step in shared}


def _overlaps(group: Group, runs: Runs) -> tuple[str, Any] | None:
    panels = {}
    labels = [label for label in group.labels if label not in {c.label for c in group.dense}]
    for sparsity in group.sparsities:
        values = np.full((len(labels), len(labels)), np.nan)
        nulls = []
        for a, b in permutations(group.at(sparsity), 2):
            if known := overlap(runs, pair_runs(a, b)):
                values[labels.index(a.label), labels.index(b.label)] = known[0]
                nulls.append(known[1])
        if nulls:
            panels[f"sparsity {whole_percent(sparsity)} %, random {fmean(nulls):.2f}"] = values
    if not panels:
        return None
    figure = _heat_maps(panels, labels, labels, 0.32, "intersection over union", numbers=True)
    figure.suptitle(f"{group.title}: overlap of the masks of two methods", fontsize=10)
    return "Overlap of the masks of two methods, with that of random masks in the titles", figure


def _sparsity_by_layer(group: Group, runs: Runs) -> tuple[str, Any] | None:
    shares = {cell.label: cell.zero_shares() for cell in group.middle}
    if not shares:
        return None
    layers = list(dict.fromkeys(layer for share in shares.values() for layer, _ in share))
    roles = list(dict.fromkeys(role for share in shares.values() for _, role in share))
    panels = {
        label: np.array([[share.get((la, role), np.nan) for la in layers] for role in roles])
        for label, share in shares.items()
    }
    figure = _heat_maps(panels, roles, layers, 0.2, "share of zeros")
    at = f"sparsity {whole_percent(group.middle[0].sparsity)} %"
    figure.suptitle(f"{group.title}: where the zeros are at {at}", fontsize=10)
    return "Share of zeros by layer and role", figure


def _heat_maps(
    panels: Mapping[str, np.ndarray],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    cell: float,
    unit: str,
    numbers: bool = False,
) -> Any:
    """Draw maps of values in [0, 1] by title, light to dark; NaN stays white."""
    rows = -(-len(panels) // 4)
    columns = -(-len(panels) // rows)
    width = max(1.6, cell * len(column_labels)) + 0.2
    height = max(1.6, cell * len(row_labels)) + 0.4
    figure, grid = _figure(columns * width + 3.0, rows * height + 1.3, rows, columns)

    for place, axes in enumerate(grid.flat):
        if place >= len(panels):
            axes.set_visible(False)
            continue
        title, values = list(panels.items())[place]
        image = axes.imshow(values, cmap="viridis_r", vmin=0.0, vmax=1.0, aspect="auto")
        axes.set_title(title, fontsize=9)
        is_lowest = place + columns >= len(panels)
        below, left = (
            (column_labels if is_lowest else []),
            (row_labels if not place % columns else []),
        )
        axes.set_xticks(range(len(below)), below, rotation=90, fontsize=8)
        axes.set_yticks(range(len(left)), left, fontsize=8)
        for (i, j), value in np.ndenumerate(values):
            if numbers and not np.isnan(value):
                text = f"{value:.2f}".removeprefix("0")
                colour = "white" if value > 0.5 else "black"
                axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=7)

    figure.colorbar(image, ax=grid, label=unit, shrink=0.9)
    return figure


def _revival(group: Group, runs: Runs) -> tuple[str, Any] | None:
    drifts = {cell.label: mask_drift(cell.runs[0]) for cell in group.middle}
    drifts = {label: found for label, found in drifts.items() if found}
    if not drifts:
        return None
    figure, ((left, right),) = _figure(10.5, 4.0, 1, 2)
    styles = _styles(group)

    for place, (label, found) in enumerate(drifts.items()):
        steps = [drift.step for drift in found]
        width = 4.0 - 3.0 * place / len(drifts)  # lines may coincide
        style = styles[label] | {"markersize": 3, "linewidth": width}
        left.plot(steps, [100 * drift.revived / drift.size for drift in found], **style)
        right.plot(steps, [drift.first for drift in found], **style)

    _finish(left, "Revived at each re-prune", "optimizer step", "weights in scope (%)")
    _finish(right, "Overlap with the first mask", "optimizer step", "share of the possible")
    title = f"{group.title}: sparsity {whole_percent(group.middle[0].sparsity)} %, lowest seed"
    figure.suptitle(title, fontsize=10)
    left.set_ylim(bottom=0)
    _legend(figure, left)

    return f"Weights that come back, and drift of the mask: {group.title}", figure
