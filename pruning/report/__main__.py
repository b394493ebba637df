"""Make tables and plots of finished runs, or compare two of them.

    python -m pruning.report runs/sweep --out docs/sweep         # folders of train.py
    python -m pruning.report docs/sweep/runs.json --out docs/sweep
    python -m pruning.report runs --compare parp-0 mpi-0         # paired tests, nothing written

A report is runs.json (from which all else can be made again), results.csv, costs.csv, results.md
and PNG plots. What was there before is replaced when everything has been computed.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from data.files import write_files
from data.options import OptionParser, command, run_program
from data.significance import mapsswe, paired_bootstrap, pooled_interval
from pruning.report.groups import add_overlaps, build_groups
from pruning.report.plots import draw_plots
from pruning.report.records import (
    Record,
    Runs,
    costs_csv,
    dump_runs,
    error_rate,
    load_records,
    load_runs,
    rate_name,
    results_csv,
)
from pruning.report.tables import results_page


def write_report(runs: Runs, out: Path, plots: bool = True) -> None:
    """Write the report of ``runs`` into the folder ``out``.

    Args:
        runs: What :func:`load_runs` returned; overlaps that it lacks are added.
        out: Folder, made where it is missing; files of the same names are replaced.
        plots: Whether to draw plots.

    Raises:
        ValueError: If ``out`` is a file or can't be written, a mask file is damaged, runs of a
            group were scored on different utterances, or matplotlib is missing.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: give a folder as --out")
    groups = build_groups(runs.records)
    add_overlaps(runs, groups)
    drawn = {group.slug: draw_plots(group, runs) if plots else {} for group in groups}
    captions = {
        slug: {name: caption for name, (caption, _) in images.items()}
        for slug, images in drawn.items()
    }
    contents = {
        "runs.json": dump_runs(runs).encode(),
        "results.csv": results_csv(runs.records).encode(),
        "costs.csv": costs_csv(runs.records).encode(),
        "results.md": results_page(runs, groups, captions).encode(),
    }
    contents |= {name: png for images in drawn.values() for name, (_, png) in images.items()}
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
    difference = paired_bootstrap(*utterances)
    test = mapsswe(*utterances)
    lines = []

    for record in (first, second):
        low, high = pooled_interval(record["utterances"])
        lines.append(
            f"{record['name']}: {names[0]} {error_rate(record):.4f} [{low:.4f}, {high:.4f}]"
        )

    speakers = len({line["speaker"] for line in utterances[0]})
    lines.append(
        f"difference {difference.rate:+.4f}, 95 % interval [{difference.low:+.4f}, "
        f"{difference.high:+.4f}] by paired bootstrap over {speakers} speakers"
    )
    lines.append(
        f"MAPSSWE: {test.segments} segments, mean difference {test.mean:+.4f} errors, "
        f"z {test.z:+.3f}, two-sided p {test.p:.4g}"
    )

    return "\n".join(lines) + "\n"


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


def run_command(argv: Sequence[str] | None) -> None:
    """Do what the command line says."""
    description = (__doc__ or "").split("\n")[0]
    parser = OptionParser(prog=command("report"), description=description, allow_abbrev=False)
    runs_help = "run folders, folders that hold some, or runs.json of a report"
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUNS", help=runs_help)
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write the report to")
    compare_help = "test two runs, each a folder or the name of one of RUNS, and print the result"
    parser.add_argument("--compare", nargs=2, metavar=("RUN_A", "RUN_B"), help=compare_help)
    parser.add_argument("--no-plots", action="store_true", help="make no PNG plots")
    arguments = parser.parse_args(argv)
    if not arguments.compare and not (arguments.runs and arguments.out):
        parser.error("give RUNS and --out DIR, or --compare RUN_A RUN_B")
    if arguments.out and not arguments.runs:
        parser.error("--out needs RUNS to report")
    runs = load_runs(arguments.runs)
    for name in runs.repeated:
        sys.stderr.write(f"{name} was run twice with the same options: the first given counts\n")
    if arguments.compare:
        first, second = (find_run(name, runs) for name in arguments.compare)
        sys.stdout.write(compare(first, second))

    if arguments.out:
        write_report(runs, arguments.out, plots=not arguments.no_plots)
        sys.stdout.write(f"{len(runs.records)} runs: {arguments.out / 'results.md'}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    return run_program(command("report"), lambda: run_command(argv))


if __name__ == "__main__":
    sys.exit(main())
