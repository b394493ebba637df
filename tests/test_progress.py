"""What a run says of itself: the block at its start, lines without a terminal, TensorBoard."""

import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import train
from pruning.run.progress import describe_bytes, describe_seconds


def _run(corpus: Path, out: Path, *flags: str) -> int:
    common = ["--data", str(corpus), "--out", str(out), "--device", "cpu", "--log-every", "1"]
    common += ["--steps", "4", "--sparsity", "0.6", "--prune-every", "2"]
    return train.main(["--model", "w2v2-demo", *common, *flags])


def test_a_run_says_at_its_start_what_it_is_about_to_do(
    small_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert _run(small_corpus, out) == 0
    lines = capsys.readouterr().out.splitlines()
    said = dict(line.split(maxsplit=1) for line in lines[:10])
    assert list(said) == "corpus device train dev test model method training disk folder".split()
    assert said["device"] == "cpu, fp32"
    assert re.fullmatch(
        r"train without SA: 27 utterances, 0\.0\d h, 9 speakers, 27 of them usable", said["train"]
    )
    assert said["test"].startswith("test without SA: 6 utterances")
    assert said["method"] == "parp, sparsity 60 %"
    assert said["training"].startswith("4 steps, ")
    assert said["folder"] == str(out)

    kept = sum((out / name).stat().st_size for name in ("best.pt", "last.pt", "masks.pt"))
    stated = float(re.findall(r"while it trains, (\d+) MB then", said["disk"])[0])
    assert stated == pytest.approx(kept / 1e6, rel=0.1, abs=1.0)  # headers and rounding


def test_a_run_without_a_terminal_says_a_line_a_minute(
    small_corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pruning.run.progress.LINE_SECONDS", 0.0)
    assert _run(small_corpus, tmp_path / "run", "--eval-every", "2") == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("final: ")]
    number = r"[\d.e+-]+"
    for step, line in enumerate(lines, start=1):
        dev = rf"dev {number} %, " if step > 2 else ""
        assert re.fullmatch(
            rf"final: step {step}/4, loss {number}, rate {number}, sparsity 60 %, {dev}\d+ s left",
            line,
        )
    assert len(lines) == 4


def test_a_run_with_little_to_say_says_nothing_in_its_first_minute(
    small_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(small_corpus, tmp_path / "run") == 0
    assert "left" not in capsys.readouterr().err


def test_a_disk_that_is_too_small_is_refused_before_anything_is_trained(
    small_corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    assert _run(small_corpus, tmp_path / "run") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"checkpoints may take 0.03 GB in .*run, where 0.00 GB are free: give", line)
    assert not (tmp_path / "run").exists()


def test_keeping_the_best_leaves_what_scoring_needs_and_resumes_as_finished(
    small_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert _run(small_corpus, out, "--keep", "best") == 0
    names = {path.name for path in out.iterdir()}
    assert "last.pt" not in names
    assert {"best.pt", "masks.pt", "results.json", "metrics.jsonl", "test.jsonl"} <= names
    before = (out / "best.pt").read_bytes()
    assert _run(small_corpus, out, "--resume", "auto") == 0  # --keep makes no other run
    assert "is finished" in capsys.readouterr().out
    assert (out / "best.pt").read_bytes() == before


def test_tensorboard_gets_every_number_of_every_event(small_corpus: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    assert _run(small_corpus, out, "--tensorboard") == 0
    board = EventAccumulator(str(out / "tensorboard" / "stage-0"))
    board.Reload()
    events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    wanted: dict[str, list[tuple[int, float]]] = {}
    for event in events:
        for name in event.keys() - {"event", "stage", "step"}:
            points = wanted.setdefault(f"{event['event']}/{name}", [])
            points.append((event["step"], event[name]))
    assert set(board.Tags()["scalars"]) == set(wanted)
    for tag, points in wanted.items():
        found = board.Scalars(tag)
        assert [scalar.step for scalar in found] == [step for step, _ in points]
        assert [scalar.value for scalar in found] == pytest.approx([value for _, value in points])


def test_tensorboard_that_is_missing_is_one_line_before_training(
    small_corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert _run(small_corpus, tmp_path / "run", "--tensorboard") == 2
    assert 'pip install -e ".[tensorboard]"' in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("seconds", "text"), [(40, "40 s"), (720, "12 min"), (11_100, "3 h 05 min")]
)
def test_times_are_said_in_the_unit_that_fits(seconds: float, text: str) -> None:
    assert describe_seconds(seconds) == text


def test_sizes_are_said_in_the_unit_that_fits() -> None:
    assert [describe_bytes(size) for size in (2_400_000, 1.26e9)] == ["2 MB", "1.3 GB"]
