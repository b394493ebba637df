import csv
import json
import re
import shutil
import sys
import threading
import time
from dataclasses import fields
from pathlib import Path

import pytest

import train
from data.options import parse_options
from pruning.report.records import dump_runs, load_runs
from pruning.run.options import TrainOptions
from pruning.sweep import __main__ as sweep
from pruning.sweep import executors
from pruning.sweep import plan as sweep_plan
from pruning.sweep.config import SET_BY_SWEEP, SweepConfig, load_config
from pruning.sweep.plan import PlannedRun, chosen_runs, first_runs, train_command
from tests.sweep_process import await_that, end_of, finished_runs, start_sweep, write_config

TRAIN_SCRIPT = sweep_plan.TRAIN_SCRIPT

# Its dev error is lowest at lr 0.002 for omp, at 0.001 else; what it reads has to be finished.
FAKE_TRAIN = """
import argparse, json, os, re, signal, sys, time
from pathlib import Path
parser = argparse.ArgumentParser(argument_default=argparse.SUPPRESS)
options = ("model", "method", "target", "growth", "init-mask")
for name in (*options, "out", "device", "resume", "reuse"):
    parser.add_argument("--" + name)
for name, kind in {"sparsity": float, "lr": float, "seed": int, "steps": int}.items():
    parser.add_argument("--" + name, type=kind)
given = vars(parser.parse_args())
out, device, resume = (given.pop(key) for key in ("out", "device", "resume"))
reuse, masks, out = given.pop("reuse", None), given.get("init_mask"), Path(out)
for other in (reuse, masks and Path(masks).parent):
    if other and not (Path(other) / "results.json").is_file():
        sys.exit(f"{other} is not finished")
if re.search(os.environ.get("FAKE_FAIL", "^$"), out.name):
    print("some output"), sys.exit("fake: error: told to fail")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
out.mkdir(exist_ok=True)
with open(out.parent / "starts.txt", "a") as starts:
    starts.write(out.name + "\\n")
options = {"sparsity": 0.0, "lr": 0.0, "seed": 0, "steps": 1, "target": "phone"} | given
config = {"options": given, "recipe": {"lr": options["lr"]}, "device": device}
config |= {"versions": {}, "git": None}
(out / "config.json").write_text(json.dumps(config))
time.sleep(float(os.environ.get("FAKE_SLEEP", 0)))
best = 0.002 if options["method"] == "omp" else 0.001
rate = round(0.1 + abs(options["lr"] - best) + options["sparsity"] / 10 + options["seed"] / 100, 9)
edits = round(10000 * rate)
counts = {"substitutions": edits, "deletions": 0, "insertions": 0, "reference_tokens": 10000}
per = {"rate": rate, **counts, "ci95": [rate, rate]}
results = {key: options[key] for key in ("model", "method", "target", "seed", "steps")}
results["sparsity"] = {k: options["sparsity"] for k in ("target", "in_scope", "whole_model")}
results |= {"per": per, "dev": {"per": per}, "protocol": "fake", "pruning": {}}
results |= {"cost": {"fine_tuning_runs": 1, "steps": 1, "training_seconds": 1.0}, "tensors": {}}
results |= {"bytes": {kind: 1 for kind in ("dense", "bitmask", "zip")}}
results |= {"wall_seconds": 1.0, "real_time_factor": 1.0}
(out / "metrics.jsonl").write_text("")
line = {"utt_id": "u1", "speaker": "s1", "operations": "S" * edits + "=" * (10000 - edits)}
(out / "test.jsonl").write_text(json.dumps(line) + "\\n")
(out / "results.json").write_text(json.dumps(results))
"""

CONFIG = """
out = "{out}"
devices = ["cpu", "cpu"]
[train]
model = "w2v2-demo"
[grid]
method = ["dense", "mpi", "omp"]
sparsity = [0.5, 0.7]
seed = [0, 1]
"""
TUNED = CONFIG + "[tune]\nlr = [0.001, 0.002]\n"


