"""Run folders that something has damaged: what is whole is recovered, the rest named in a line."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from data.run_folder import LOCK, EventLog, hold_run_folder
from pruning.sweep import __main__ as sweep
from tests.run_folders import omp_argv

ROOT = Path(__file__).parent.parent
Capture = pytest.CaptureFixture[str]


def _refused(capsys: Capture, argv: list[str], main: Callable[[list[str]], int]) -> str:
    capsys.readouterr()
    assert main(argv) == 2
    (line,) = [
        line
        for line in capsys.readouterr().err.splitlines()
        if "left out" not in line and not line.startswith("warning")
    ]
    return line


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# Two processes


def _start(argv: list[str]) -> "subprocess.Popen[str]":
    code = "import sys, train; sys.exit(train.main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", code, *argv],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("flags", [(), ("--resume", "auto")])
def test_a_folder_that_another_process_trains_in_is_refused_at_once(
    small_corpus: Path,
    interrupted_omp: Path,
    tmp_path: Path,
    capsys: Capture,
    flags: tuple[str, ...],
) -> None:
    out = Path(shutil.copytree(interrupted_omp, tmp_path / "run"))
    before = _content(out)
    with hold_run_folder(out):
        line = _refused(capsys, omp_argv(small_corpus, out, *flags), train.main)
    assert f"another process is training in {out}: wait until it ends, or stop it" in line
    assert _content(out) == before


def test_a_lock_file_that_a_dead_process_left_is_no_lock(
    small_corpus: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).write_bytes(b"")
    assert train.main(omp_argv(small_corpus, tmp_path / "run")) == 0
    assert not (tmp_path / "run" / LOCK).exists()


@pytest.mark.long
def test_of_two_processes_in_one_folder_one_trains_and_one_is_refused(
    small_corpus: Path, tmp_path: Path
) -> None:
    argv = omp_argv(small_corpus, tmp_path / "run", "--steps", "20", "--resume", "auto")
    both = [_start(argv), _start(argv)]
    outputs = [process.communicate(timeout=120)[0] for process in both]
    status = [process.returncode for process in both]
    assert sorted(status) == [0, 2], outputs
    refused = outputs[status.index(2)].strip().splitlines()[-1]
    assert "another process" in refused
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    trained = [(each["stage"], each["step"]) for each in steps if each["event"] == "train"]
    assert trained == [(stage, step) for stage in (0, 1) for step in range(1, 21)]


def test_a_folder_that_was_made_and_stayed_empty_is_gone(tmp_path: Path) -> None:
    with hold_run_folder(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["file/run", "loop", "x" * 300])
def test_a_folder_that_cannot_be_made_is_one_line(
    small_corpus: Path, tmp_path: Path, capsys: Capture, name: str
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    line = _refused(capsys, omp_argv(small_corpus, tmp_path / name), train.main)
    assert str(tmp_path / name)[:200] in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop"]


# Events

WHOLE = [b'{"event": "train", "stage": 0, "step": %d}\n' % step for step in (1, 2, 3)]


DAMAGED_LINES = [
    WHOLE[2][:20] + b"\n",
    b"\0" * 4096 + b"\n",
    b"\xff\xfe\n",
    b'{"event": "train"}\n',
    b'{"event": "train", "stage": 0, "step": null}\n',
    b'{"event": "train", "stage": "0", "step": 3}\n',
    b"[0, 3]\n",
    b"3\n",
    b"[" * 50_000 + b"\n",
]


@pytest.mark.parametrize(
    ("damaged", "place"),
    [(line, place) for line in DAMAGED_LINES for place in (0, 1, 2)]
    + [(end, 2) for end in (WHOLE[2][:20], WHOLE[2][:-1], b"\0" * 4096)],
    ids=range(30),
)
def test_whole_events_are_kept_and_damaged_lines_left_out_with_a_line(
    tmp_path: Path, capsys: Capture, damaged: bytes, place: int
) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = WHOLE[:2]
    lines.insert(place, damaged)
    path.write_bytes(b"".join(lines))
    EventLog(path, at=(0, 9))
    assert path.read_bytes() == b"".join(WHOLE[:2])
    said = capsys.readouterr().err
    assert said == f"{path}: left out 1 damaged lines; the last whole event is of step 2\n"


def test_a_run_with_a_damaged_log_goes_on_as_if_it_were_whole(
    small_corpus: Path, interrupted_omp: Path, tmp_path: Path
) -> None:
    whole, cut = (Path(shutil.copytree(interrupted_omp, tmp_path / name)) for name in ("a", "b"))
    with (cut / "metrics.jsonl").open("ab") as file:
        file.write(b'{"event": "train", "sta' + bytes(3000))
    for out in (whole, cut):
        assert train.main(omp_argv(small_corpus, out, "--resume", "auto")) == 0
    events = [
        [
            {k: v for k, v in json.loads(line).items() if not k.endswith("seconds")}
            for line in (out / "metrics.jsonl").open()
        ]
        for out in (whole, cut)
    ]
    assert events[0] == events[1]


# JSON of another shape


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "config.json is damaged"),
        ("[]", "config.json holds no JSON object"),
        ("{}", "config.json: options is missing, expected dict of any"),
        ('{"options": null}', "config.json: options is None, expected dict of any"),
        ('{"options": [1, 2]}', "config.json: options is [1, 2], expected dict of any"),
        ('{"options": {}}', "begun with other options"),
    ],
)
def test_a_config_of_another_shape_is_refused_by_name_and_nothing_is_lost(
    small_corpus: Path,
    interrupted_omp: Path,
    tmp_path: Path,
    capsys: Capture,
    content: str,
    said: str,
) -> None:
    out = Path(shutil.copytree(interrupted_omp, tmp_path / "run"))
    (out / "config.json").write_text(content)
    before = _content(out)
    assert said in _refused(capsys, omp_argv(small_corpus, out, "--resume", "auto"), train.main)
    assert _content(out) == before


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[", "stage-dense.pt"),
        ("{}", "config.json: options is missing"),
        ('{"options": {}}', "is not what this run would train"),
    ],
)
def test_a_reused_run_with_a_config_of_another_shape_is_refused_by_name(
    small_corpus: Path, finished_omp: Path, tmp_path: Path, capsys: Capture, content: str, said: str
) -> None:
    other = Path(shutil.copytree(finished_omp, tmp_path / "other"))
    if content == "[":
        (other / "stage-dense.pt").write_bytes(b"damaged")
    else:
        (other / "config.json").write_text(content)
    argv = omp_argv(small_corpus, tmp_path / "run", "--reuse", str(other))
    assert said in _refused(capsys, argv, train.main)
    assert not (tmp_path / "run").exists()


def _changed(results: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    *outer, last = path.split(".")
    inner = results
    for name in outer:
        inner = inner[name]
    inner[last] = value
    return results


@pytest.mark.parametrize("value", [None, [], {}, True])
@pytest.mark.parametrize(
    "path", ["split", "sparsity", "sparsity.in_scope", "per", "per.rate", "per.insertions"]
)
def test_results_of_another_shape_are_refused_by_file_and_key(
    small_corpus: Path, finished_omp: Path, capsys: Capture, path: str, value: Any
) -> None:
    file = finished_omp / "results.json"
    before = file.read_bytes()
    file.write_text(json.dumps(_changed(json.loads(before), path, value)))
    try:
        status = train.main(omp_argv(small_corpus, finished_omp, "--resume", "auto"))
    finally:
        file.write_bytes(before)
    assert status == 2
    assert f"results.json: {path}" in capsys.readouterr().err


def test_damaged_options_of_a_sweep_are_refused_by_name(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "study"
    (out / "dense").mkdir(parents=True)
    (out / "dense" / "config.json").write_text("{}")
    (out / ".sweep.json").write_text("[1]")
    config = tmp_path / "study.toml"
    config.write_text(f'out = "{out}"\n[train]\nmodel = "w2v2-demo"\n[grid]\nmethod = ["dense"]')
    line = _refused(capsys, ["--config", str(config)], sweep.main)
    assert f"{out / '.sweep.json'} holds no JSON object: delete it, if" in line
    assert (out / ".sweep.json").read_text() == "[1]"


# What is in last.pt

CHANGES: dict[str, tuple[str, Any]] = {
    "no step": ("step", None),
    "step as text": ("step", "1"),
    "negative step": ("step", -1),
    "no rates": ("best", "0.1"),
    "other seconds": ("seconds", [1.0]),
    "no schedule": ("schedule", {}),
    "schedule as list": ("schedule", [1]),
    "a stage too many": ("schedule.stage", 9),
    "masks as list": ("schedule.masks", []),
    "masks of numbers": ("schedule.masks", {"encoder.layers.0.ffn.fc1.bias": torch.ones(512)}),
    "a mask of another size": ("schedule.first_masks", {"encoder.norm": torch.ones(3) > 0}),
    "no sampler": ("sampler", None),
    "a place beyond the epoch": ("sampler.position", 10**6),
    "an epoch as text": ("sampler.epoch", "0"),
    "adjusted weights of no parameter": ("adjusted", {"x": torch.ones(2)}),
    "adjusted weights as list": ("adjusted", [torch.ones(2)]),
    "no optimizer": ("optimizer", None),
    "no moments": ("optimizer.adam", {}),
    "moments as list": ("optimizer.adam.state", [1]),
    "moments of another size": ("optimizer.adam.state", {0: {"exp_avg": torch.ones(1)}}),
    "moments of no parameter": ("optimizer.adam.state", {10**6: {}}),
    "counts as text": ("optimizer.skipped", "0"),
    "loss scaling": ("optimizer.scaler", {"scale": 1.0}),
    "random numbers": ("rng", torch.zeros(3)),
    "random numbers as text": ("rng", "x"),
}


@pytest.mark.parametrize(("path", "value"), CHANGES.values(), ids=CHANGES)
def test_a_last_checkpoint_whose_state_was_changed_is_refused_by_file_and_key(
    small_corpus: Path,
    interrupted_omp: Path,
    tmp_path: Path,
    capsys: Capture,
    path: str,
    value: Any,
) -> None:
    out = Path(shutil.copytree(interrupted_omp, tmp_path / "run"))
    content = torch.load(out / "last.pt", weights_only=True)
    _changed(content["training"], path, value)
    torch.save(content, out / "last.pt")
    before = _content(out)
    line = _refused(capsys, omp_argv(small_corpus, out, "--resume", "auto"), train.main)
    assert "last.pt" in line or "batch 1000000 of an epoch" in line
    assert _content(out) == before


@pytest.mark.long
@pytest.mark.parametrize("name", ["initial.pt", "best.pt", "stage-dense.pt"])
def test_a_run_is_not_gone_on_with_that_can_not_be_finished(
    small_corpus: Path, interrupted_omp: Path, tmp_path: Path, capsys: Capture, name: str
) -> None:
    out = Path(shutil.copytree(interrupted_omp, tmp_path / "run"))
    argv = omp_argv(small_corpus, out, "--resume", "auto")
    last = torch.load(out / "last.pt", weights_only=True)
    last["training"]["schedule"]["stage"] = 1  # as in the second of two stages
    torch.save(last, out / "last.pt")
    (out / name).unlink(missing_ok=True)
    before = _content(out)
    assert f"{out / name} is gone" in _refused(capsys, argv, train.main)
    assert _content(out).keys() == before.keys()
    assert all(_content(out)[each] == before[each] for each in ("last.pt", "metrics.jsonl"))
