"""Runs that learn from a teacher: what they leave, how they go on, and which are refused."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import pruning.run.teacher
import train
from data.inputs import model_input
from models import build_model, build_task
from models.checkpoint import load_checkpoint, save_checkpoint
from models.training.distill import prepares_alike
from pruning.mask_file import weights_hash

MODELS = ("w2v2-demo", "whisper-demo")


def _run(corpus: Path, out: Path, *flags: str, model: str = "w2v2-demo", steps: int = 4) -> int:
    common = ["--data", str(corpus), "--out", str(out), "--batch-seconds", "4", "--log-every", "1"]
    return train.main(["--model", model, "--steps", str(steps), "--device", "cpu", *common, *flags])


def _weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(load_checkpoint(path).model.state_dict())


def _differing(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> list[str]:
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]


def _train_events(out: Path, stage: int = 0) -> list[dict[str, Any]]:
    events = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [
        {key: value for key, value in event.items() if key != "seconds"}
        for event in events
        if event["event"] == "train" and event["stage"] == stage
    ]


def _results(out: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((out / "results.json").read_text())
    return results


@pytest.fixture(scope="module")
def teachers(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished dense run of every model."""
    folder = tmp_path_factory.mktemp("teachers")
    for model in MODELS:
        flags = ("--method", "dense", "--seed", "7")
        assert _run(small_corpus, folder / model, *flags, model=model, steps=3) == 0
    return {model: folder / model for model in MODELS}