@pytest.fixture(autouse=True)
def _fake_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "fake_train.py"
    script.write_text(FAKE_TRAIN)
    monkeypatch.setattr(sweep_plan, "TRAIN_SCRIPT", script)


def _load(folder: Path, text: str) -> SweepConfig:
    return load_config(write_config(folder, text))


def _plan(folder: Path, text: str) -> dict[str, PlannedRun]:
    return {run.name: run for run in first_runs(_load(folder, text))}


def _run(config: Path, *flags: str) -> int:
    return sweep.main(["--config", str(config), *flags])


def test_grid_expands_to_every_combination(tmp_path: Path) -> None:
    text = CONFIG.replace('"omp"', '"parp"')
    names = [run.name for run in first_runs(_load(tmp_path, text))]
    pruned = [f"{m}-{s}-seed{k}" for m in ("mpi", "parp") for s in (0.5, 0.7) for k in (0, 1)]
    assert names == ["dense-seed0", "dense-seed1", *pruned]


def test_names_tell_all_values_that_vary(tmp_path: Path) -> None:
    text = CONFIG + 'target = ["char"]\nbiases = [true]\n[tune]\nlr = [1e-4]\n'
    names = [run.name for run in first_runs(_load(tmp_path, text))]
    assert "char-omp-0.7-biasesTrue-lr0.0001-seed0" in names


def test_dense_has_no_sparsity(tmp_path: Path) -> None:
    dense = first_runs(_load(tmp_path, CONFIG))[0]
    assert dense.options == {"model": "w2v2-demo", "method": "dense", "seed": 0}


def test_omp_takes_over_from_the_dense_run_of_the_same_options(tmp_path: Path) -> None:
    runs = {run.name: run for run in first_runs(_load(tmp_path, CONFIG))}
    assert runs["omp-0.7-seed1"].source == "dense-seed1"
    assert not runs["dense-seed1"].support


def test_omp_alone_brings_its_dense_runs(tmp_path: Path) -> None:
    text = CONFIG.replace('"dense", "mpi", ', "")
    runs = first_runs(_load(tmp_path, text))
    assert [run.name for run in runs if run.support] == ["dense-seed0", "dense-seed1"]
    assert len(runs) == 6


def test_imp_takes_over_from_the_imp_run_of_the_highest_sparsity(tmp_path: Path) -> None:
    text = CONFIG.replace('"omp"', '"imp"')
    runs = {run.name: run.source for run in first_runs(_load(tmp_path, text))}
    assert runs["imp-0.5-seed1"] == "imp-0.7-seed1"
    assert runs["imp-0.7-seed1"] is None


def test_command_has_a_flag_for_each_option(tmp_path: Path) -> None:
    config = _load(tmp_path, CONFIG + "biases = [false]\n")
    run = next(run for run in first_runs(config) if "omp-0.5" in run.name)
    command = train_command(config, run)
    out = tmp_path / "study"
    assert command[2:] == [
        *("--model=w2v2-demo", "--method=omp", "--sparsity=0.5", "--seed=0", "--no-biases"),
        f"--reuse={out}/dense-biasesFalse-seed0",
        f"--out={out}/omp-0.5-biasesFalse-seed0",
        "--resume=auto",
    ]


def test_command_is_what_train_py_takes(tmp_path: Path) -> None:
    config = _load(tmp_path, CONFIG + 'biases = [false]\ninit_mask = ["none"]\n[tune]\nlr = [1]\n')
    run = next(run for run in first_runs(config) if run.options["method"] == "mpi")
    options = parse_options(TrainOptions, train_command(config, run)[2:], "")
    assert (options.biases, options.init_mask, options.lr) == (False, None, 1.0)
    assert options.out == str(tmp_path / "study" / run.name)


