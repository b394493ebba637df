"""Make tables and plots of finished runs, or compare two of them.

    python -m pruning.report runs/sweep --out docs/sweep         # folders of train.py
    python -m pruning.report docs/sweep/runs.json --out docs/sweep
    python -m pruning.report runs --compare parp-0 mpi-0         # paired tests, nothing written

A report is runs.json (from which all else can be made again), results.csv, summary.csv, costs.csv,
results.md with its plots, results.html, which needs no other file, and tables.tex. What was there
before is replaced when everything has been computed.
"""

import sys
from argparse import ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path

from data.files import JsonObject, write_files
from data.intervals import UNITS
from data.options import OptionParser, command, run_program
from data.significance import mapsswe, pooled_rate
from pruning.report.groups import add_overlaps, build_groups, difference_of
from pruning.report.html import html_page
from pruning.report.latex import latex_tables
from pruning.report.plots import FORMATS, draw_plots
from pruning.report.records import (
    Record,
    Runs,
    costs_csv,
    dump_runs,
    learning_rate,
    load_records,
    load_runs,
    rate_name,
    results_csv,
    sparsity,
    telling_options,
)
from pruning.report.tables import MARGIN, results_page, summary_csv
from pruning.report.words import LEAST_P, describe_value, p_value, rate_and_interval
from pruning.report.worst import worst_utterances


