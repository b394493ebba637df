"""Two gloo processes take the steps that one would."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from models.checkpoint import load_checkpoint
from models.device import World

SCRIPT = Path(__file__).parent / "distributed_run.py"
FLAGS = (
    "--model w2v2-demo --method parp --sparsity 0.6 --prune-every 5 --steps 20 --eval-every 10 "
    "--lr 1e-2 --batch-seconds 9 --device cpu --log-every 1"
).split()


def _train(corpus: Path, out: Path, processes: int, *flags: str, stop_at: int = -1) -> int:
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone"]  # at a port that is free
        launch += ["--nproc-per-node", str(processes)]
    environment = os.environ | {"STOP_AT": str(stop_at), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(SCRIPT.parent.parent)
    done = subprocess.run(
        [*launch, str(SCRIPT), *FLAGS, "--data", str(corpus), "--out", str(out), *flags],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert stop_at >= 0 or not done.returncode, done.stderr
    return done.returncode


def _state(out: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    checkpoint = load_checkpoint(out / "last.pt")
    return dict(checkpoint.model.state_dict()), checkpoint.masks


def _assert_same(one: Path, other: Path) -> None:
    (weights, masks), (others, other_masks) = _state(one), _state(other)
    assert all(weights[name].dtype == torch.float64 for name in weights)
    assert max(float((weights[n] - others[n]).abs().max()) for n in weights) < 1e-10
    assert all(torch.equal(masks[name], other_masks[name]) for name in masks)
    rates = [json.loads((out / "results.json").read_text())["per"] for out in (one, other)]
    assert rates[0] == rates[1]


def _losses(out: Path) -> list[float]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    events: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return [event["loss"] for event in events if event["event"] == "train"]


@pytest.fixture(scope="module")
def alone(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    assert _train(small_corpus, out, 1) == 0
    return out


def test_two_processes_equal_one_after_twenty_steps_of_parp(
    small_corpus: Path, tmp_path: Path, alone: Path
) -> None:
    assert _train(small_corpus, tmp_path / "run", 2) == 0
    _assert_same(alone, tmp_path / "run")
    assert _losses(tmp_path / "run") == pytest.approx(_losses(alone), abs=1e-10)


def test_two_processes_equal_one_with_whisper_at_own_lengths_and_masks(
    uneven_corpus: Path, tmp_path: Path
) -> None:
    flags = "--model whisper-demo --audio-ctx own --steps 4 --eval-every 4 --lr 1e-3"
    flags += " --mask-time 0.2 --mask-channel 0.3 --label-smoothing 0.1"
    for processes in (1, 2):
        out = tmp_path / str(processes)
        assert _train(uneven_corpus, out, processes, *flags.split()) == 0
    _assert_same(tmp_path / "1", tmp_path / "2")
    assert _losses(tmp_path / "2") == pytest.approx(_losses(tmp_path / "1"), abs=1e-10)


def test_run_of_two_processes_goes_on_with_one(
    small_corpus: Path, tmp_path: Path, alone: Path
) -> None:
    assert _train(small_corpus, tmp_path / "run", 2, stop_at=7) != 0
    assert not (tmp_path / "run" / "results.json").exists()
    assert _train(small_corpus, tmp_path / "run", 1, "--resume", "auto") == 0
    _assert_same(alone, tmp_path / "run")
    assert len(_losses(tmp_path / "run")) == 20


@pytest.mark.long
def test_two_processes_equal_one_with_a_teacher(
    small_corpus: Path, tmp_path: Path, alone: Path
) -> None:
    flags = ("--teacher", str(alone), "--distill-hidden", "1", "--grad-accum", "2", "--steps", "8")
    assert _train(small_corpus, tmp_path / "one", 1, *flags) == 0
    assert _train(small_corpus, tmp_path / "two", 2, *flags) == 0
    _assert_same(tmp_path / "one", tmp_path / "two")
    assert _losses(tmp_path / "two") == pytest.approx(_losses(tmp_path / "one"), abs=1e-10)


def test_shares_of_all_processes_are_the_items_once() -> None:
    shares = [World(rank, 3).share(range(10)) for rank in range(3)]
    assert sorted(i for share in shares for i in share) == list(range(10))


def test_one_process_gathers_its_own_items_in_order() -> None:
    assert World().gather(["a", "b"]) == ["a", "b"]
    assert World().any(True)
    assert not World().any(False)