def test_sweep_starts_the_train_py_that_it_has_the_options_of() -> None:
    assert Path(train.__file__).samefile(TRAIN_SCRIPT)
    assert {*SET_BY_SWEEP} <= {option.name for option in fields(TrainOptions)}


def test_other_seeds_take_the_value_that_is_best_on_dev(tmp_path: Path) -> None:
    assert _run(write_config(tmp_path, TUNED)) == 0
    at_seed_1 = {name for name in finished_runs(tmp_path / "study") if name.endswith("seed1")}
    assert at_seed_1 == {
        "dense-lr0.001-seed1",
        *(f"mpi-{sparsity}-lr0.001-seed1" for sparsity in (0.5, 0.7)),
        *(f"omp-{sparsity}-lr0.002-seed1" for sparsity in (0.5, 0.7)),
        "dense-lr0.002-seed1",  # for omp
    }


def test_equal_values_on_dev_leave_the_lower(tmp_path: Path) -> None:
    config = _load(tmp_path, TUNED.replace("0.001, 0.002", "0.002, 0.001"))
    first = first_runs(config)
    chosen = chosen_runs(config, first, {run.name: 0.5 for run in first})
    assert {run.options["lr"] for run in chosen} == {0.001}


def test_results_list_the_runs_asked_for_and_no_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(write_config(tmp_path, CONFIG.replace('"dense", ', ""))) == 0
    with (tmp_path / "study" / "results.csv").open() as file:
        assert {row["method"] for row in csv.DictReader(file)} == {"mpi", "omp"}
    assert "omp-0.7-seed1: dev PER 0.1820, test PER 0.1820\n" in capsys.readouterr().out


def test_each_finished_run_says_its_scores_and_how_far_the_sweep_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(write_config(tmp_path, CONFIG)) == 0
    lines = re.findall(
        r"^(\S+): finished, dev PER 0\.\d{4}, test PER 0\.\d{4}; (\d+) of 10(.*)$",
        capsys.readouterr().out,
        re.MULTILINE,
    )
    assert len({name for name, _, _ in lines}) == 10
    assert [int(done) for _, done, _ in lines] == list(range(1, 11))
    for _, done, left in lines:
        assert (left == "") == (done == "10")
        assert done == "10" or re.fullmatch(r", about \d+ s left", left)


def test_finished_runs_are_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path, CONFIG)
    assert _run(config) == 0
    starts = (tmp_path / "study" / "starts.txt").read_text()
    capsys.readouterr()
    assert _run(config) == 0
    assert capsys.readouterr().out.count("finished before, skipped") == 10
    assert (tmp_path / "study" / "starts.txt").read_text() == starts


def test_failing_run_stops_only_what_needs_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = write_config(tmp_path, CONFIG), tmp_path / "study"
    monkeypatch.setenv("FAKE_FAIL", "dense-seed1")
    assert _run(config) == 1
    printed = capsys.readouterr().out
    assert "dense-seed1: failed with exit status 1: fake: error: told to fail\n" in printed
    assert "omp-0.5-seed1: skipped, for dense-seed1 did not finish\n" in printed
    assert len(finished_runs(out)) == 7
    assert not (out / "results.csv").exists()
    monkeypatch.delenv("FAKE_FAIL")
    assert _run(config) == 0
    assert len(finished_runs(out)) == 10


def test_failed_trial_leaves_out_the_seeds_that_it_decides_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_FAIL", "mpi-0.5-lr0.001-seed0")
    assert _run(write_config(tmp_path, TUNED)) == 1
    assert "runs left out at other seeds: 1, for" in capsys.readouterr().out
    assert {name for name in finished_runs(tmp_path / "study") if name.startswith("mpi-0.5")} == {
        "mpi-0.5-lr0.002-seed0"
    }


