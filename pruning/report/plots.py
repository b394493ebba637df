"""Draw the plots of a report as PNG images; matplotlib is imported where it is used."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from statistics import fmean, median
from textwrap import fill
from typing import Any

import numpy as np

from data.intervals import Estimate
from pruning.report.groups import Cell, Group, difference_of, mask_drift, overlap, pair_runs
from pruning.report.records import Runs, error_rate
from pruning.report.words import whole_percent
from pruning.schedules import SCHEDULES

DPI = 300
BESIDE = 0.008  # of the range of sparsities, between the rows of one
TITLE_LETTERS = 62
LABEL_LETTERS = 44
CURVE_ROOM = 1.5  # times the median of a learning curve; early scores are often far above
LONG_LABEL = 12  # letters; longer ones stand at the rows alone, with numbers
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
OTHERS = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#999999")
"""Colours of further rows of one method, in turn."""


@dataclass(frozen=True)
class Plot:
    """A figure of a report.

    Attributes:
        name: What its files are called, without an ending.
        caption: What it shows.
        images: The picture by format, a key of ``FORMATS``.
    """

    name: str
    caption: str
    images: Mapping[str, bytes]


def draw_plots(group: Group, runs: Runs, formats: Sequence[str] = ("png",)) -> list[Plot]:
    """Draw every plot that the runs of ``group`` give matter for.

    Args:
        group: What to draw.
        runs: With the overlaps of the masks.
        formats: Keys of ``FORMATS``.

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
    matplotlib.rcParams["pdf.fonttype"] = 42  # letters that other programs can edit
    kinds: dict[str, Callable[[Group, Runs], tuple[str, Any] | None]] = {
        "error_vs_sparsity": _error_vs_sparsity,
        "against_dense": _against_dense,
        "cost": _cost,
        "learning_curves": _learning_curves,
        "iou": _overlaps,
        "sparsity_by_layer": _sparsity_by_layer,
        "revival": _revival,
    }
    drawn = []

    for kind, draw in kinds.items():
        if result := draw(group, runs):
            caption, figure = result
            images = {name: FORMATS[name](figure) for name in formats}
            _close(figure)
            drawn.append(Plot(f"{kind}-{group.slug}", caption, images))

    return drawn


def _close(figure: Any) -> None:
    from matplotlib import pyplot

    pyplot.close(figure)


def _png(figure: Any) -> bytes:
    """Return the picture in a palette of 256 colours, a third of the bytes."""
    from PIL import Image  # matplotlib needs it too

    drawn = io.BytesIO()
    packed = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI, bbox_inches="tight")
    picture = Image.open(drawn).convert("RGB").quantize(256)
    picture.save(packed, "PNG", optimize=True, dpi=(DPI, DPI))
    return packed.getvalue()


def _pdf(figure: Any) -> bytes:
    """Return the picture as PDF, without the time at which it was drawn."""
    drawn = io.BytesIO()
    figure.savefig(
        drawn, format="pdf", dpi=DPI, bbox_inches="tight", metadata={"CreationDate": None}
    )
    return drawn.getvalue()


FORMATS: dict[str, Callable[[Any], bytes]] = {"png": _png, "pdf": _pdf}
"""What a picture can be written as, by the ending of its file."""


def _figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        rows, columns, figsize=(width, height), squeeze=False, layout="constrained"
    )
    return figure, axes


def _styles(group: Group) -> dict[str, dict[str, Any]]:
    """Return the look of each label.

    The first row of a method has the method's colour, further ones have others; all have its
    marker, and lines differ.
    """
    methods = {cell.label: cell.method for cell in group.cells}
    styles: dict[str, dict[str, Any]] = {}
    for label in group.labels:
        method = methods[label]
        variant = sum(methods[other] == method for other in styles)
        own = COLOURS.get(method, "#444444")
        others = [colour for colour in OTHERS if colour != own]
        styles[label] = {
            "color": others[(variant - 1) % len(others)] if variant else own,
            "marker": MARKERS.get(method, "."),
            "linestyle": LINES[variant % len(LINES)],
            "markersize": 5,
            "label": fill(label, LABEL_LETTERS),
        }
    return styles


