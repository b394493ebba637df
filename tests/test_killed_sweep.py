"""Sweeps with the real train.py, killed."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.sweep_process import (
    ROOT,
    await_that,
    end_of,
    finished_runs,
    kill_all,
    start_sweep,
    write_config,
)

REAL = """
out = "{out}"
devices = ["cpu", "cpu"]
threads = 1
[train]
model = "w2v2-demo"
data = "{corpus}"
steps = 4
eval_every = 2
batch_seconds = 4
[grid]
method = ["dense", "omp", "parp"]
sparsity = [0.3, 0.5, 0.7]
"""
KILLS = 6
REAL_SMALL = REAL.replace("[0.3, 0.5, 0.7]", "[0.5]")


def _outcome(out: Path) -> tuple[bytes, dict[str, Any]]:
    """Return results.csv, and zeros and shift of every tensor of every run."""
    results = {
        name: json.loads((out / name / "results.json").read_text()) for name in finished_runs(out)
    }
    return (out / "results.csv").read_bytes(), {name: results[name]["tensors"] for name in results}


@pytest.fixture(scope="module")
def undisturbed(
    small_corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[bytes, dict[str, Any]]:
    """Outcome of a sweep with the real train.py that nothing disturbs."""
    folder = tmp_path_factory.mktemp("sweep")
    config = write_config(folder, REAL.replace("{corpus}", str(small_corpus)))
    command = [sys.executable, "-m", "pruning.sweep", "--config", str(config)]
    subprocess.run(command, cwd=ROOT, check=True)
    outcome = _outcome(folder / "study")
    shutil.rmtree(folder)
    return outcome


@pytest.mark.long
def test_sweep_killed_twice_ends_with_the_results_of_an_undisturbed_one(
    small_corpus: Path, tmp_path: Path, undisturbed: tuple[bytes, dict[str, Any]]
) -> None:
    config = write_config(tmp_path, REAL.replace("{corpus}", str(small_corpus)))
    out = tmp_path / "study"

    process = start_sweep(config)
    await_that(lambda: finished_runs(out) and len(list(out.glob("*/config.json"))) >= 3, process)
    process.terminate()
    assert end_of(process)[0] == 130
    known = finished_runs(out)
    assert 1 <= len(known) < 7

    process = start_sweep(config)
    await_that(lambda: len(finished_runs(out)) > len(known), process)
    kill_all(process, out)
    assert len(finished_runs(out)) < 7

    status, output = end_of(start_sweep(config))
    assert status == 0, output
    assert _outcome(out) == undisturbed
    assert json.loads((out / "omp-0.5/results.json").read_text())["cost"]["fine_tuning_runs"] == 2


@pytest.mark.long
def test_killed_sweep_on_ray_ends_with_the_results_of_a_local_one(
    small_corpus: Path, tmp_path: Path, undisturbed: tuple[bytes, dict[str, Any]]
) -> None:
    config = write_config(tmp_path, REAL_SMALL.replace("{corpus}", str(small_corpus)))
    out = tmp_path / "study"
    process = start_sweep(config, "--ray")
    await_that(lambda: finished_runs(out), process)
    kill_all(process, out)
    assert len(finished_runs(out)) < 3

    status, output = end_of(start_sweep(config, "--ray"))
    assert status == 0, output
    (table, tensors), (local_table, local_tensors) = _outcome(out), undisturbed
    assert tensors == {name: local_tensors[name] for name in ("dense", "omp-0.5", "parp-0.5")}
    assert set(table.splitlines()) <= set(local_table.splitlines())


@pytest.mark.long
def test_sweep_killed_at_random_instants_ends_with_the_results_of_an_undisturbed_one(
    small_corpus: Path, tmp_path: Path, undisturbed: tuple[bytes, dict[str, Any]]
) -> None:
    table, tensors = undisturbed
    wanted = {name: tensors[name] for name in ("dense", "omp-0.5", "parp-0.5")}
    numbers = random.Random(0)

    # A sweep that ends between two kills is looked at, and the next one begins in a new folder.
    kills = ended = 0
    while True:
        text = REAL_SMALL.replace("{corpus}", str(small_corpus))
        config = write_config(tmp_path, text, out=f"study-{ended}")
        process = start_sweep(config)
        if kills < KILLS:
            try:
                process.wait(numbers.uniform(1.0, 9.0))
            except subprocess.TimeoutExpired:
                kill_all(process, tmp_path / f"study-{ended}")
                kills += 1
                continue
        status, output = end_of(process)
        assert status == 0, output
        assert "Traceback" not in output
        found_table, found = _outcome(tmp_path / f"study-{ended}")
        assert found == wanted
        assert set(found_table.splitlines()) <= set(table.splitlines())
        if kills == KILLS:
            break
        ended += 1
