import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from models.checkpoint import load_checkpoint
from pruning.mask_file import load_masks

RESULT_KEYS = {
    *("model", "method", "target", "split", "seed", "steps", "init", "sparsity", "utterances"),
    *("audio_seconds", "decode", "protocol", "wall_seconds", "real_time_factor"),
}
COUNTS = {"rate", "substitutions", "deletions", "insertions", "reference_tokens", "ci95", "ci_unit"}


def _run(corpus: Path, out: Path, *flags: str, model: str = "w2v2-demo", steps: int = 6) -> int:
    common = ["--data", str(corpus), "--out", str(out), "--batch-seconds", "4", "--log-every", "1"]
    return train.main(["--model", model, "--steps", str(steps), "--device", "cpu", *common, *flags])


def _weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(load_checkpoint(path).model.state_dict())


def _assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def _events(out: Path, kind: str) -> list[dict[str, Any]]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


@pytest.fixture(scope="module")
def parp_run(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "parp"
    flags = ("--sparsity", "0.6", "--prune-every", "4", "--eval-every", "3", "--lr", "1e-2")
    assert _run(small_corpus, out, *flags) == 0
    return out


def test_run_folder_holds_every_file_of_the_contract(parp_run: Path) -> None:
    names = {path.name for path in parp_run.iterdir()}
    wanted = {"config.json", "metrics.jsonl", "last.pt", "best.pt", "masks.pt", "results.json"}
    assert names == wanted | {"manifest.tsv", "test.jsonl"}


def test_results_hold_every_key_of_the_contract(parp_run: Path) -> None:
    results = json.loads((parp_run / "results.json").read_text())
    assert results.keys() >= RESULT_KEYS
    assert results["per"].keys() >= COUNTS
    assert results["sparsity"].keys() == {"target", "in_scope", "whole_model"}
    assert results["dev"]["split"] == "dev"


def test_no_steps_prune_and_score_the_initial_weights(
    parp_run: Path, small_corpus: Path, tmp_path: Path
) -> None:
    flags = ("--method", "gmp", "--sparsity", "0.8", "--init", str(parp_run / "best.pt"))
    assert _run(small_corpus, tmp_path / "run", *flags, steps=0) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["steps"] == results["best_step"] == 0
    assert (results["cost"]["fine_tuning_runs"], results["cost"]["steps"]) == (1, 6)  # the weights'
    before, after = _weights(parp_run / "best.pt"), _weights(tmp_path / "run" / "best.pt")
    masks = load_masks(tmp_path / "run" / "masks.pt").masks
    assert sum(int((~mask).sum()) for mask in masks.values()) == round(
        0.8 * sum(mask.numel() for mask in masks.values())
    )
    expected = {n: w * masks[n] if n in masks else w for n, w in before.items()}
    _assert_equal(expected, after)
    assert _events(tmp_path / "run", "train") == []


def test_every_event_of_a_run_that_diverges_is_json(small_corpus: Path, tmp_path: Path) -> None:
    flags = ("--sparsity", "0.5", "--lr", "1e30", "--head-lr", "1e30", "--clip", "1e30")
    assert _run(small_corpus, tmp_path / "run", *flags, "--eval-every", "6") == 2

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON by RFC 8259")

    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    events = [json.loads(line, parse_constant=refuse) for line in lines]
    assert [each for each in events if each["event"] == "train" and each["loss"] is None]


@pytest.mark.parametrize("name", ["best.pt", "last.pt"])
def test_saved_model_has_exactly_the_reported_zeros(parp_run: Path, name: str) -> None:
    checkpoint = load_checkpoint(parp_run / name)
    weights = dict(checkpoint.model.named_parameters())
    zeros = sum(int((weights[n] == 0).sum()) for n in checkpoint.masks)
    total = sum(weights[n].numel() for n in checkpoint.masks)
    assert zeros == round(0.6 * total)
    results = json.loads((parp_run / "results.json").read_text())
    assert results["sparsity"]["in_scope"] == zeros / total
    assert all((weights[n][~mask] == 0).all() for n, mask in checkpoint.masks.items())


def test_mask_file_equals_the_masks_of_the_best_checkpoint(parp_run: Path) -> None:
    mask_file = load_masks(parp_run / "masks.pt")
    best = load_checkpoint(parp_run / "best.pt")
    _assert_equal(mask_file.masks, best.masks)
    assert mask_file.metadata["scope"] == "encoder"
    assert mask_file.metadata["weights_hash"] == best.run.weights_hash


def test_reprunes_are_logged_at_the_interval_and_at_the_end(parp_run: Path) -> None:
    events = _events(parp_run, "reprune")
    assert [event["step"] for event in events] == [4, 6]
    assert all(e.keys() >= {"threshold", "revived", "newly_pruned", "iou_first"} for e in events)
    assert sum(event["revived"] for event in events) > 0


REGULARISED = ["--mask-time", "0.12", "--mask-channel", "0.2", "--dropout", "0.1"]


@pytest.mark.parametrize(
    ("model", "method", "more"),
    [
        pytest.param("w2v2-demo", "dense", REGULARISED, marks=pytest.mark.long),
        pytest.param("w2v2-demo", "mpi", [], marks=pytest.mark.long),
        ("w2v2-demo", "parp", []),
        ("whisper-demo", "parp", [*REGULARISED, "--label-smoothing", "0.1", "--audio-ctx", "own"]),
    ],
)
def test_interrupted_and_resumed_run_equals_an_undisturbed_one_bit_for_bit(
    uneven_corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    method: str,
    more: list[str],
) -> None:
    flags = ["--method", method, "--sparsity", "0.5", "--prune-every", "2", "--eval-every", "100"]
    flags += more
    assert _run(uneven_corpus, tmp_path / "whole", *flags, model=model) == 0

    log_step = train.log_step

    def interrupt_at_three(run: train.Run, *values: Any) -> None:
        log_step(run, *values)
        if run.step == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(train, "log_step", interrupt_at_three)
    assert _run(uneven_corpus, tmp_path / "halves", *flags, model=model) == 130
    monkeypatch.undo()
    torch.manual_seed(999)
    assert _run(uneven_corpus, tmp_path / "halves", *flags, "--resume", "auto", model=model) == 0

    whole, halves = tmp_path / "whole", tmp_path / "halves"
    _assert_equal(_weights(whole / "last.pt"), _weights(halves / "last.pt"))
    losses = [[e["loss"] for e in _events(out, "train")] for out in (whole, halves)]
    assert losses[0] == losses[1]
    assert _events(whole, "reprune") == _events(halves, "reprune")


def test_interrupted_parp_state_keeps_the_adjusted_weights(
    small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_step = train.log_step

    def interrupt(run: train.Run, *values: Any) -> None:
        log_step(run, *values)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(train, "log_step", interrupt)
    assert _run(small_corpus, tmp_path / "run", "--sparsity", "0.5") == 130
    last = load_checkpoint(tmp_path / "run" / "last.pt")
    weights = dict(last.model.named_parameters())
    assert last.training is not None
    for name, mask in last.masks.items():
        assert (weights[name][~mask] == 0).all()
    adjusted = last.training["adjusted"]
    assert sum(int((adjusted[name][~mask] != 0).sum()) for name, mask in last.masks.items()) > 0


@pytest.mark.long
def test_trained_weights_do_not_depend_on_how_often_dev_is_scored(
    small_corpus: Path, tmp_path: Path, parp_run: Path
) -> None:
    flags = ("--sparsity", "0.6", "--prune-every", "4", "--eval-every", "1", "--lr", "1e-2")
    assert _run(small_corpus, tmp_path / "often", *flags) == 0
    _assert_equal(_weights(tmp_path / "often" / "last.pt"), _weights(parp_run / "last.pt"))


def test_parp_at_sparsity_zero_trains_the_dense_model_bit_for_bit(
    small_corpus: Path, tmp_path: Path
) -> None:
    assert _run(small_corpus, tmp_path / "dense", steps=3) == 0
    flags = ("--method", "parp", "--sparsity", "0", "--prune-every", "1")
    assert _run(small_corpus, tmp_path / "parp", *flags, steps=3) == 0
    _assert_equal(_weights(tmp_path / "dense/last.pt"), _weights(tmp_path / "parp/last.pt"))


@pytest.mark.parametrize(
    ("model", "target", "rate"),
    [
        ("w2v2-demo", "char", "wer"),
        ("w2v2-demo", "subword", "wer"),
        ("whisper-demo", "phone", "per"),
        ("whisper-demo", "subword", "wer"),
    ],
)
def test_every_target_trains_and_is_scored(
    small_corpus: Path, tmp_path: Path, model: str, target: str, rate: str
) -> None:
    flags = ("--target", target, "--subword-vocab", "40", "--sparsity", "0.5")
    assert _run(small_corpus, tmp_path / "run", *flags, model=model, steps=1) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results[rate]["reference_tokens"] > 0


@pytest.mark.long
def test_loss_falls_on_a_few_utterances(small_corpus: Path, tmp_path: Path) -> None:
    assert _run(small_corpus, tmp_path / "run", "--sparsity", "0.3", steps=20) == 0
    losses = [event["loss"] for event in _events(tmp_path / "run", "train")]
    assert losses[-1] < 0.5 * losses[0]


def test_gradient_accumulation_takes_all_batches_of_a_step(
    small_corpus: Path, tmp_path: Path
) -> None:
    assert _run(small_corpus, tmp_path / "run", "--grad-accum", "3", steps=2) == 0
    last = load_checkpoint(tmp_path / "run" / "last.pt")
    assert last.training is not None
    assert last.training["sampler"] == {"epoch": 0, "position": 6}


def test_masks_of_another_run_begin_a_run(
    small_corpus: Path, tmp_path: Path, parp_run: Path
) -> None:
    flags = ("--method", "mpi", "--sparsity", "0.6", "--init-mask", str(parp_run / "masks.pt"))
    assert _run(small_corpus, tmp_path / "run", *flags, "--seed", "5", steps=1) == 0
    masks = load_masks(parp_run / "masks.pt").masks
    _assert_equal(load_checkpoint(tmp_path / "run" / "best.pt").masks, masks)


def test_non_finite_steps_are_skipped_counted_and_end_the_run(
    small_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--lr", "1e30", "--head-lr", "1e30", "--clip", "1e30", "--patience", "2")
    assert _run(small_corpus, tmp_path / "run", *flags, steps=8) == 2
    assert "steps in a row had a non-finite loss or gradient" in capsys.readouterr().err