def test_dry_run_prints_the_commands_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(write_config(tmp_path, TUNED), "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11
    assert all("--resume=auto --device=cpu" in line for line in lines[:-1])
    assert lines[-1] == "and at the other seeds, with the values that are best on dev: 5"
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("[grid]", "[grid", "is not TOML"),
        ("devices =", "machines =", "unknown key 'machines'"),
        ("seed = [", "sede = [", "'sede' in .grid. is no option of train.py"),
        ("seed = [0, 1]", "out = [0, 1]", "out in .grid. is for the sweep to set"),
        ('"omp"', '"opm"', "method in .grid. is 'opm': choose from dense, rp"),
        ("0.7]", "1.0]", "run mpi-1.0-seed0: sparsity 1 is out of range: give a fraction"),
        ("0.7]", "-0.1]", "run mpi--0.1-seed0: sparsity -0.1 is out of range: give a fraction"),
        ("0.7]", '"none"]', "sparsity in .grid. is 'none': give a number"),
        ('"omp"]', '"imp"]\npattern = ["2:4"]', "run mpi-0.7-pattern2_4-seed0: pattern 2:4 drops"),
        ("seed = [0, 1]", "seed = []", "seed in .grid. is .*: give a list of one value or more"),
        ("seed = [0, 1]", "seed = 1", "seed in .grid. is 1: give a list of one value or more"),
        ("seed = [0, 1]", "seed = [1, 1]", "seed in .grid. lists a value twice"),
        ("seed = [0, 1]", "seed = [0.5]", "seed in .grid. is 0.5: give a whole number"),
        ("seed = [0, 1]", 'biases = ["yes"]', "biases in .grid. is 'yes': give true or false"),
        (
            "seed = [0, 1]",
            'target = ["fone"]',
            "target in .grid. is 'fone': choose from phone, char",
        ),
        ("seed = [0, 1]", 'model = ["w2v2"]', "model is in .train. and in .grid.: leave one"),
        ("seed = [0, 1]", "[tune]\nseed = [1]", "seed is in .tune.*: move it to .grid."),
        ('model = "w2v2-demo"', 'model = ["w2v2"]', "model in .train. is a list"),
        ('model = "w2v2-demo"', "", "no model is given"),
        ('out = "{out}"', "", "out is None: give the folder"),
        ('"cpu", "cpu"', "", "devices is .*: give a list"),
        ('"cpu", "cpu"', '"gpu"', "device 'gpu' is unknown"),
        ("[train]", "threads = 0\n[train]", "threads is 0: give a positive number"),
        ("[train]", "tune = 3\n[train]", "tune is 3: give a table"),
        ("[train]", "finished = 3\n[train]", "finished is 3: give the runs.json of a report"),
        ("[train]", "lr = -1\n[train]", "unknown key 'lr'"),
        ("[grid]", "lr = -1\n[grid]", "lr in .train. is -1.*: give a positive number"),
        ("[grid]", "[[grid]]\nout = [1]\n[[grid]]", "out in .grid. is for the sweep to set"),
        (
            '"w2v2-demo"',
            '"w2v2-demo"\nteacher = "{out}/mpi-0.5-seed0"',
            "wait for itself",
        ),
    ],
)
def test_wrong_config_is_refused_in_one_line(
    tmp_path: Path, before: str, after: str, message: str
) -> None:
    assert before in CONFIG
    with pytest.raises(ValueError, match=message) as caught:
        _plan(tmp_path, CONFIG.replace(before, after))
    assert len(str(caught.value).splitlines()) == 1


def test_values_that_would_share_a_folder_are_refused(tmp_path: Path) -> None:
    config = _load(tmp_path, CONFIG + 'data = ["a/b", "a:b"]\n')
    with pytest.raises(ValueError, match="two runs would share a folder"):
        first_runs(config)


def test_missing_config_is_the_users_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(tmp_path / "none.toml") == 2
    assert "none.toml (No such file or directory): give the TOML" in capsys.readouterr().err