def _finish(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(fill(title, TITLE_LETTERS), fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: Any, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) < 2:
        return
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
    if not group.sparsities or (group.dense and len(group.sparsities) < 2):
        return None  # the differences to dense show a single sparsity better
    figure, ((axes,),) = _figure(7.5, 4.2)
    styles = _styles(group)
    for cell in group.dense:
        axes.axhline(100 * cell.test.rate, **styles[cell.label] | {"marker": "", "linewidth": 1.2})
        if cell.test.interval:
            axes.axhspan(*_bounds(cell.test), color=PALETTE[0], alpha=0.06, linewidth=0)

    pruned = [label for label in group.labels if label not in {c.label for c in group.dense}]
    room = 100 * (group.sparsities[-1] - group.sparsities[0]) * BESIDE
    for place, label in enumerate(pruned):
        cells = [cell for cell in group.cells if cell.label == label]
        # Intervals stand side by side: bands of many methods would hide one another.
        beside = room * (place - (len(pruned) - 1) / 2)
        x = [100 * cell.sparsity + beside for cell in cells]
        low, high = zip(*(_bounds(cell.test) for cell in cells), strict=True)
        axes.plot(x, [100 * cell.test.rate for cell in cells], **styles[label])
        axes.vlines(x, low, high, color=styles[label]["color"], alpha=0.5, linewidth=1)

    axes.set_xticks([100 * sparsity for sparsity in group.sparsities])
    title = f"{group.title}: mean of {_seeds(group)}, 95 % intervals"
    _finish(axes, title, "sparsity in scope (%)", f"test {group.rate_name} (%)")
    _legend(figure, axes)
    return f"Test {group.rate_name} against sparsity", figure


def _against_dense(group: Group, runs: Runs) -> tuple[str, Any] | None:
    """Draw the difference to dense of every row at the middle sparsity, with its interval."""
    if not group.dense or not group.middle:
        return None
    dense = min(group.dense, key=lambda cell: cell.mean(lambda record: error_rate(record, "dev")))
    rows = {cell.label: pair_runs(cell, dense) for cell in group.middle}
    found = {label: difference_of(pairs) for label, pairs in rows.items() if pairs}
    if not found:
        return None
    lines = sum(len(fill(label, LABEL_LETTERS).split("\n")) for label in found)
    figure, ((axes,),) = _figure(7.5, 1.3 + 0.1 * len(found) + 0.22 * lines)
    styles = _styles(group)

    for place, (label, difference) in enumerate(found.items()):
        colour = styles[label]["color"]
        axes.hlines(place, *_bounds(difference), color=colour, linewidth=1.5)
        axes.plot([100 * difference.rate], [place], marker="o", markersize=5, color=colour)

    axes.axvline(0.0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(found)), [fill(label, LABEL_LETTERS) for label in found])
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.margins(x=0.08)
    at = f"sparsity {whole_percent(group.middle[0].sparsity)} %"
    title = f"{group.title}: {at}, against {dense.label}"
    _finish(axes, title, f"difference of test {group.rate_name} (points), 95 % interval", "")
    return f"Sparse minus dense at {at}, paired", figure


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
        style["label"] += f": {tunings:g} run{'' if tunings == 1 else 's'}"
        axes.plot([steps], [100 * cell.test.rate], **style)

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
    curves = []
    for cell in [*group.dense, *group.middle]:
        points = _mean_dev_curve(cell, group.rate_name.lower())
        curves.append([100 * rate for rate in points.values()])
        axes.plot(
            list(points),
            curves[-1],
            **styles[cell.label] | {"markersize": 3},
        )
    at = f" at sparsity {whole_percent(group.middle[0].sparsity)} %" if group.middle else ""
    title = f"{group.title}: last fine-tuning run{at}"
    highest = CURVE_ROOM * max((median(curve) for curve in curves if curve), default=100.0)
    if any(rate > highest for curve in curves for rate in curve):
        lowest = min(min(curve) for curve in curves if curve)
        axes.set_ylim(lowest - 0.05 * (highest - lowest), highest)
        title += ", what is higher cut off"
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
    rows = labels
    columns = labels
    if max(map(len, labels)) > LONG_LABEL:
        columns = [f"{place}" for place in range(1, len(labels) + 1)]
        rows = [
            fill(f"{label}  {place}", LABEL_LETTERS)
            for label, place in zip(labels, columns, strict=True)
        ]
    figure = _heat_maps(panels, rows, columns, 0.32, "intersection over union", numbers=True)
    figure.suptitle(f"{group.title}: overlap of the masks of two methods", fontsize=10)
    return "Overlap of the masks of two methods, with that of random masks in the titles", figure


def _sparsity_by_layer(group: Group, runs: Runs) -> tuple[str, Any] | None:
    shares = {cell.label: cell.zero_shares() for cell in group.middle}
    if not shares:
        return None
    layers = list(dict.fromkeys(layer for share in shares.values() for layer, _ in share))
    roles = list(dict.fromkeys(role for share in shares.values() for _, role in share))
    panels = {
        label: 100 * np.array([[share.get((la, role), np.nan) for la in layers] for role in roles])
        for label, share in shares.items()
    }
    figure = _heat_maps(panels, roles, layers, 0.2, "zeros (%)")
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
    """Draw maps of values by title, light to dark over the values there are; NaN stays white."""
    known = np.concatenate([values[~np.isnan(values)] for values in panels.values()])
    low = float(known.min())
    high = float(known.max())
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
        image = axes.imshow(values, cmap="viridis_r", vmin=low, vmax=high, aspect="auto")
        axes.set_title(fill(title, 26), fontsize=9)
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
                colour = "white" if value > (low + high) / 2 else "black"
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
        if found[0].first is not None:
            right.plot(steps, [drift.first for drift in found], **style)

    _finish(left, "Revived at each re-prune", "optimizer step", "weights in scope (%)")
    _finish(right, "Overlap with the first mask", "optimizer step", "share of the possible")
    title = f"{group.title}: sparsity {whole_percent(group.middle[0].sparsity)} %, lowest seed"
    figure.suptitle(title, fontsize=10)
    left.set_ylim(bottom=0)
    overlaps = [drift.first for found in drifts.values() for drift in found]
    lowest = min((overlap for overlap in overlaps if overlap is not None), default=None)
    if lowest is None:
        right.set_visible(False)
    else:
        room = 0.05 * (1.0 - lowest) + 0.001
        right.set_ylim(lowest - room, 1.0 + room)
    _legend(figure, left)

    return f"Weights that come back, and drift of the mask: {group.title}", figure
