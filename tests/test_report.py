import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import image

from pruning.report.__main__ import main
from pruning.report.groups import build_groups, describe_option, layer_and_role, mask_drift
from pruning.report.records import dump_runs, load_records, load_runs
from pruning.report.words import p_value
from tests.run_folders import write_run

METHODS = ("mpi", "omp", "parp")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of four methods, two sparsities and two seeds; of parp another learning rate too."""
    root = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        write_run(root / f"dense-{seed}", "dense", seed=seed)
        for sparsity in (0.5, 0.7):
            for method in METHODS:
                rate = 0.2 + 0.2 * sparsity
                write_run(
                    root / f"{method}-{sparsity}-{seed}", method, sparsity, seed=seed, rate=rate
                )
    write_run(root / "parp-0.5-high", sparsity=0.5, lr=1e-3, dev_rate=0.9)
    return root


@pytest.fixture(scope="module")
def report(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of these runs, plots included."""
    out = tmp_path_factory.mktemp("out") / "report"
    assert main([str(runs), "--out", str(out)]) == 0
    return out


def _page(tmp_path: Path) -> str:
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--no-plots"]) == 0
    return (tmp_path / "out" / "results.md").read_text()


def _row(page: str, start: str) -> list[str]:
    line = next(line for line in page.splitlines() if line.startswith(start))
    return [cell.strip() for cell in line.strip("|").split("|")]