def test_other_train_options_in_the_same_folder_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(write_config(tmp_path, CONFIG)) == 0
    before = (tmp_path / "study" / "results.csv").read_bytes()
    assert _run(write_config(tmp_path, CONFIG.replace("[grid]", "steps = 3\n[grid]"))) == 2
    assert "other options in [train] (steps was None): repeat those" in capsys.readouterr().err
    assert (tmp_path / "study" / "results.csv").read_bytes() == before


def test_train_options_may_be_corrected_before_any_run_has_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_FAIL", ".")
    assert _run(write_config(tmp_path, CONFIG)) == 1
    monkeypatch.delenv("FAKE_FAIL")
    assert _run(write_config(tmp_path, CONFIG.replace("[grid]", "steps = 3\n[grid]"))) == 0


GRIDS = (
    CONFIG.replace("[grid]", "[[grid]]")
    + """
[[grid]]
method = ["parp-p"]
sparsity = [0.5]
seed = [0, 2]
growth = ["cubic"]
"""
)


def test_each_grid_expands_by_itself(tmp_path: Path) -> None:
    runs = _plan(tmp_path, GRIDS)
    assert len(runs) == 12
    added = [name for name in runs if name.startswith("parp")]
    assert added == ["parp-p-0.5-growthcubic-seed0", "parp-p-0.5-growthcubic-seed2"]
    assert runs[added[0]].options["growth"] == "cubic"
    assert "growth" not in runs["mpi-0.5-seed0"].options


def test_grid_that_is_added_changes_no_name(tmp_path: Path) -> None:
    names = list(_plan(tmp_path, CONFIG))
    assert list(_plan(tmp_path, GRIDS))[: len(names)] == names


def test_run_in_two_grids_is_planned_once(tmp_path: Path) -> None:
    again = '\n[[grid]]\nmethod = ["mpi", "dense"]\nsparsity = [0.5]\nseed = [0, 3]\n'
    names = list(_plan(tmp_path, GRIDS + again))
    assert len(names) == len(set(names)) == 14
    assert names[-2:] == ["mpi-0.5-seed3", "dense-seed3"]


def test_one_of_several_grids_may_differ_from_train(tmp_path: Path) -> None:
    text = GRIDS.replace("[[grid]]", "steps = 5\n[[grid]]", 1) + "steps = [10]\n"
    runs = _plan(tmp_path, text)
    assert runs["parp-p-0.5-growthcubic-steps10-seed0"].options["steps"] == 10
    assert runs["mpi-0.5-seed0"].options["steps"] == 5


def test_each_grid_is_tuned_at_its_first_seed(tmp_path: Path) -> None:
    config = _load(tmp_path, GRIDS.replace("[0, 2]", "[2, 0]") + "[tune]\nlr = [0.1, 0.2]\n")
    first = first_runs(config)
    assert {run.options["seed"] for run in first if run.options["method"] == "parp-p"} == {2}
    rates = {run.name: run.options["lr"] for run in first}
    chosen = [run.name for run in chosen_runs(config, first, rates)]
    assert chosen[-1] == "parp-p-0.5-growthcubic-lr0.1-seed0"
    assert len(chosen) == 6


def _finished_elsewhere(folder: Path, text: str) -> Path:
    """Run a study, keep the records of its runs and lose their folders."""
    assert _run(write_config(folder, text)) == 0
    path = folder / "runs.json"
    path.write_text(dump_runs(load_runs([folder / "study"])))
    shutil.rmtree(folder / "study")
    return path


def _going_on(text: str, runs: Path) -> str:
    return text.replace("[train]", f'finished = "{runs}"\n[train]', 1)