@pytest.fixture(scope="module")
def taught_omp(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An omp run that learns from its own dense stage."""
    out = tmp_path_factory.mktemp("omp") / "run"
    assert _run(small_corpus, out, *_omp("self")) == 0
    return out


def _omp(teacher: str) -> list[str]:
    return ["--method", "omp", "--sparsity", "0.3", "--eval-every", "2", "--teacher", teacher]


@pytest.mark.long
def test_weight_one_on_the_task_alone_trains_as_without_a_teacher(
    small_corpus: Path, tmp_path: Path, teachers: dict[str, Path]
) -> None:
    flags = ("--sparsity", "0.5", "--prune-every", "2")
    alone = ("--distill-task", "1", "--distill-logits", "0")
    teacher = ("--teacher", str(teachers["w2v2-demo"]))
    assert _run(small_corpus, tmp_path / "plain", *flags) == 0
    assert _run(small_corpus, tmp_path / "taught", *flags, *teacher, *alone) == 0
    plain, taught = (_weights(tmp_path / name / "last.pt") for name in ("plain", "taught"))
    assert not _differing(plain, taught)


@pytest.mark.parametrize("method", ["dense", "rp", "parp"])
def test_every_method_learns_from_a_teacher(
    small_corpus: Path, tmp_path: Path, teachers: dict[str, Path], method: str
) -> None:
    flags = ("--method", method, "--sparsity", "0.5", "--teacher", str(teachers["w2v2-demo"]))
    assert _run(small_corpus, tmp_path / "run", *flags, steps=1) == 0
    (event,) = _train_events(tmp_path / "run")
    assert event["logit_loss"] > 0
    loss = 0.5 * event["task_loss"] + 4 * event["logit_loss"]
    assert event["loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.long
@pytest.mark.parametrize(
    ("model", "flags"),
    [
        ("w2v2-demo", ["--distill-hidden", "1"]),
        ("whisper-demo", ["--distill-hidden", "1", "--mask-time", "0.2"]),
    ],
)
def test_taught_run_interrupted_and_resumed_equals_an_undisturbed_one(
    small_corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    teachers: dict[str, Path],
    model: str,
    flags: list[str],
) -> None:
    flags = [*flags, "--sparsity", "0.5", "--prune-every", "2", "--teacher", str(teachers[model])]
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert _run(small_corpus, whole, *flags, model=model) == 0
    with monkeypatch.context() as patch:
        _interrupt(patch, lambda run: run.step == 2)
        assert _run(small_corpus, halves, *flags, model=model) == 130
    torch.manual_seed(999)
    assert _run(small_corpus, halves, *flags, "--resume", "auto", model=model) == 0

    assert not _differing(_weights(whole / "last.pt"), _weights(halves / "last.pt"))
    assert _train_events(whole) == _train_events(halves)
    assert "hidden_loss" in _train_events(halves)[-1]


def _interrupt(patch: pytest.MonkeyPatch, when: Callable[[train.Run], bool]) -> None:
    log_step = train.log_step

    def interrupt(run: train.Run, *values: Any) -> None:
        log_step(run, *values)
        if when(run):
            signal.raise_signal(signal.SIGINT)

    patch.setattr(train, "log_step", interrupt)


@pytest.mark.long
def test_run_that_is_its_own_teacher_learns_from_its_dense_stage_alone(
    small_corpus: Path, tmp_path: Path, taught_omp: Path
) -> None:
    dense = ("--method", "dense", "--eval-every", "2")
    assert _run(small_corpus, tmp_path / "dense", *dense) == 0
    assert _train_events(taught_omp) == _train_events(tmp_path / "dense")
    teacher, best = _weights(taught_omp / "teacher.pt"), _weights(tmp_path / "dense/best.pt")
    assert not _differing(teacher, best)
    assert all("logit_loss" in event for event in _train_events(taught_omp, stage=1))


def test_run_that_is_its_own_teacher_goes_on_where_it_was_interrupted(
    small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taught_omp: Path
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        _interrupt(patch, lambda run: run.schedule.stage == 1 and run.step == 1)
        assert _run(small_corpus, out, *_omp("self")) == 130
    assert _run(small_corpus, out, *_omp("self"), "--resume", "auto") == 0
    assert _train_events(out, stage=1) == _train_events(taught_omp, stage=1)
    assert not _differing(_weights(out / "last.pt"), _weights(taught_omp / "last.pt"))


@pytest.mark.long
@pytest.mark.parametrize("rate", [[], ["--rate-per-phase"]], ids=["one rate", "rate per phase"])
def test_gradual_pruning_learns_from_the_model_that_its_dense_phase_left(
    small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: list[str]
) -> None:
    flags = ["--method", "gmp", "--sparsity", "0.5", "--dense-share", "0.4", "--prune-every", "1"]
    flags += ["--teacher", "self", "--distill-hidden", "1", *rate]
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    adjusted = {}

    def keep(run: train.Run, *values: Any) -> None:
        log_step(run, *values)
        adjusted[run.step] = {k: v.clone() for k, v in run.checkpoint.model.state_dict().items()}

    log_step = train.log_step
    with monkeypatch.context() as patch:
        patch.setattr(train, "log_step", keep)
        assert _run(small_corpus, whole, *flags, steps=6) == 0
    events = _train_events(whole)
    assert ["hidden_loss" in event for event in events] == [False] * 2 + [True] * 4
    assert not _differing(_weights(whole / "teacher.pt"), adjusted[2])

    for step in (1, 2, 4):
        with monkeypatch.context() as patch:
            _interrupt(patch, lambda run, step=step: run.step == step)
            resume = ["--resume", "auto"] if halves.exists() else []
            assert _run(small_corpus, halves, *flags, *resume, steps=6) == 130
    assert _run(small_corpus, halves, *flags, "--resume", "auto", steps=6) == 0
    assert _train_events(halves) == events
    assert not _differing(_weights(whole / "last.pt"), _weights(halves / "last.pt"))


@pytest.mark.long
@pytest.mark.parametrize("model", ["w2v2-demo", "whisper-demo"])
def test_dense_share_with_a_rate_of_its_own_ends_as_a_dense_run_of_its_length(
    small_corpus: Path, tmp_path: Path, model: str
) -> None:
    flags = ["--method", "gmp", "--sparsity", "0.5", "--dense-share", "0.5", "--prune-every", "1"]
    flags += ["--teacher", "self", "--rate-per-phase"]
    dense, run = tmp_path / "dense", tmp_path / "run"
    assert _run(small_corpus, dense, "--method", "dense", model=model, steps=4) == 0
    assert _run(small_corpus, run, *flags, model=model, steps=8) == 0
    assert not _differing(_weights(run / "teacher.pt"), _weights(dense / "last.pt"))


@pytest.mark.long
def test_dense_stage_that_is_taken_over_teaches_as_one_that_was_trained(
    small_corpus: Path, tmp_path: Path, taught_omp: Path
) -> None:
    assert _run(small_corpus, tmp_path / "dense", "--method", "dense", "--eval-every", "2") == 0
    for source in (tmp_path / "dense", taught_omp):
        out = tmp_path / f"from-{source.name}"
        assert _run(small_corpus, out, *_omp("self"), "--reuse", str(source)) == 0
        assert not _train_events(out)
        assert _train_events(out, stage=1) == _train_events(taught_omp, stage=1)


def test_stage_without_the_whole_dense_model_cannot_teach(
    small_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(small_corpus, tmp_path / "omp", *_omp("none")) == 0
    flags = (*_omp("self"), "--reuse", str(tmp_path / "omp"))
    assert _run(small_corpus, tmp_path / "run", *flags) == 2
    assert "keeps no whole model of its dense stage" in capsys.readouterr().err


def test_stage_that_another_teacher_taught_is_not_taken_over(
    small_corpus: Path, tmp_path: Path, teachers: dict[str, Path], taught_omp: Path, capsys: Any
) -> None:
    flags = (*_omp(str(teachers["w2v2-demo"])), "--reuse", str(taught_omp))
    assert _run(small_corpus, tmp_path / "run", *flags) == 2
    assert "not what this run would train (teacher is 'self' there" in capsys.readouterr().err


def test_results_name_the_teacher_and_count_what_it_took(
    small_corpus: Path, tmp_path: Path, teachers: dict[str, Path], taught_omp: Path
) -> None:
    folder = teachers["w2v2-demo"]
    assert _run(small_corpus, tmp_path / "run", "--teacher", str(folder)) == 0
    teacher, cost = _results(tmp_path / "run")["teacher"], _results(tmp_path / "run")["cost"]
    best = load_checkpoint(folder / "best.pt").model
    assert teacher["path"] == str(folder)
    assert teacher["weights_hash"] == weights_hash(dict(best.named_parameters()))
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["run"]["teacher"] == teacher
    assert (cost["fine_tuning_runs"], cost["steps"]) == (2, 4 + 3)
    assert cost["training_seconds"] > teacher["cost"]["training_seconds"] > 0

    itself = _results(taught_omp)
    assert itself["teacher"]["path"] == "self"
    assert (itself["cost"]["fine_tuning_runs"], itself["cost"]["steps"]) == (2, 8)
    assert _results(folder)["teacher"] is None


def test_file_of_a_checkpoint_teaches_and_its_steps_count(
    small_corpus: Path, tmp_path: Path, teachers: dict[str, Path]
) -> None:
    file = tmp_path / "elsewhere.pt"
    shutil.copy(teachers["whisper-demo"] / "last.pt", file)
    flags = ("--teacher", str(file))
    assert _run(small_corpus, tmp_path / "run", *flags, model="whisper-demo", steps=1) == 0
    cost = _results(tmp_path / "run")["cost"]
    assert (cost["fine_tuning_runs"], cost["steps"]) == (2, 4)


@pytest.mark.long
@pytest.mark.parametrize(
    ("teacher", "runs", "steps"),
    [("none", 2, 4 + 3), ("the same", 2, 4 + 3), ("another", 3, 4 + 3 + 3)],
)
def test_what_fine_tuned_the_initial_weights_counts_once(
    small_corpus: Path,
    tmp_path: Path,
    teachers: dict[str, Path],
    teacher: str,
    runs: int,
    steps: int,
) -> None:
    folder, file = teachers["w2v2-demo"], teachers["w2v2-demo"] / "best.pt"
    paths = {"none": "none", "the same": str(folder), "another": str(tmp_path / "another")}
    if teacher == "another":
        assert _run(small_corpus, tmp_path / "another", "--seed", "5", steps=3) == 0
    flags = ("--init", str(file), "--teacher", paths[teacher])
    assert _run(small_corpus, tmp_path / "run", *flags) == 0
    cost = _results(tmp_path / "run")["cost"]
    assert (cost["fine_tuning_runs"], cost["steps"]) == (runs, steps)


def test_teacher_that_has_changed_is_refused_when_a_run_goes_on(
    small_corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    teachers: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "teacher.pt"
    shutil.copy(teachers["w2v2-demo"] / "best.pt", file)
    with monkeypatch.context() as patch:
        _interrupt(patch, lambda run: run.step == 1)
        assert _run(small_corpus, tmp_path / "run", "--teacher", str(file)) == 130
    shutil.copy(teachers["w2v2-demo"] / "last.pt", file)
    checkpoint = load_checkpoint(file)
    with torch.no_grad():
        checkpoint.model.get_parameter("head.bias").add_(1e-3)
    save_checkpoint(file, checkpoint)
    flags = ("--teacher", str(file), "--resume", "auto")
    assert _run(small_corpus, tmp_path / "run", *flags) == 2
    assert "other weights than the teacher that this run began with" in capsys.readouterr().err


def _heard_by_teacher(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Return a list of the inputs that are read for a teacher alone."""
    heard: list[torch.Tensor] = []
    read = model_input

    def record(*args: Any) -> torch.Tensor:
        heard.append(read(*args))
        return heard[-1]

    monkeypatch.setattr(pruning.run.teacher, "model_input", record)
    return heard


def test_teacher_with_another_feature_encoder_hears_the_recording_itself(
    small_corpus: Path, tmp_path: Path, teachers: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = _heard_by_teacher(monkeypatch)
    flags = ("--freeze", "feature_encoder", "--seed", "3")
    teacher = ("--teacher", str(teachers["w2v2-demo"]))
    assert _run(small_corpus, tmp_path / "run", *flags, *teacher, steps=1) == 0
    assert heard
    assert all(waveform.dim() == 1 for waveform in heard)


def test_features_are_shared_where_the_feature_encoder_is_the_same(
    teachers: dict[str, Path],
) -> None:
    first, second = (load_checkpoint(teachers["w2v2-demo"] / "best.pt") for _ in range(2))
    teacher, student = (build_task(each.model, each.decoding) for each in (first, second))
    with torch.no_grad():
        next(teacher.model.feature_encoder.parameters()).add_(1e-3)
    assert prepares_alike(teacher, student)  # from waveforms
    student.model.feature_encoder.requires_grad_(False)
    assert not prepares_alike(teacher, student)
    teacher.model.load_state_dict(student.model.state_dict())
    assert prepares_alike(teacher, student)


def test_teacher_with_another_frontend_hears_the_recording_itself(
    small_corpus: Path, tmp_path: Path, teachers: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = load_checkpoint(teachers["w2v2-demo"] / "best.pt")
    checkpoint.frontend["normalize"] = not checkpoint.frontend["normalize"]
    save_checkpoint(tmp_path / "other.pt", checkpoint)
    heard = _heard_by_teacher(monkeypatch)
    for name, times in ((str(teachers["w2v2-demo"]), 0), (str(tmp_path / "other.pt"), 1)):
        out = tmp_path / f"run-{times}"
        assert _run(small_corpus, out, "--teacher", name, steps=1) == 0
        assert bool(heard) == bool(times)


def test_teacher_of_another_width_teaches_logits_but_no_hidden_states(
    small_corpus: Path, tmp_path: Path, teachers: dict[str, Path], capsys: Any
) -> None:
    wide = _changed(teachers["whisper-demo"], tmp_path / "wide.pt", d_model=48, encoder_layers=1)
    flags = ("--teacher", str(wide))
    assert _run(small_corpus, tmp_path / "run", *flags, model="whisper-demo", steps=1) == 0
    hidden = (*flags, "--distill-hidden", "1")
    assert _run(small_corpus, tmp_path / "other", *hidden, model="whisper-demo") == 2
    line = _one_line(capsys)
    assert "width 48, encoder layers 1" in line
    assert "width 96, encoder layers 2" in line
    assert "leave it at 0, logits can be compared" in line


def _changed(run: Path, path: Path, model: str | None = None, **overrides: Any) -> Path:
    """Write a checkpoint like that of a run, of another model with random weights."""
    checkpoint = load_checkpoint(run / "best.pt")
    vocab_size = checkpoint.config.vocab_size
    name = model or checkpoint.run.model
    checkpoint.model = build_model(name, vocab_size=vocab_size, **overrides)
    save_checkpoint(path, checkpoint)
    return path


def _one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the line of a refusal; nothing else may be on stderr."""
    lines = [x for x in capsys.readouterr().err.splitlines() if ": error: " in x]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--teacher", "nowhere"], "--teacher nowhere: there is no nowhere; give the folder"),
        (["--teacher", "RUN"], "is this run itself: give another run, or self"),
        (["--teacher", "RUN/best.pt"], "is this run itself: give another run, or self"),
        (["--teacher", "UNFINISHED"], "no finished run, there is no results.json in it: finish it"),
        (["--teacher", "whisper-demo"], "is a whisper, whose outputs stand at other places"),
        (["--teacher", "w2v2-demo", "--target", "char"], "trained on target phone, this run is on"),
        (["--teacher", "w2v2-demo", "--phones", "48"], "has another tokenizer"),
        (["--teacher", "self"], "--teacher self is not for dense, which has no dense phase"),
        (["--teacher", "self", "--sparsity", "0.5"], "--teacher self is not for parp, which has"),
        (
            ["--teacher", "self", "--method", "gmp"],
            "dense phase has none of the 4 steps",
        ),
        (["--teacher", "w2v2-demo", "--distill-task", "-1"], "weights: give none below 0"),
        (["--teacher", "w2v2-demo", "--temperature", "0"], "give a positive number"),
    ],
)
def test_teacher_that_cannot_teach_is_refused_before_training(
    small_corpus: Path,
    tmp_path: Path,
    teachers: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    (tmp_path / "unfinished").mkdir()
    shutil.copy(teachers["w2v2-demo"] / "best.pt", tmp_path / "unfinished/best.pt")
    places = {"RUN": tmp_path / "run", "UNFINISHED": tmp_path / "unfinished"} | teachers
    name, _, file = flags[1].partition("/")
    if name in places:
        flags = [flags[0], str(places[name] / file), *flags[2:]]
    assert _run(small_corpus, tmp_path / "run", *flags) == 2
    assert message in _one_line(capsys)
    assert not list(tmp_path.glob("run/*st.pt"))


def test_ctc_teacher_of_another_family_teaches_where_the_frames_are_the_same(
    small_corpus: Path, tmp_path: Path, teachers: dict[str, Path]
) -> None:
    path = _changed(teachers["w2v2-demo"], tmp_path / "hubert.pt", "hubert-demo")
    flags = ("--teacher", str(path), "--distill-hidden", "1")
    assert _run(small_corpus, tmp_path / "run", *flags, steps=1) == 0
    assert _train_events(tmp_path / "run")[0]["logit_loss"] > 0


def test_ctc_teacher_with_other_frames_is_refused(
    small_corpus: Path, tmp_path: Path, teachers: dict[str, Path], capsys: Any
) -> None:
    strides = (5, 2, 2, 2, 2, 2, 1)
    path = _changed(teachers["w2v2-demo"], tmp_path / "fine.pt", conv_strides=strides)
    assert _run(small_corpus, tmp_path / "run", "--teacher", str(path)) == 2
    assert "has other frames than the student" in _one_line(capsys)


def test_teacher_whose_context_is_too_short_is_refused_before_training(
    small_corpus: Path, tmp_path: Path, teachers: dict[str, Path], capsys: Any
) -> None:
    checkpoint = load_checkpoint(teachers["whisper-demo"] / "best.pt")
    checkpoint.frontend["audio_ctx"] = 1.0
    save_checkpoint(tmp_path / "short.pt", checkpoint)
    flags = ("--teacher", str(tmp_path / "short.pt"))
    assert _run(small_corpus, tmp_path / "run", *flags, model="whisper-demo") == 2
    assert "longer than the model's audio context of 1 s" in _one_line(capsys)


@pytest.mark.parametrize("context", ["auto", "own"])
def test_teacher_at_own_lengths_teaches_a_student_at_own_lengths_alone(
    uneven_corpus: Path, tmp_path: Path, teachers: dict[str, Path], capsys: Any, context: str
) -> None:
    checkpoint = load_checkpoint(teachers["whisper-demo"] / "best.pt")
    checkpoint.frontend["audio_ctx"] = "own"
    save_checkpoint(tmp_path / "own.pt", checkpoint)
    flags = ("--teacher", str(tmp_path / "own.pt"), "--audio-ctx", context)
    status = _run(uneven_corpus, tmp_path / "run", *flags, model="whisper-demo", steps=2)
    assert status == (0 if context == "own" else 2)
    if status:
        assert "train with --audio-ctx own" in _one_line(capsys)
