"""Runs that are killed at random instants, again and again, end as an undisturbed one does."""

import json
import multiprocessing
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import train

KILLS = 16  # of each method; sweeps are killed in test_killed_sweep.py
METHODS = {
    "parp": ("--method", "parp", "--prune-every", "2"),
    "parp-p": ("--method", "parp-p", "--prune-every", "2"),
    "omp": ("--method", "omp"),
}


def _argv(corpus: Path, out: Path, flags: tuple[str, ...]) -> list[str]:
    common = ["--data", str(corpus), "--out", str(out), "--steps", "6", "--log-every", "1"]
    often = ["--sparsity", "0.5", "--batch-seconds", "4", "--eval-every", "2", "--resume", "auto"]
    return ["--model", "w2v2-demo", "--device", "cpu", *common, *often, *flags]


def _main(argv: list[str], output: Path) -> None:
    """Run train.py in a forked process, which has nothing to import any more."""
    with output.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os._exit(train.main(argv))


def _start(argv: list[str], output: Path) -> multiprocessing.Process:
    context: Any = multiprocessing.get_context("fork")
    process: multiprocessing.Process = context.Process(target=_main, args=(argv, output))
    process.start()
    return process


def _finish(argv: list[str], output: Path) -> float:
    """Run to the end; return the seconds it took."""
    started = time.monotonic()
    process = _start(argv, output)
    process.join(240)
    assert process.exitcode == 0, output.read_text()
    return time.monotonic() - started


def _outcome(out: Path) -> dict[str, Any]:
    """Return all that a run leaves but for times."""

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            timed = ("seconds", "wall_seconds", "training_seconds", "real_time_factor", "out")
            return {k: timeless(v) for k, v in value.items() if k not in timed}
        return value

    lines = (out / "metrics.jsonl").read_text().splitlines()
    results = json.loads((out / "results.json").read_text())
    best = torch.load(out / "best.pt", weights_only=True)
    last = torch.load(out / "last.pt", weights_only=True)
    return {
        "events": [timeless(json.loads(line)) for line in lines],
        "results": timeless(results),
        "best": {name: tensor.numpy().tobytes() for name, tensor in best["weights"].items()},
        "last": {name: tensor.numpy().tobytes() for name, tensor in last["weights"].items()},
        "test": (out / "test.jsonl").read_bytes(),
        "files": sorted(path.name for path in out.iterdir()),
    }


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
def test_a_run_killed_at_random_instants_ends_as_an_undisturbed_one(
    small_corpus: Path, tmp_path: Path, method: str
) -> None:
    output = tmp_path / "output.txt"
    whole = tmp_path / "whole"
    seconds = _finish(_argv(small_corpus, whole, METHODS[method]), output)
    numbers = random.Random(method)

    kills = done = 0
    while kills < KILLS:
        out = tmp_path / f"killed-{done}"
        argv = _argv(small_corpus, out, METHODS[method])
        process = _start(argv, output)
        process.join(numbers.uniform(0.05, 1.0) * seconds)
        if process.exitcode is None:
            process.kill()
            process.join()
            kills += 1
            continue
        assert process.exitcode == 0, output.read_text()
        assert _outcome(out) == _outcome(whole)
        done += 1
    _finish(_argv(small_corpus, tmp_path / f"killed-{done}", METHODS[method]), output)
    assert _outcome(tmp_path / f"killed-{done}") == _outcome(whole)
    assert "Traceback" not in output.read_text()