@pytest.mark.long
def test_sweep_goes_on_from_a_report_alone(tmp_path: Path) -> None:
    runs = _finished_elsewhere(tmp_path, TUNED)
    names = {run["name"] for run in json.loads(runs.read_text())["runs"]}
    more = _going_on(TUNED, runs).replace("[0, 1]", "[0, 1, 2]").replace('"omp"', '"omp", "rp"')
    assert _run(write_config(tmp_path, more)) == 0
    again = finished_runs(tmp_path / "study") & names
    assert again == {"dense-lr0.002-seed2"} & names
    with (tmp_path / "study" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * (1 + 3 * 2) + 2 * (1 + 3 * 2)
    chosen = {(row["method"], row["lr"]) for row in rows if row["seed"] == "2"}
    assert chosen == {("dense", "0.001"), ("mpi", "0.001"), ("omp", "0.002"), ("rp", "0.001")}


def test_run_that_needs_files_of_one_that_is_gone_has_it_run_again_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = _finished_elsewhere(tmp_path, CONFIG)
    capsys.readouterr()
    assert _run(write_config(tmp_path, _going_on(CONFIG, runs).replace("0.7]", "0.7, 0.9]"))) == 0
    assert "dense-seed0: run again, for omp-0.9-seed0 needs its files" in capsys.readouterr().out
    starts = (tmp_path / "study" / "starts.txt").read_text().splitlines()
    assert starts.index("dense-seed1") < starts.index("omp-0.9-seed1")
    wanted = [f"{name}-seed{seed}" for name in ("dense", "mpi-0.9", "omp-0.9") for seed in (0, 1)]
    assert sorted(starts) == sorted(wanted)


TRANSFER = """
[[grid]]
method = ["parp"]
sparsity = [0.5]
seed = [0, 1]
init_mask = ["{out}/mpi-0.5-seed{seed}/masks.pt"]
"""


def test_run_whose_masks_are_asked_for_comes_first(tmp_path: Path) -> None:
    text = GRIDS.replace("[[grid]]", TRANSFER + "[[grid]]", 1)  # planned before those that it needs
    runs = [run for run in _plan(tmp_path, text).values() if run.options["method"] == "parp"]
    assert [run.needs for run in runs] == [("mpi-0.5-seed0",), ("mpi-0.5-seed1",)]
    assert _run(write_config(tmp_path, text)) == 0


def test_teacher_of_the_same_seed_comes_first(tmp_path: Path) -> None:
    path = "mpi-0.5-seed{seed}/masks.pt"
    taught = TRANSFER.replace("init_mask", "teacher").replace(path, "dense-seed{seed}")
    planned = _plan(tmp_path, GRIDS.replace("[[grid]]", taught + "[[grid]]", 1)).values()
    runs = [run for run in planned if run.options["method"] == "parp"]
    assert [run.needs for run in runs] == [("dense-seed0",), ("dense-seed1",)]


def test_initial_weights_of_the_same_seed_come_first(tmp_path: Path) -> None:
    path = "mpi-0.5-seed{seed}/masks.pt"
    begun = TRANSFER.replace("init_mask", "init").replace(path, "dense-seed{seed}/best.pt")
    planned = _plan(tmp_path, GRIDS.replace("[[grid]]", begun + "[[grid]]", 1)).values()
    runs = [run for run in planned if run.options["method"] == "parp"]
    assert [run.needs for run in runs] == [("dense-seed0",), ("dense-seed1",)]


def test_omp_that_teaches_itself_takes_over_from_a_dense_run_without_a_teacher(
    tmp_path: Path,
) -> None:
    planned = _plan(tmp_path, CONFIG.replace("[grid]", 'teacher = "self"\n[grid]'))
    assert planned["omp-0.5-seed0"].source == "dense-seed0"
    assert planned["omp-0.5-seed0"].options["teacher"] == "self"
    assert planned["dense-seed0"].options["teacher"] == "none"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('"w2v2-demo"', '"w2v2-demo"\nsteps = 7', "steps was None"),
        ('"w2v2-demo"', '"w2v2"', "model was 'w2v2-demo'"),
    ],
)
def test_record_of_other_options_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], before: str, after: str, message: str
) -> None:
    runs = _finished_elsewhere(tmp_path, CONFIG)
    capsys.readouterr()
    assert _run(write_config(tmp_path, _going_on(CONFIG, runs).replace(before, after))) == 2
    error = capsys.readouterr().err
    assert f"runs.json was run with other options ({message}): repeat those, or" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "study").exists()