def write_report(
    runs: Runs, out: Path, formats: Sequence[str] = ("png",), margin: float = MARGIN
) -> None:
    """Write the report of ``runs`` into the folder ``out``.

    Args:
        runs: What :func:`load_runs` returned; overlaps that it lacks are added.
        out: Folder, made where it is missing; files of the same names are replaced.
        formats: What plots are written as, "png" or "pdf"; none are drawn where it is empty.
        margin: What a pruned model may err more than a dense one and count as no worse.

    Raises:
        ValueError: If ``out`` is a file or can't be written, a mask file is damaged, runs of a
            group were scored on different utterances, or matplotlib is missing.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: give a folder as --out")
    groups = build_groups(runs.records)
    add_overlaps(runs, groups)
    wanted = tuple(dict.fromkeys((*formats, "png")))  # the HTML page shows PNG
    drawn = {group.slug: draw_plots(group, runs, wanted) if formats else [] for group in groups}
    shown = formats[0] if formats and "png" not in formats else "png"
    captions = {
        slug: {f"{plot.name}.{shown}": plot.caption for plot in plots}
        for slug, plots in drawn.items()
    }
    page = results_page(runs, groups, captions, margin)
    every = [plot for plots in drawn.values() for plot in plots]
    pictures = {f"{plot.name}.{shown}": plot.images["png"] for plot in every}
    worst = {group.title: worst_utterances(group, runs) for group in groups}
    contents = {
        "runs.json": dump_runs(runs).encode(),
        "results.csv": results_csv(runs.records).encode(),
        "costs.csv": costs_csv(runs.records).encode(),
        "summary.csv": summary_csv(groups).encode(),
        "results.md": page.encode(),
        "results.html": html_page(page, pictures, worst).encode(),
        "tables.tex": latex_tables(groups).encode(),
    }
    contents |= {f"{plot.name}.{kind}": plot.images[kind] for plot in every for kind in formats}
    write_files({out / name: content for name, content in contents.items()}, "give another --out")


def compare(first: Record, second: Record) -> str:
    """Return a few lines on whether two runs differ.

    Raises:
        ValueError: If they have different targets, or were scored on different utterances.
    """
    names = [rate_name(record).upper() for record in (first, second)]
    targets = [record["results"]["target"] for record in (first, second)]
    if names[0] != names[1] or targets[0] != targets[1]:
        raise ValueError(
            f"{first['name']} has target {targets[0]}, {second['name']} {targets[1]}: "
            "compare runs with the same target"
        )

    utterances = first["utterances"], second["utterances"]
    difference = difference_of([(first, second)])
    test = mapsswe(*utterances)
    lines = [
        f"{record['name']}: {name} {rate_and_interval(pooled_rate([record['utterances']]))} %"
        for name, record in zip(names, (first, second), strict=True)
    ]
    lines += [f"differ in {name}: {a} and {b}" for name, a, b in differences(first, second)]
    how = "no interval" if difference.unit is None else f"paired over {UNITS[difference.unit]}"
    lines.append(f"difference {rate_and_interval(difference, '+')} points, {how}")
    relation = "" if test.p < LEAST_P else "= "
    lines.append(
        f"MAPSSWE: {test.segments} segments, mean difference {test.mean:+.4f} errors, "
        f"z {test.z:+.3f}, two-sided p {relation}{p_value(test.p)}"
    )

    return "\n".join(lines) + "\n"


def differences(first: Record, second: Record) -> list[tuple[str, str, str]]:
    """Return what two runs differ in beside their results: options, steps, code."""
    told = [telling_options(record) | recorded(record) for record in (first, second)]
    return [
        (name.replace("_", " "), describe_value(a), describe_value(b))
        for name in sorted({*told[0], *told[1]})
        if (a := told[0].get(name)) != (b := told[1].get(name))
    ]


def recorded(record: Record) -> JsonObject:
    """Return what else tells a run from others: what was decided for it, and the code."""
    results = record["results"]
    return {
        "sparsity": sparsity(record),
        "lr": learning_rate(record),
        "steps": results["steps"],
        "revision": str(record["environment"]["git"])[:12],
    }


def find_run(name: str, runs: Runs) -> Record:
    """Return the run of that name, or in the folder of that path.

    Raises:
        ValueError: If there is none, or more than one.
    """
    named = [record for record in runs.records if record["name"] == name]
    if named:
        return named[0]
    if not Path(name).exists():
        known = ", ".join(record["name"] for record in runs.records[:5]) or "none given"
        raise ValueError(f"{name} is neither a run folder nor the name of a run ({known})")
    records = load_records([Path(name)])
    if len(records) > 1:
        raise ValueError(f"{name} holds {len(records)} runs: give one of them")
    return records[0]


def fraction(text: str) -> float:
    """Read a number from 0 to 1; argparse makes a message of the ValueError."""
    value = float(text)
    if not 0.0 <= value <= 1.0:
        raise ArgumentTypeError(f"{text} is no fraction: give one from 0 to 1, as 0.01")
    return value


def plot_formats(text: str) -> tuple[str, ...]:
    """Read formats of plots, joined by commas; argparse makes a message of the error."""
    names = tuple(dict.fromkeys(text.split(",")))
    if unknown := [name for name in names if name not in FORMATS]:
        raise ArgumentTypeError(f"{unknown[0]!r} is unknown: give {', '.join(FORMATS)}, or both")
    return names


def run_command(argv: Sequence[str] | None) -> None:
    """Do what the command line says."""
    description = (__doc__ or "").split("\n")[0]
    parser = OptionParser(prog=command("report"), description=description, allow_abbrev=False)
    runs_help = "run folders, folders that hold some, or runs.json of a report"
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUNS", help=runs_help)
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write the report to")
    compare_help = "test two runs, each a folder or the name of one of RUNS, and print the result"
    parser.add_argument("--compare", nargs=2, metavar=("RUN_A", "RUN_B"), help=compare_help)
    margin_help = (
        "error rate, a fraction, that a pruned model may have more than a dense one and be called "
        f"no worse (default {MARGIN:g})"
    )
    parser.add_argument("--margin", type=fraction, default=MARGIN, metavar="RATE", help=margin_help)
    format_help = "what plots are written as, at 300 dpi: png, pdf, or png,pdf (default png)"
    parser.add_argument("--format", type=plot_formats, metavar="FORMATS", help=format_help)
    parser.add_argument("--no-plots", action="store_true", help="make no plots")
    arguments = parser.parse_args(argv)
    if not arguments.compare and not (arguments.runs and arguments.out):
        parser.error("give RUNS and --out DIR, or --compare RUN_A RUN_B")
    if arguments.out and not arguments.runs:
        parser.error("--out needs RUNS to report")
    if arguments.format and arguments.no_plots:
        parser.error("--format is of plots, and --no-plots makes none: leave one out")
    if arguments.out and (arguments.out / "metrics.jsonl").is_file():
        raise ValueError(f"{arguments.out} is the folder of a run: give the report one of its own")
    formats = () if arguments.no_plots else arguments.format or ("png",)
    runs = load_runs(arguments.runs)
    for name in runs.repeated:
        sys.stderr.write(f"{name} was run twice with the same options: the first given counts\n")
    if arguments.compare:
        first, second = (find_run(name, runs) for name in arguments.compare)
        sys.stdout.write(compare(first, second))

    if arguments.out:
        write_report(runs, arguments.out, formats, arguments.margin)
        sys.stdout.write(f"{len(runs.records)} runs: {arguments.out / 'results.md'}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    return run_program(command("report"), lambda: run_command(argv))


if __name__ == "__main__":
    sys.exit(main())
