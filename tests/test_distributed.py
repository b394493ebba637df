"""Two gloo processes take the steps that one would."""

import json
import os
import shutil
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


WHISPER = (
    "--model whisper-demo --audio-ctx own --steps 4 --eval-every 4 --lr 1e-3 "
    "--mask-time 0.2 --mask-channel 0.3 --label-smoothing 0.1"
).split()
Run = tuple[list[str], int]
"""Flags, and the step after which it is interrupted, -1 for none."""


def _run(corpus: Path, out: Path, *flags: str, stop_at: int = -1) -> Run:
    return [*FLAGS, "--data", str(corpus), "--out", str(out), *flags], stop_at


def _train(processes: int, *runs: Run) -> None:
    """Run one after another, all in the same processes, whose start takes longer than a run."""
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone"]  # at a port that is free
        launch += ["--nproc-per-node", str(processes)]
    environment = os.environ | {"RUNS": json.dumps(runs), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(SCRIPT.parent.parent)
    command = [*launch, str(SCRIPT)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


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
def folder(
    small_corpus: Path, uneven_corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Runs of one process and of two, and one that two began and one went on with."""
    out = tmp_path_factory.mktemp("runs")
    _train(
        2,
        _run(small_corpus, out / "parp-2"),
        _run(uneven_corpus, out / "whisper-2", *WHISPER),
        _run(small_corpus, out / "begun-by-2", stop_at=7),
    )
    shutil.copytree(out / "begun-by-2", out / "stopped")
    _train(
        1,
        _run(small_corpus, out / "parp-1"),
        _run(uneven_corpus, out / "whisper-1", *WHISPER),
        _run(small_corpus, out / "begun-by-2", "--resume", "auto"),
    )
    return out


@pytest.mark.long
def test_two_processes_equal_one_after_twenty_steps_of_parp(folder: Path) -> None:
    _assert_same(folder / "parp-1", folder / "parp-2")
    assert _losses(folder / "parp-2") == pytest.approx(_losses(folder / "parp-1"), abs=1e-10)


@pytest.mark.long
def test_two_processes_equal_one_with_whisper_at_own_lengths_and_masks(folder: Path) -> None:
    one, two = folder / "whisper-1", folder / "whisper-2"
    _assert_same(one, two)
    assert _losses(two) == pytest.approx(_losses(one), abs=1e-10)


@pytest.mark.long
def test_run_of_two_processes_goes_on_with_one(folder: Path) -> None:
    assert not (folder / "stopped" / "results.json").exists()
    assert len(_losses(folder / "stopped")) == 7
    _assert_same(folder / "parp-1", folder / "begun-by-2")
    assert len(_losses(folder / "begun-by-2")) == 20


@pytest.mark.long
def test_two_processes_equal_one_with_a_teacher(
    small_corpus: Path, tmp_path: Path, folder: Path
) -> None:
    flags = ("--teacher", str(folder / "parp-1"), "--distill-hidden", "1", "--grad-accum", "2")
    for processes in (1, 2):
        _train(processes, _run(small_corpus, tmp_path / str(processes), *flags, "--steps", "8"))
    _assert_same(tmp_path / "1", tmp_path / "2")
    assert _losses(tmp_path / "2") == pytest.approx(_losses(tmp_path / "1"), abs=1e-10)


def test_shares_of_all_processes_are_the_items_once() -> None:
    shares = [World(rank, 3).share(range(10)) for rank in range(3)]
    assert sorted(i for share in shares for i in share) == list(range(10))


def test_one_process_gathers_its_own_items_in_order() -> None:
    assert World().gather(["a", "b"]) == ["a", "b"]
    assert World().any(True)
    assert not World().any(False)
