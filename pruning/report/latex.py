"""Write the main tables of a report for LaTeX."""

from collections.abc import Sequence

from pruning.report.groups import Cell, Group
from pruning.report.words import percent, whole_percent

HEAD = "% Tables of `python -m pruning.report`; they need \\usepackage{booktabs}.\n"
_SPECIAL = {
    "\\": r"\textbackslash{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def latex_tables(groups: Sequence[Group]) -> str:
    """Return a tabular for each group: rates in percent, with sd over seeds and 95 % interval."""
    return HEAD + "".join(f"\n{_table(group)}" for group in groups)


def escape(text: str) -> str:
    """Return ``text`` as LaTeX typesets it."""
    return "".join(_SPECIAL.get(letter, letter) for letter in text)


def _table(group: Group) -> str:
    name = escape(group.rate_name)
    header = ("Method", r"Sparsity (\%)", rf"{name} (\%)", r"95\,\% interval", "Seeds")
    rows: list[str] = []
    for before, cell in zip([None, *group.cells], group.cells, strict=False):
        if before is not None and before.sparsity != cell.sparsity:
            rows.append("\\midrule\n")
        rows.append(_line(_row(cell)))
    return (
        f"% {' '.join(group.title.split())}\n"
        "\\begin{tabular}{lrrcr}\n\\toprule\n"
        + _line(header)
        + "\\midrule\n"
        + "".join(rows)
        + "\\bottomrule\n\\end{tabular}\n"
    )


def _row(cell: Cell) -> tuple[str, ...]:
    rate = percent(cell.test.rate)
    if cell.deviation is not None:
        rate += f" $\\pm$ {percent(cell.deviation)}"
    bounds = cell.test.interval
    interval = f"{percent(bounds[0])}--{percent(bounds[1])}" if bounds else "--"
    return (escape(cell.label), whole_percent(cell.sparsity), rate, interval, str(len(cell.runs)))


def _line(values: Sequence[str]) -> str:
    return " & ".join(values) + " \\\\\n"