def _refused(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> str:
    capsys.readouterr()
    try:
        status = main([str(argument) for argument in argv])
    except SystemExit as stop:
        status = int(stop.code or 0)
    errors = capsys.readouterr().err
    assert status == 2
    assert len(errors.splitlines()) == 1, errors
    return errors


def test_page_and_tables_are_the_same_from_runs_json(
    report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pruning.report.plots.DPI", 30)
    assert main([str(report / "runs.json"), "--out", str(tmp_path)]) == 0
    for name in ("results.md", "results.csv", "summary.csv", "costs.csv", "runs.json"):
        assert (tmp_path / name).read_bytes() == (report / name).read_bytes(), name


def test_report_holds_nothing_but_its_files(report: Path) -> None:
    names = {path.name for path in report.iterdir()}
    kinds = (
        "error_vs_sparsity",
        "against_dense",
        "iou",
        "sparsity_by_layer",
        "revival",
        "learning_curves",
        "cost",
    )
    plots = {f"{kind}-w2v2-demo-phone.png" for kind in kinds}
    tables = {"results.csv", "summary.csv", "costs.csv", "results.md", "results.html", "tables.tex"}
    assert names == plots | tables | {"runs.json"}


def test_plots_are_pictures_of_moderate_size(report: Path) -> None:
    for path in report.glob("*.png"):
        pixels = image.imread(path)
        assert min(pixels.shape[:2]) > 200, path
        assert len(np.unique(pixels @ [1.0, 300.0, 90_000.0, 0.0][: pixels.shape[-1]])) > 10, path
        assert path.stat().st_size < 150_000, path


def test_page_links_every_plot(report: Path) -> None:
    page = (report / "results.md").read_text()
    assert all(f"]({path.name})" in page for path in report.glob("*.png"))


def test_main_table_gives_the_mean_over_the_seeds_of_the_chosen_rate(
    report: Path, runs: Path
) -> None:
    row = _row((report / "results.md").read_text(), "| PARP | 50 |")
    records = [r for r in load_records([runs]) if r["name"] in ("parp-0.5-0", "parp-0.5-1")]
    rate = np.mean([record["results"]["per"]["rate"] for record in records])
    assert row[4].startswith(f"{100 * rate:.2f} [")
    assert row[2:4] == ["50.0000", "25.00"]
    deviation = np.std([record["results"]["per"]["rate"] for record in records], ddof=1)
    assert row[5:] == [f"{100 * deviation:.2f}", "20.00", "0.0001", "2", "1", "200", "60"]


def test_learning_rates_that_were_not_chosen_are_shown(report: Path) -> None:
    page = (report / "results.md").read_text()
    assert _row(page, "| PARP | 50 | 0.001 |")[4] == "90.00"
    assert _row(page, "| PARP | 50 | 0.0001 |")[-1] == "chosen"


def test_each_method_is_tested_against_dense_and_the_baselines(report: Path) -> None:
    page = (report / "results.md").read_text().split("### Paired tests")[1]
    for other in ("dense", "MPI", "OMP"):
        row = _row(page, f"| PARP | 70 | {other} |")
        assert len(row[5].split(", ")) == 2  # a test for each seed


def test_overlaps_stand_beside_those_of_random_masks(report: Path, runs: Path) -> None:
    page = (report / "results.md").read_text().split("### Overlap of the masks")[1]
    assert "Sparsity 50 %; two independent random masks: 0.333." in page
    overlaps = load_runs([report / "runs.json"]).overlaps
    pairs = [overlaps[frozenset((f"mpi-0.5-{seed}", f"parp-0.5-{seed}"))] for seed in (0, 1)]
    assert _row(page, "| MPI |")[-1] == f"{np.mean(pairs):.3f}"
    assert "Between the seeds of a method" in page


def test_overlaps_are_of_runs_that_differ_in_one_thing(report: Path) -> None:
    overlaps = load_runs([report / "runs.json"]).overlaps
    assert frozenset(("mpi-0.5-0", "mpi-0.5-1")) in overlaps
    for names in overlaps:
        first, second = (name.split("-") for name in names)
        assert sum(a != b for a, b in zip(first, second, strict=True)) == 1
        assert "dense" not in (first[0], second[0])


def test_overlap_between_targets_is_reported(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "phone")
    write_run(tmp_path / "runs" / "text", target="text")
    page = _page(tmp_path)
    row = _row(page.split("of two targets")[1], "| PARP | 50 |")
    assert row[2:] == ["w2v2-demo, phone", "w2v2-demo, text", "1.000", "0.333"]


def test_one_seed_is_said_to_be_one(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "run")
    assert "Every number is of one seed" in _page(tmp_path)


def test_several_seeds_are_not_said_to_be_one(report: Path) -> None:
    assert "one seed:" not in (report / "results.md").read_text()


def test_page_names_protocol_revision_versions_and_device(report: Path) -> None:
    page = (report / "results.md").read_text()
    for wanted in (
        "24 utterances, 6 speakers",
        "Seeds: 0, 1.",
        "0123456789ab",
        "torch 2.14.0",
        "cpu",
    ):
        assert wanted in page


def test_what_is_absent_has_no_section(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "run", "dense")
    page = _page(tmp_path)
    for title in ("Revival", "Overlap", "Paired tests", "Where the zeros", "Plots", "against cost"):
        assert title not in page


def test_data_make_groups_and_other_options_make_rows(tmp_path: Path) -> None:
    write_run(tmp_path / "a", subset="10min")
    write_run(tmp_path / "b", subset="1h")
    write_run(tmp_path / "c", subset="1h", prune_every=5)
    groups = build_groups(load_records([tmp_path]))
    assert {group.title: group.labels for group in groups} == {
        "w2v2-demo, phone, subset 10min": ["PARP"],
        "w2v2-demo, phone, subset 1h": ["PARP", "PARP, prune every 5"],
    }
    assert {group.slug for group in groups} == {
        "w2v2-demo-phone-subset-10min",
        "w2v2-demo-phone-subset-1h",
    }


def _taught(folder: Path, teacher: str | None, **options: Any) -> None:
    taught = {"teacher": teacher, "distill_task": 0.5, "distill_logits": 1.0, "temperature": 2.0}
    write_run(folder, "mpi", **taught | options)


def test_teachers_tell_methods_apart_and_those_of_each_seed_are_one(tmp_path: Path) -> None:
    for seed in (1, 12):
        _taught(tmp_path / f"plain-{seed}", None, seed=seed)
        _taught(tmp_path / f"taught-{seed}", f"runs/dense-seed{seed}", seed=seed)
    _taught(tmp_path / "other", "runs/dense-seed12", seed=1)
    _taught(tmp_path / "without", None, seed=3, temperature=4.0)  # which changes nothing
    (group,) = build_groups(load_records([tmp_path]))
    assert {cell.label: cell.seeds for cell in group.cells} == {
        "MPI": [1, 3, 12],
        "MPI, teacher dense-seed*": [1, 12],
        "MPI, teacher dense-seed12": [1],
    }


def test_seeds_that_each_begin_with_weights_of_their_own_are_one_row(tmp_path: Path) -> None:
    for seed in (1, 12):
        init = f"runs/dense-seed{seed}/best.pt"
        write_run(tmp_path / f"run-{seed}", "mpi", seed=seed, init=init)
    (group,) = build_groups(load_records([tmp_path]))
    assert [cell.seeds for cell in group.cells] == [[1, 12]]


def test_weights_of_a_teacher_are_in_a_label_where_taught_runs_differ_in_them(
    tmp_path: Path,
) -> None:
    _taught(tmp_path / "plain", None)
    _taught(tmp_path / "cold", "self", temperature=1.0)
    _taught(tmp_path / "warm", "self")
    (group,) = build_groups(load_records([tmp_path]))
    labels = ["MPI", "MPI, teacher self", "MPI, teacher self, temperature 1"]
    assert group.labels == labels


def _drift(events: list[tuple[float, int, int, float, float]]) -> list[tuple[Any, float]]:
    """Overlaps of a run of 1000 weights, of re-prunes: sparsity, pruned, revived, overlaps."""
    names = ("sparsity", "newly_pruned", "revived", "iou_first", "iou_previous")
    reprunes = [{"step": 1, "threshold": 0.1} | dict(zip(names, e, strict=True)) for e in events]
    record = {"curves": {"reprune": reprunes}, "results": {"tensors": {"a": {"size": 1000}}}}
    return [(drift.first, drift.previous) for drift in mask_drift(record)]


def test_a_mask_that_only_grew_sparser_overlaps_with_the_first_in_full() -> None:
    # PARP-P from 0.35 to 0.7: 650 weights are kept at first, 400 and 300 of those later.
    grown = [(0.6, 250, 0, 400 / 650, 400 / 650), (0.7, 100, 0, 300 / 650, 300 / 400)]
    assert np.allclose(_drift(grown), 1.0)


def test_weights_that_came_back_lower_the_overlap_with_the_first_mask() -> None:
    # 650 kept, then 300 of which 10 are new: they share 290 and keep 660 together.
    moved = [(0.7, 360, 10, 290 / 660, 290 / 660)]
    assert _drift(moved)[0][0] == pytest.approx(290 / 660 / (300 / 650))


def test_a_first_mask_that_dropped_nothing_has_no_overlap_to_report() -> None:
    assert _drift([(0.4, 400, 0, 0.6, 0.6), (0.7, 300, 0, 0.3, 0.5)]) == [(None, 1.0), (None, 1.0)]


def test_overlap_of_equal_masks_is_the_intersection_over_union() -> None:
    assert _drift([(0.5, 20, 20, 480 / 520, 480 / 520)]) == [(480 / 520, 480 / 520)]


def test_rows_of_a_ladder_name_what_differs_and_leave_out_defaults(tmp_path: Path) -> None:
    write_run(tmp_path / "dense", "dense", hold=None)
    write_run(tmp_path / "a", "gmp", hold=0.2)
    write_run(tmp_path / "b", "gmp", hold=0.2, score="fisher")
    write_run(tmp_path / "c", "gmp", hold=0.5, latent=True, cache="somewhere")
    (group,) = build_groups(load_records([tmp_path]))
    assert group.labels == [
        "dense",
        "GMP, hold 0.2",
        "GMP, hold 0.2, score fisher",
        "GMP, hold 0.5, latent",
    ]
    assert group.varied == ["hold", "latent", "score"]


def test_rows_without_training_are_one_shot(tmp_path: Path) -> None:
    for steps in (0, 200):
        path = write_run(tmp_path / "runs" / str(steps), "omp", steps=steps) / "results.json"
        results = json.loads(path.read_text())
        path.write_text(json.dumps(results | {"steps": steps}))
    (group,) = build_groups(load_records([tmp_path]))
    assert group.labels == ["OMP, one-shot", "OMP, steps 200"]
    assert "one-shot rows have none" in _page(tmp_path)


def test_table_of_options_says_what_each_row_was_trained_with(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "dense", "dense", hold=None)  # 0.4 by its recipe
    write_run(tmp_path / "runs" / "gmp", "gmp", hold=0.2)
    page = _page(tmp_path).split("### Options")[1]
    assert _row(page, "| method |") == ["method", "sparsity", "hold"]
    assert _row(page, "| dense |") == ["dense", "0", "0.4"]
    assert _row(page, "| GMP |") == ["GMP", "50", "0.2"]


def test_a_seed_that_was_run_twice_counts_once_and_is_named(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_run(tmp_path / "runs" / name, rate=0.2 if name == "first" else 0.3)
    page = _page(tmp_path)
    assert "Left out, for runs of the same options and seed: second." in page
    assert _row(page, "| PARP | 50 |")[8] == "1"


def _speakers(errors: int, of: int = 40) -> list[str]:
    """Operations of 24 utterances of 6 speakers, of which every one has so many errors."""
    return ["S" * errors + "=" * (of - errors)] * 24


@pytest.mark.parametrize(("errors", "verdict"), [(10, "yes"), (9, "yes"), (11, "no")])
def test_a_pruned_model_is_no_worse_where_the_limit_is_under_the_margin(
    tmp_path: Path, errors: int, verdict: str
) -> None:
    for seed in (0, 1):
        write_run(tmp_path / "runs" / f"d{seed}", "dense", seed=seed, operations=_speakers(10))
        write_run(tmp_path / "runs" / f"p{seed}", seed=seed, operations=_speakers(errors))
    row = _row(_page(tmp_path).split("### Sparse minus dense")[1], "| PARP | 50 |")
    points = f"{100 * (errors - 10) / 40:+.2f}"
    assert row[2:] == ["dense", "2", f"{points} [{points}, {points}]", points, verdict]


def test_margin_of_no_worse_can_be_given(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "dense", "dense", operations=_speakers(10))
    write_run(tmp_path / "runs" / "parp", operations=_speakers(11))
    page, out = tmp_path / "out" / "results.md", str(tmp_path / "out")
    assert main([str(tmp_path / "runs"), "--out", out, "--no-plots", "--margin", "0.03"]) == 0
    row = _row(page.read_text().split("### Sparse minus dense")[1], "| PARP | 50 |")
    assert row[-1] == "yes"
    assert "no worse by 3" in page.read_text()


@pytest.mark.parametrize("margin", ["2", "-0.01", "nan", "much"])
def test_margin_that_is_no_fraction_is_refused(
    margin: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--margin" in _refused(capsys, "runs", "--out", "x", f"--margin={margin}")


def test_few_utterances_have_no_interval_and_the_page_says_so(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "run", operations=["=S"] * 9)
    page = _page(tmp_path)
    assert _row(page, "| PARP | 50 |")[4] == "50.00 (no interval)"
    assert "There are no intervals, which take 10 utterances." in page


def test_few_speakers_have_intervals_over_utterances_and_the_page_says_so(report: Path) -> None:
    page = (report / "results.md").read_text()
    assert "Intervals are by bootstrap over utterances: the test set has no ten speakers" in page


def test_summary_has_mean_and_deviation_over_the_seeds(report: Path, runs: Path) -> None:
    with open(report / "summary.csv", newline="") as file:
        rows = {(row["label"], row["sparsity"]): row for row in csv.DictReader(file)}
    records = [r for r in load_records([runs]) if r["name"] in ("parp-0.7-0", "parp-0.7-1")]
    rates = [record["results"]["per"]["rate"] for record in records]
    row = rows["PARP", "0.7"]
    assert float(row["test_mean"]) == pytest.approx(np.mean(rates))
    assert float(row["test_sd"]) == pytest.approx(np.std(rates, ddof=1))
    assert (row["seeds"], row["ci_unit"]) == ("2", "utterance")


def test_a_p_value_too_small_to_tell_is_a_bound() -> None:
    assert [p_value(p) for p in (0.0, 9e-5, 2e-4, 0.03)] == ["<0.0001", "<0.0001", "0.0002", "0.03"]


@pytest.mark.parametrize(
    ("name", "layer", "role"),
    [
        ("encoder.layers.3.ffn.fc1.bias", "encoder 3", "ffn.fc1.bias"),
        ("layers.11.attention.q_proj.weight", "layer 11", "attention.q_proj.weight"),
        ("head.weight", "-", "head.weight"),
    ],
)
def test_parameter_names_are_layer_and_role(name: str, layer: str, role: str) -> None:
    assert layer_and_role(name) == (layer, role)


def test_shares_of_zeros_are_counted_over_the_runs(runs: Path) -> None:
    (group,) = build_groups(load_records([runs]))
    shares = group.at(0.5)[0].zero_shares([0])
    assert shares == {("encoder 0",): 0.5, ("encoder 1",): 0.5}


def test_compare_prints_both_tests_and_writes_nothing(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [str(runs / name) for name in ("parp-0.5-0", "mpi-0.5-0")]
    assert main(["--compare", *folders]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["parp-0.5-0", "mpi-0.5-0"]
    assert "points, paired over utterances" in lines[3]
    assert lines[2] == "differ in method: parp and mpi"
    assert lines[4].startswith("MAPSSWE: ")
    assert not list(tmp_path.iterdir())


def test_compare_says_what_else_the_runs_differ_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = write_run(tmp_path / "first", sparsity=0.5)
    second = write_run(tmp_path / "second", sparsity=0.7, lr=2e-4)
    for name, key, value in (("config.json", "git", "fedcba"), ("results.json", "steps", 400)):
        content = json.loads((second / name).read_text())
        (second / name).write_text(json.dumps(content | {key: value}))
    assert main(["--compare", str(first), str(second)]) == 0
    lines = capsys.readouterr().out.splitlines()
    for wanted in (
        "differ in sparsity: 0.5 and 0.7",
        "differ in steps: 200 and 400",
        "differ in revision: 0123456789ab and fedcba",
        "differ in lr: 0.0001 and 0.0002",
    ):
        assert lines.count(wanted) == 1
    assert sum(line.startswith("differ in ") for line in lines) == 4


def test_compare_finds_runs_by_name_in_a_report(
    report: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(report / "runs.json"), "--compare", "dense-0", "dense-0"]) == 0
    assert "difference +0.00 [+0.00, +0.00] points" in capsys.readouterr().out


def test_compare_of_an_unknown_run_is_refused(
    report: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = _refused(capsys, report / "runs.json", "--compare", "dense-0", "nobody")
    assert "nobody is neither a run folder nor the name of a run (dense-0" in line


def test_compare_of_a_folder_of_many_runs_is_refused(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "holds 15 runs: give one" in _refused(capsys, "--compare", runs, runs / "dense-0")


def test_compare_of_other_utterances_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [write_run(tmp_path / str(n), operations=["=="] * n) for n in (2, 3)]
    assert "different utterances (2 and 3)" in _refused(capsys, "--compare", *folders)


def test_compare_of_other_targets_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [write_run(tmp_path / target, target=target) for target in ("phone", "text")]
    assert "compare runs with the same target" in _refused(capsys, "--compare", *folders)


def test_out_that_is_a_file_is_refused_and_kept(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("precious")
    assert "file is a file: give a folder" in _refused(capsys, runs, "--out", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "precious"


def test_no_finished_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = _refused(capsys, tmp_path, "--out", tmp_path / "out")
    assert f"no results.json under {tmp_path}: finish a run, or give" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("argv", [[], ["runs"], ["--out", "x"]])
def test_flags_that_say_nothing_to_do_are_refused(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "give RUNS and --out DIR, or --compare" in _refused(capsys, *argv)


def test_out_without_runs_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--out needs RUNS" in _refused(capsys, "--compare", "a", "b", "--out", "x")


def test_damaged_masks_leave_the_report_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [write_run(tmp_path / "runs" / str(seed), seed=seed) for seed in (0, 1)]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.md").write_text("old")
    (folders[0] / "masks.pt").write_bytes(b"damaged")
    line = _refused(capsys, tmp_path / "runs", "--out", tmp_path / "out", "--no-plots")
    assert "masks.pt can't be read as a mask file" in line
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["results.md"]
    assert (tmp_path / "out" / "results.md").read_text() == "old"


def test_missing_masks_leave_the_overlaps_out(tmp_path: Path) -> None:
    for seed in (0, 1):
        (write_run(tmp_path / "runs" / str(seed), seed=seed) / "masks.pt").unlink()
    assert "Overlap" not in _page(tmp_path)


def test_missing_matplotlib_is_one_line_and_writes_nothing_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "runs" / "run")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.md").write_text("old")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    line = _refused(capsys, tmp_path / "runs", "--out", tmp_path / "out")
    assert 'pip install -e ".[plot]"' in line
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["results.md"]
    assert (tmp_path / "out" / "results.md").read_text() == "old"


def test_an_older_report_is_replaced(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "run")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.md").write_text("old")
    assert "w2v2-demo, phone" in _page(tmp_path)
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_runs_json_has_a_line_for_each_run(runs: Path) -> None:
    text = dump_runs(load_runs([runs]))
    assert sum(line.startswith('{"name"') for line in text.splitlines()) == 15


def test_results_of_other_utterances_than_the_alignments_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run")
    lines = (run / "test.jsonl").read_text().splitlines(keepends=True)
    (run / "test.jsonl").write_text("".join(lines[:5]))
    errors = _refused(capsys, run, "--out", tmp_path / "out", "--no-plots")
    assert f"{run / 'test.jsonl'}: its alignments have" in errors


def test_report_into_the_folder_of_a_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run")
    assert "is the folder of a run" in _refused(capsys, run, "--out", run)


def test_a_long_name_of_a_folder_is_cut_in_a_label() -> None:
    said = describe_option("teacher", "runs/study/" + "gmp-" + 30 * "long" + "-seed0")
    assert said == "teacher gmp-longlonglong...nglong-seed0"
