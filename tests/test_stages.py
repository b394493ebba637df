"""Methods of several fine-tuning runs: stages in one run folder, rewinding, taking over."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from data.files import TEMPORARY
from data.options import parse_options
from models.checkpoint import load_checkpoint
from pruning.mask_file import load_masks
from pruning.masks import magnitude_masks
from pruning.run.options import TrainOptions
from pruning.run.plan import initial_checkpoint, make_plan
from pruning.run.stages import load_stage

FLAGS = ["--sparsity", "0.3", "--prune-every", "2", "--eval-every", "2", "--lr", "1e-2"]


def _run(corpus: Path, out: Path, method: str, *flags: str, steps: int = 6) -> int:
    common = ["--data", str(corpus), "--out", str(out), "--batch-seconds", "4", "--log-every", "1"]
    argv = ["--model", "w2v2-demo", "--method", method, "--steps", str(steps), "--device", "cpu"]
    return train.main([*argv, *common, *FLAGS, *flags])


def _weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(load_checkpoint(path).model.state_dict())


def _differing(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> list[str]:
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]


def _events(out: Path) -> list[dict[str, Any]]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    timings = ("seconds", "wall_seconds")
    return [{k: v for k, v in json.loads(line).items() if k not in timings} for line in lines]


def _rates(out: Path) -> dict[int, float]:
    return {event["step"]: event["lr"] for event in _events(out) if event["event"] == "train"}


def _reprunes(out: Path) -> list[int]:
    return [event["step"] for event in _events(out) if event["event"] == "reprune"]


def _report(out: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((out / "results.json").read_text())
    return report


@pytest.fixture(scope="module")
def dense(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dense") / "run"
    assert _run(small_corpus, out, "dense") == 0
    return out


@pytest.fixture(scope="module")
def omp(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("omp") / "run"
    assert _run(small_corpus, out, "omp") == 0
    return out


@pytest.fixture(scope="module")
def imp(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("imp") / "run"
    assert _run(small_corpus, out, "imp", "--round-steps", "3") == 0
    return out


@pytest.mark.long
def test_omp_mask_is_the_ranking_of_the_dense_runs_best_checkpoint(dense: Path, omp: Path) -> None:
    masks = load_masks(omp / "masks.pt").masks
    best = load_checkpoint(dense / "best.pt")
    assert best.run.step < 6  # so the last weights would give another mask
    ranked = magnitude_masks({name: best.model.get_parameter(name) for name in masks}, 0.3)
    last = load_checkpoint(dense / "last.pt").model
    assert _differing(masks, ranked) == []
    assert _differing(masks, magnitude_masks({n: last.get_parameter(n) for n in masks}, 0.3))


def test_omp_that_takes_over_a_dense_run_equals_one_that_trains_it(
    small_corpus: Path, tmp_path: Path, dense: Path, omp: Path
) -> None:
    assert _run(small_corpus, tmp_path / "run", "omp", "--reuse", str(dense)) == 0
    assert _differing(_weights(tmp_path / "run/best.pt"), _weights(omp / "best.pt")) == []
    reused = [event for event in _events(tmp_path / "run") if event["stage"] == 0]
    assert reused == []
    costs = [_report(out)["cost"] for out in (tmp_path / "run", omp)]
    assert [(cost["fine_tuning_runs"], cost["steps"]) for cost in costs] == [(2, 12), (2, 12)]


def test_omp_final_stage_begins_with_the_initial_weights(omp: Path, small_corpus: Path) -> None:
    flags = ["--model", "w2v2-demo", "--data", str(small_corpus), "--device", "cpu"]
    plan = make_plan(parse_options(TrainOptions, flags, ""))
    torch.manual_seed(0)
    start = initial_checkpoint(plan)
    assert load_checkpoint(omp / "best.pt").run.weights_hash == start.run.weights_hash
    first = [event for event in _events(omp) if event["event"] == "train" and event["step"] == 1]
    assert first[0]["stage"] == 0
    assert first[1]["stage"] == 1
    assert first[1]["loss"] != first[0]["loss"]  # the same batch, but pruned


@pytest.mark.long
def test_imp_masks_remove_a_tenth_a_round_and_are_ranked_on_its_best_weights(imp: Path) -> None:
    masks = load_masks(imp / "masks.pt").masks
    rounds = [load_stage(imp, f"round-{k}").weights for k in (1, 2, 3)]
    total = sum(mask.numel() for mask in masks.values())
    zeros = [sum(int((w == 0).sum()) for w in weights.values()) for weights in rounds[1:]]
    assert zeros == [round(0.1 * total), round(0.2 * total)]
    assert _differing(masks, magnitude_masks(rounds[-1], 0.3)) == []
    assert _report(imp)["cost"]["steps"] == 3 * 3 + 6


@pytest.mark.long
def test_imp_of_lower_sparsity_takes_over_the_rounds_of_a_higher_one(
    small_corpus: Path, tmp_path: Path, imp: Path
) -> None:
    flags = ("--round-steps", "3", "--sparsity", "0.2")
    assert _run(small_corpus, tmp_path / "alone", "imp", *flags) == 0
    assert _run(small_corpus, tmp_path / "shared", "imp", *flags, "--reuse", str(imp)) == 0
    alone, shared = (_weights(tmp_path / out / "best.pt") for out in ("alone", "shared"))
    assert _differing(alone, shared) == []
    assert {event["stage"] for event in _events(tmp_path / "shared")} == {2}


@pytest.mark.long
def test_parp_mask_trains_the_final_mask_of_a_parp_run(small_corpus: Path, tmp_path: Path) -> None:
    assert _run(small_corpus, tmp_path / "parp", "parp") == 0
    assert _run(small_corpus, tmp_path / "run", "parp-mask") == 0
    found, used = (load_masks(tmp_path / out / "masks.pt").masks for out in ("parp", "run"))
    assert _differing(found, used) == []


@pytest.mark.long
def test_rewinding_goes_back_to_an_early_dense_state(small_corpus: Path, tmp_path: Path) -> None:
    flags = ("--rewind-step", "2")
    assert _run(small_corpus, tmp_path / "omp", "omp", *flags) == 0
    assert _run(small_corpus, tmp_path / "dense", "dense", *flags) == 0
    early = [_weights(tmp_path / out / "rewind.pt") for out in ("dense", "omp")]
    assert _differing(*early) == []
    shared = ("--reuse", str(tmp_path / "dense"))
    assert _run(small_corpus, tmp_path / "shared", "omp", *flags, *shared) == 0
    results = [_weights(tmp_path / out / "best.pt") for out in ("omp", "shared")]
    assert _differing(*results) == []
    assert _differing(early[0], results[0]) != []


@pytest.mark.parametrize(
    ("method", "stage"),
    [
        ("omp", 1),
        ("gmp", 0),
        ("parp-latent", 0),
        pytest.param("omp", 0, marks=pytest.mark.long),
        pytest.param("imp", 1, marks=pytest.mark.long),
        pytest.param("parp-mask", 1, marks=pytest.mark.long),
        pytest.param("parp-p", 0, marks=pytest.mark.long),
        pytest.param("parp-cooldown", 0, marks=pytest.mark.long),
    ],
)
def test_run_interrupted_in_a_stage_and_resumed_equals_an_undisturbed_one(
    small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, stage: int
) -> None:
    flags = ("--sparsity", "0.2", "--eval-every", "100")
    assert _run(small_corpus, tmp_path / "whole", method, *flags, steps=4) == 0
    log_step = train.log_step
    stopped = []

    def interrupt(run: train.Run, *values: Any) -> None:
        log_step(run, *values)
        if run.schedule.stage == stage and run.step == 3:
            stopped.append(run.step)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(train, "log_step", interrupt)
    assert _run(small_corpus, tmp_path / "halves", method, *flags, steps=4) == 130
    monkeypatch.undo()
    assert stopped == [3]
    config = (tmp_path / "halves" / "config.json").read_bytes()
    torch.manual_seed(999)
    flags = (*flags, "--resume", "auto")
    assert _run(small_corpus, tmp_path / "halves", method, *flags, steps=4) == 0
    halves = tmp_path / "halves"
    assert _differing(_weights(tmp_path / "whole/last.pt"), _weights(halves / "last.pt")) == []
    assert _events(tmp_path / "whole") == _events(halves)
    assert (halves / "config.json").read_bytes() == config


@pytest.mark.long
def test_run_killed_before_its_first_save_begins_anew(
    small_corpus: Path, tmp_path: Path, omp: Path
) -> None:
    out = tmp_path / "run"
    assert _run(small_corpus, out, "omp") == 0
    for name in ("results.json", "last.pt", "best.pt", "masks.pt", "stage-dense.pt"):
        (out / name).unlink()
    assert _run(small_corpus, out, "omp", "--resume", "auto") == 0
    assert _differing(_weights(out / "best.pt"), _weights(omp / "best.pt")) == []


def test_run_killed_between_two_stages_goes_on_with_the_next(
    small_corpus: Path, tmp_path: Path, omp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"

    def die(*values: Any) -> None:
        raise KeyboardInterrupt

    begin_stage = train.begin_stage
    monkeypatch.setattr(
        train,
        "begin_stage",
        lambda run, stage, *rest: (die if stage else begin_stage)(run, stage, *rest),
    )
    assert _run(small_corpus, out, "omp") == 130
    monkeypatch.undo()
    assert _run(small_corpus, out, "omp", "--resume", "auto") == 0
    assert _differing(_weights(out / "best.pt"), _weights(omp / "best.pt")) == []


def test_finished_run_loses_what_a_kill_kept_it_from_removing(
    small_corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert _run(small_corpus, out, "parp") == 0
    names = {path.name for path in out.iterdir()}
    (out / "initial.pt").write_bytes(b"")
    (out / "inputs").mkdir()
    (out / f".last.pt.99999{TEMPORARY}").write_bytes(b"")
    assert _run(small_corpus, out, "parp", "--resume", "auto") == 0
    assert {path.name for path in out.iterdir()} == names


def test_finished_run_is_left_alone_when_resumed(
    small_corpus: Path, omp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in omp.iterdir()}
    assert _run(small_corpus, omp, "omp", "--resume", "auto") == 0
    assert "is finished" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in omp.iterdir()} == before


def test_stage_trained_under_other_options_is_refused(
    small_corpus: Path, tmp_path: Path, dense: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--reuse", str(dense), "--seed", "3")
    assert _run(small_corpus, tmp_path / "run", "omp", *flags) == 2
    assert "not what this run would train (seed is 0 there)" in capsys.readouterr().err


def test_run_to_take_over_that_is_none_is_refused(
    small_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(small_corpus, tmp_path / "run", "omp", "--reuse", str(tmp_path)) == 2
    assert "has no config.json" in capsys.readouterr().err


def test_results_describe_tensors_size_and_cost(omp: Path) -> None:
    report = _report(omp)
    tensors = report["tensors"].values()
    assert sum(t["zeros"] for t in tensors) == round(0.3 * sum(t["size"] for t in tensors))
    assert all(t["shift"] > 0 for name, t in report["tensors"].items() if "weight" in name)
    assert report["bytes"]["bitmask"] < report["bytes"]["dense"]
    assert report["pruning"]["sparsity"] == 0.3


def test_alignments_of_every_test_utterance_are_kept(omp: Path) -> None:
    lines = [json.loads(line) for line in (omp / "test.jsonl").read_text().splitlines()]
    counts = _report(omp)["per"]
    operations = "".join(line["operations"] for line in lines)
    assert operations.count("D") == counts["deletions"]
    assert operations.count("S") == counts["substitutions"]
    assert sum(len(line["reference"]) for line in lines) == counts["reference_tokens"]


@pytest.mark.long
def test_rate_starts_again_at_the_reprunes_that_are_logged(
    small_corpus: Path, tmp_path: Path
) -> None:
    flags = ("--method", "gmp", "--score", "fisher", "--lr-restart", "--dense-share", "0.2")
    assert _run(small_corpus, tmp_path / "run", "gmp", *flags, "--prune-every", "3", steps=12) == 0
    assert _reprunes(tmp_path / "run") == [3, 6, 8]
    rates = _rates(tmp_path / "run")
    assert [step for step in rates if rates[step] == 1e-2] == [4, 7, 9]
    assert rates[6] < rates[5] < 1e-2


def test_dense_share_and_the_rest_each_have_a_whole_schedule_of_the_rate(
    small_corpus: Path, tmp_path: Path
) -> None:
    flags = ("--rate-per-phase", "--dense-share", "0.5", "--teacher", "self", "--cooldown", "0.2")
    assert _run(small_corpus, tmp_path / "run", "gmp", *flags, steps=12) == 0
    rates = list(_rates(tmp_path / "run").values())
    assert rates[:6] == rates[6:]
    assert rates[0] < rates[1] == 1e-2 > rates[5]
    assert _reprunes(tmp_path / "run") == [8, 10]


@pytest.mark.long
def test_zeroed_moments_change_the_run_and_default_keeps_them(
    small_corpus: Path, tmp_path: Path
) -> None:
    for name, flags in (("kept", ()), ("zeroed", ("--zero-moments",))):
        assert _run(small_corpus, tmp_path / name, "parp", *flags) == 0
    moments = {}
    for name in ("kept", "zeroed"):
        last = load_checkpoint(tmp_path / name / "last.pt")
        assert last.training is not None
        states = last.training["optimizer"]["adam"]["state"].values()
        moments[name] = sum(int((state["exp_avg"] == 0).sum()) for state in states)
    assert moments["zeroed"] > moments["kept"] + 0.2 * 0.3 * 590_000


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--method", "omp", "--init-mask", "x.pt"], "--init-mask is not for omp"),
        (["--subset", "sex=x"], "sex is m or f"),
        (["--subset", "minutes=0.001"], "leaves no utterance"),
        (["--pattern", "2:4"], "2:4 drops 0.5 of the weights, not 0.3"),
        (["--method", "parp-p", "--start-sparsity", "0.4"], "start sparsity 0.4 is out of range"),
        (["--method", "parp-p", "--grow-until", "0"], "grow_until 0 is no share"),
        (["--method", "gmp", "--cooldown", "1"], "cooldown 1 is no share"),
        (["--score", "fisher"], "score fisher needs Adam's second moments, and parp ranks"),
        (["--method", "gmp", "--dense-share", "1"], "dense_share 1 is no share"),
        (["--method", "gmp", "--cooldown", "0.9"], "leave no steps for the sparsity to grow in"),
        (["--method", "gmp", "--pattern", "1:2", "--sparsity", "0.5"], "gmp goes through several"),
        (["--method", "omp", "--rewind-step", "-1"], "rewind_step -1 is negative"),
        (["--method", "omp", "--rewind-step", "6"], "rewind_step 6 is not before the last of 6"),
    ],
)
def test_options_of_the_methods_are_checked(
    small_corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    named: str,
) -> None:
    assert _run(small_corpus, tmp_path / "run", "parp", *flags) == 2
    lines = capsys.readouterr().err.splitlines()
    (line,) = (line for line in lines if not line.endswith("left out"))
    assert named in line


def test_biases_stay_dense_when_left_out(small_corpus: Path, tmp_path: Path) -> None:
    assert _run(small_corpus, tmp_path / "run", "mpi", "--no-biases", steps=1) == 0
    masks = load_checkpoint(tmp_path / "run/best.pt").masks
    assert masks
    assert not [name for name in masks if name.endswith("bias")]


def test_pattern_leaves_biases_out_and_holds_in_every_group(
    small_corpus: Path, tmp_path: Path
) -> None:
    flags = ("--pattern", "2:4", "--sparsity", "0.5")
    assert _run(small_corpus, tmp_path / "run", "parp", *flags, steps=2) == 0
    best = load_checkpoint(tmp_path / "run/best.pt")
    assert not [name for name in best.masks if name.endswith("bias")]
    for name in best.masks:
        kept = (best.model.get_parameter(name).reshape(-1, 4) != 0).sum(1)
        assert (kept == 2).all(), name


def test_signal_during_the_last_scoring_of_a_stage_ends_the_run_there(
    small_corpus: Path, tmp_path: Path, omp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score_and_save = train.score_and_save

    def interrupt(run: train.Run) -> None:
        score_and_save(run)
        if (run.schedule.stage, run.step) == (0, 6):
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(train, "score_and_save", interrupt)
    assert _run(small_corpus, tmp_path / "run", "omp") == 130
    monkeypatch.undo()
    assert {event["stage"] for event in _events(tmp_path / "run")} == {0}
    assert _run(small_corpus, tmp_path / "run", "omp", "--resume", "auto") == 0
    assert _differing(_weights(tmp_path / "run/best.pt"), _weights(omp / "best.pt")) == []


def test_going_on_in_another_folder_is_refused(
    small_corpus: Path, tmp_path: Path, omp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "elsewhere"
    assert _run(small_corpus, out, "omp", "--resume", str(omp / "last.pt")) == 2
    assert "goes on in its own folder" in capsys.readouterr().err
    assert not out.exists()


def test_dense_stage_of_another_scope_is_refused(
    small_corpus: Path, tmp_path: Path, dense: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--reuse", str(dense), "--no-biases")
    assert _run(small_corpus, tmp_path / "run", "omp", *flags) == 2
    assert "biases is None there" in capsys.readouterr().err


def test_options_may_be_corrected_before_anything_was_saved(
    small_corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert _run(small_corpus, out, "mpi", "--init-mask", str(tmp_path / "none.pt")) == 2
    assert _run(small_corpus, out, "mpi", "--resume", "auto", steps=1) == 0


def test_rewinding_is_left_to_the_methods_that_do(small_corpus: Path, tmp_path: Path) -> None:
    assert _run(small_corpus, tmp_path / "run", "parp-mask", "--rewind-step", "1", steps=2) == 0