def test_option_that_a_record_lacks_was_at_its_default(tmp_path: Path) -> None:
    text = _going_on(CONFIG, _finished_elsewhere(tmp_path, CONFIG))
    assert _plan(tmp_path, text.replace("[grid]", "grad_accum = 1\n[grid]"))
    with pytest.raises(ValueError, match="other options .grad_accum was 1."):
        _plan(tmp_path, text.replace("[grid]", "grad_accum = 2\n[grid]"))


def test_imp_takes_over_from_the_longest_chain_whose_files_are_there(tmp_path: Path) -> None:
    text = CONFIG.replace('"omp"', '"imp"')
    runs = _going_on(text, _finished_elsewhere(tmp_path, text))
    planned = _plan(tmp_path, runs.replace("[0.5, 0.7]", "[0.3, 0.4, 0.7]"))
    assert planned["imp-0.3-seed0"].source == "imp-0.4-seed0"


@pytest.mark.long
def test_terminated_sweep_goes_on_to_the_results_of_an_undisturbed_one(tmp_path: Path) -> None:
    whole = write_config(tmp_path, TUNED, "whole")
    assert _run(whole) == 0
    halves, out = write_config(tmp_path, TUNED, "halves"), tmp_path / "halves"
    process = start_sweep(halves, FAKE_SLEEP="0.3")
    await_that(lambda: len(finished_runs(out)) >= 3, process)
    process.terminate()
    status, output = end_of(process)
    assert status == 130
    assert f"go on with: python -m pruning.sweep --config {halves}\n" in output
    assert len(finished_runs(out)) < 10
    assert _run(halves) == 0
    assert (out / "results.csv").read_bytes() == (tmp_path / "whole/results.csv").read_bytes()


@pytest.mark.long
def test_run_that_a_killed_sweep_left_keeps_other_sweeps_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "LOCK_SECONDS", 0.2)
    config, out = write_config(tmp_path, CONFIG), tmp_path / "study"
    process = start_sweep(config, FAKE_SLEEP="4")
    await_that(lambda: len(list(out.glob("*/config.json"))) == 2, process)
    assert _run(config) == 2
    assert f"another sweep is running in {out}: wait" in capsys.readouterr().err
    process.kill()
    process.wait()
    assert _run(config) == 2
    assert "is a run that a killed sweep left alive: wait" in capsys.readouterr().err
    monkeypatch.setattr(sweep, "LOCK_SECONDS", 10.0)
    assert _run(config) == 0
    assert (out / "starts.txt").read_text().splitlines().count("dense-seed0") == 1


def test_missing_ray_says_how_to_install_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert _run(write_config(tmp_path, CONFIG), "--ray") == 2
    assert '--ray needs ray: pip install -e ".[ray]"' in capsys.readouterr().err


def test_ray_task_stops_its_process_once_there_is_a_note(tmp_path: Path) -> None:
    note, log = tmp_path / ".stop", tmp_path / "run.log"
    code = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(130)); print('up')\n"
    command = [sys.executable, "-c", code + "time.sleep(60)"]

    def leave_note() -> None:
        while not log.is_file() or "\nup" not in log.read_text():
            time.sleep(0.02)
        note.touch()

    thread = threading.Thread(target=leave_note)
    thread.start()
    assert executors.run_process(command, {}, log, note, tmp_path) == 130
    thread.join()


def test_ray_task_starts_nothing_where_there_is_a_note(tmp_path: Path) -> None:
    (tmp_path / ".stop").touch()
    log = tmp_path / "run.log"
    assert executors.run_process(["none"], {}, log, tmp_path / ".stop", tmp_path) == 130
    assert not log.exists()
