"""The benchmarks at tiny sizes: the code runs, contenders alternate, the same is computed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import common, cpu, gpu, reprune, scaling, seq2seq, wav2vec2, whole_run
from benchmarks.common import Contender, Report, Row, Settings, alternate, format_report

SMOKE = Settings(smoke=True, repeats=1, warmup=0)
WHOLE_RUNS = {"growth", "w2v2-run", "whisper-run"}  # they start processes


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that only moves when it is told to."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(common.time, "perf_counter", lambda: clock.now)
    return clock


def test_alternate_takes_turns_and_leaves_setup_and_warmup_out(clock: SimpleNamespace) -> None:
    order: list[str] = []
    seconds = {"a": iter([9.0, 1.0, 2.0, 6.0]), "b": iter([9.0, 4.0, 8.0, 12.0])}

    def contender(name: str) -> Contender:
        def run() -> int:
            order.append(name)
            clock.now += next(seconds[name])
            return len(order)

        def setup() -> None:
            order.append(f"setup {name}")
            clock.now += 100.0

        return Contender(name, run, setup if name == "b" else None)

    rows = alternate([contender("a"), contender("b")], repeats=3, warmup=1)
    assert order == ["a", "setup b", "b"] * 4
    assert [row.seconds for row in rows] == [[1.0, 2.0, 6.0], [4.0, 8.0, 12.0]]
    assert [row.median for row in rows] == [2.0, 8.0]
    assert rows[1].result == 12
    report = Report("two", rows)
    assert report.ratios == {"b / a": {"of_medians": 4.0, "min_pair": 2.0, "max_pair": 4.0}}
    summary = rows[0].summary()
    assert (summary["min_seconds"], summary["max_seconds"]) == (1.0, 6.0)
    assert summary["iqr_seconds"] == pytest.approx(2.5)
    assert summary["repetitions"] == 3


def test_table_shows_times_ratios_and_failed_checks() -> None:
    report = Report("title", [Row("ours", [0.001]), Row("theirs", [0.003], {"WER": 0.25})])
    report.check_close("loss", 1.0, 1.1, 1e-3)
    report.check("tokens", True)
    text = format_report("item", report)
    assert "theirs / ours = 3.000" in text
    assert "WER 0.25" in text
    assert "NOT THE SAME: loss: 1 and 1.1" in text
    assert "  same: tokens" in text


@pytest.mark.long
def test_cpu_items_run_and_compute_the_same(
    tmp_path: Path, small_corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("jiwer")
    ckpt = write_short_checkpoint(tmp_path / "best.pt", small_corpus)
    names = cpu.ITEMS.keys() - WHOLE_RUNS
    arguments = ["--smoke", "--threads", "1", "--data", str(small_corpus), "--ckpt", str(ckpt)]
    arguments += ["--json", str(tmp_path / "found.json"), "--only", *names]
    assert cpu.main(arguments) == 0
    content = json.loads((tmp_path / "found.json").read_text("utf-8"))
    assert not content["skipped"]
    assert content["items"].keys() == names
    assert {"versions", "threads", "date", "command", "processor"} <= content["environment"].keys()
    out = capsys.readouterr().out
    for name, reports in content["items"].items():
        for report in reports:
            assert report["checks"], name
            assert all(check["passed"] for check in report["checks"]), report["checks"]
            assert all(row["median_seconds"] > 0 for row in report["rows"])
            assert f"{name}: {report['title']}" in out
    peers = {
        row["name"] for reports in content["items"].values() for r in reports for row in r["rows"]
    }
    assert {
        "ours",
        "ours, waveforms",
        "ours, plain",
        "transformers",
        "transformers, 4 s",
        "transformers, 30 s",
        "jiwer",
    } <= peers


def write_short_checkpoint(path: Path, corpus: Path) -> Path:
    """Write whisper-demo for phones with a context of 4 s, as a run leaves it."""
    from data.phones import PHONE_SETS
    from data.targets import target_text
    from data.timit import load_timit
    from models.checkpoint import save_checkpoint
    from models.initial import fit_target, random_checkpoint

    checkpoint = random_checkpoint("whisper-demo")
    texts = [target_text(utterance, "phone", 39) for utterance in load_timit(corpus, "test")]
    fit_target(checkpoint, "phone", texts, PHONE_SETS[39], 0)
    checkpoint.frontend["audio_ctx"] = 4.0
    checkpoint.decoding["max_tokens"] = 12
    save_checkpoint(path, checkpoint)
    return path


@pytest.mark.long
def test_gpu_items_run_on_the_cpu(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    file = tmp_path / "found.json"
    names = gpu.ITEMS.keys() - WHOLE_RUNS
    arguments = ["--device", "cpu", "--smoke", "--threads", "1", "--json", str(file)]
    assert gpu.main([*arguments, "--only", *names]) == 0
    content = json.loads(file.read_text("utf-8"))
    assert content["items"].keys() == names
    reports = [report for reports in content["items"].values() for report in reports]
    assert all(report["checks"] for report in reports)
    assert all(len(report["rows"]) > 1 for report in reports if report["ratios"])


@pytest.mark.long
def test_growth_item_runs_train_py(capsys: pytest.CaptureFixture[str]) -> None:
    (report,) = whole_run.growth_item(SMOKE)
    assert [check.passed for check in report.checks] == [True]
    assert [row.name for row in report.rows] == ["0.5 of 10 utterances", "1 of 10 utterances"]
    for row in report.rows:
        assert 0 < row.median < 60
        assert row.figures["first step after s"] > 0


@pytest.mark.long
def test_whole_run_item_runs_train_py() -> None:
    (report,) = whole_run.run_item(SMOKE, "w2v2")
    assert [check.passed for check in report.checks] == [True]
    (row,) = report.rows
    assert row.name == "w2v2-demo, parp"
    assert 0 < row.figures["first step after s"] < row.median < 60


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("arguments", [[], ["--device", "cpu"], ["--smoke"]])
def test_gpu_without_a_device_ends_with_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("gpu.py needs a CUDA device: ")
    assert captured.err.count("\n") == 1
    assert not captured.out


def test_other_loss_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    original = wav2vec2.hf_twin

    def other_twin(*args: Any, **kwargs: Any) -> Any:
        twin = original(*args, **kwargs)
        with torch.no_grad():
            twin.lm_head.weight *= 1.1
        return twin

    monkeypatch.setattr(wav2vec2, "hf_twin", other_twin)
    (report,) = wav2vec2.step_item(SMOKE, 2)
    failed = [check.what for check in report.checks if not check.passed]
    assert len(failed) == 1
    assert failed[0].startswith("loss of ours and transformers")


def test_other_tokens_fail_the_check() -> None:
    report = Report("")
    seq2seq.check_ids(report, "tokens", [[1, 2], [3]], [[1, 2], [4]])
    assert [check.passed for check in report.checks] == [False]
    assert report.checks[0].what == "tokens: 1 of 2 texts, 3 tokens"


def test_other_counts_fail_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    jiwer = pytest.importorskip("jiwer")
    monkeypatch.setattr(
        scaling,
        "import_peer",
        lambda name: SimpleNamespace(
            process_words=lambda refs, hyps: jiwer.process_words(refs, refs)
        ),
    )
    (report,) = scaling.error_rate_item(SMOKE)
    assert not any(check.passed for check in report.checks)


@pytest.mark.parametrize("name", [name for name in reprune.PRUNERS if name != "ours"])
def test_other_masks_fail_the_check(name: str) -> None:
    found = {}
    for one in ("ours", name):
        modules = reprune.build_modules(reprune.SMOKE_SIZE)
        reprune.PRUNERS[one](modules)
        found[one] = reprune.fingerprint(modules)
    report = Report("")
    reprune.check_fingerprints(report, found)
    assert all(check.passed for check in report.checks)
    found[name] = found[name] | {"kept_sum": found[name]["kept_sum"] * 1.001}
    reprune.check_fingerprints(report, found)
    assert not all(check.passed for check in report.checks)


def test_peers_not_installed_are_left_out_with_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("transformers", "torchaudio", "jiwer"):
        monkeypatch.setitem(sys.modules, module, None)
    (step,) = wav2vec2.step_item(SMOKE, 2)
    assert [row.name for row in step.rows] == ["ours", "ours, waveforms", "ours, plain"]
    assert step.notes == [
        "transformers is not installed: left out",
        "torchaudio is not installed: left out",
    ]
    (scores,) = scaling.error_rate_item(SMOKE)
    assert scores.notes == ["jiwer is not installed: left out"]


def test_items_that_cannot_run_are_skipped_with_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "found.json"
    arguments = ["--only", "whisper-short", "--smoke", "--threads", "1", "--json", str(file)]
    assert cpu.main(arguments) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert (
        last == "whisper-short: skipped: needs a fine-tuned whisper: give --ckpt runs/.../best.pt"
    )
    assert json.loads(file.read_text("utf-8"))["skipped"].keys() == {"whisper-short"}


def test_failed_check_ends_with_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    report = Report("")
    report.check("no", False)
    monkeypatch.setitem(cpu.ITEMS, "reprune", lambda settings: [report])
    assert cpu.main(["--only", "reprune", "--smoke", "--threads", "1"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--repeats", "-1"], "--repeats is -1: give a positive number"),
        (["--threads", "0"], "--threads is 0: give a positive number"),
        (["--only", "whisper-short", "--ckpt", "none.pt", "--threads", "1"], "none.pt"),
    ],
)
def test_wrong_input_ends_with_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cpu.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("cpu.py: error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.long
def test_peak_memory_is_that_of_the_process_alone() -> None:
    ballast = torch.ones(25_000_000)  # 100 MB, which a child must not be charged with
    command = "from benchmarks.reprune import peak_bytes; print(peak_bytes())"
    root = Path(__file__).parent.parent
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    child = subprocess.run(
        [sys.executable, "-c", command], cwd=root, env=environment, capture_output=True, check=True
    )
    assert 10e6 < int(child.stdout) < 1e9
    assert reprune.peak_bytes() > 4 * ballast.numel()


@pytest.mark.parametrize(
    ("seconds", "verdict"), [(0.216, "27 found, as predicted"), (0.4, "50 found, NOT AS PREDICTED")]
)
def test_prediction_is_said_beside_what_was_found(seconds: float, verdict: str) -> None:
    report = Report("steps", [Row("ours", [seconds]), Row("ours, plain", [1.0])])
    note = gpu.PREDICTIONS["w2v2-step"].note(report)
    assert note == f"ours: 24.5 to 30 ms predicted, {verdict}"
