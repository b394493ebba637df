"""A run that is refused, or fails before it has begun, leaves nothing behind."""

from collections.abc import Callable
from pathlib import Path

import pytest

import train
from data.phones import PHONE_SETS
from models import build_model
from models.checkpoint import Checkpoint, save_checkpoint
from models.initial import random_checkpoint
from models.tokenizers.symbols import SymbolTokenizer


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "new" / "run"


def _argv(corpus: Path, out: Path, *flags: str) -> list[str]:
    common = ["--data", str(corpus), "--out", str(out), "--steps", "2", "--sparsity", "0.5"]
    return ["--model", "w2v2-demo", *common, "--device", "cpu", *flags]


def _teacher(path: Path, symbols: list[str], **sizes: int) -> Path:
    tokenizer = SymbolTokenizer.for_ctc("phone", symbols)
    model = build_model("w2v2-demo", vocab_size=tokenizer.vocab_size, **sizes)
    front_end = {"kind": "waveform", "normalize": True}
    decoding = {"blank_id": tokenizer.blank_id}
    save_checkpoint(path, Checkpoint(model, tokenizer, frontend=front_end, decoding=decoding))
    return path


def _other_architecture(tmp_path: Path) -> list[str]:
    save_checkpoint(tmp_path / "w.pt", random_checkpoint("whisper-demo"))
    return ["--init", str(tmp_path / "w.pt")]


def _other_tokenizer(tmp_path: Path) -> list[str]:
    return ["--teacher", str(_teacher(tmp_path / "teacher.pt", ["aa", "sil"]))]


def _other_width(tmp_path: Path) -> list[str]:
    path = _teacher(tmp_path / "teacher.pt", list(PHONE_SETS[39]), d_model=64)
    return ["--teacher", str(path), "--distill-hidden", "1"]


def _damaged_mask(tmp_path: Path) -> list[str]:
    (tmp_path / "masks.pt").write_bytes(b"no mask")
    return ["--init-mask", str(tmp_path / "masks.pt")]


REFUSED: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "weights": (_other_architecture, "another model than w2v2-demo"),
    "no such weights": (lambda _: ["--init", "nowhere.pt"], "nowhere.pt"),
    "vocabulary": (lambda _: ["--target", "text"], "--target text is not for"),
    "teacher's tokenizer": (_other_tokenizer, "has another tokenizer"),
    "teacher's width": (_other_width, "--distill-hidden can't compare"),
    "masks": (_damaged_mask, "masks.pt"),
    "no dense steps": (
        lambda _: ["--teacher", "self", "--method", "gmp", "--dense-share", "0.1"],
        "the dense phase has none of",
    ),
    "nothing to teach in": (
        lambda tmp_path: ["--teacher", str(tmp_path), "--steps", "0"],
        "--teacher teaches nothing in 0 steps",
    ),
    "negative steps": (lambda _: ["--steps", "-1"], "--steps is -1: give 0"),
    "mixed precision": (lambda _: ["--precision", "fp16"], "fp16 needs a CUDA device"),
    "subwords": (
        lambda _: ["--target", "subword", "--subword-vocab", "9000"],
        "--subword-vocab 9000",
    ),
}


@pytest.mark.parametrize(("flags", "said"), REFUSED.values(), ids=REFUSED)
def test_a_refused_run_leaves_nothing(
    small_corpus: Path,
    tmp_path: Path,
    out: Path,
    capsys: pytest.CaptureFixture[str],
    flags: Callable[[Path], list[str]],
    said: str,
) -> None:
    assert train.main(_argv(small_corpus, out, *flags(tmp_path))) == 2
    assert said in capsys.readouterr().err
    assert not out.parent.exists()


def test_the_corrected_command_works_with_the_same_out(
    small_corpus: Path, tmp_path: Path, out: Path
) -> None:
    out.mkdir(parents=True)
    assert train.main(_argv(small_corpus, out, *_other_tokenizer(tmp_path))) == 2
    assert list(out.iterdir()) == []  # a folder that was there stays
    assert train.main(_argv(small_corpus, out, "--steps", "1")) == 0


@pytest.mark.parametrize("error", [ValueError("out of memory at step 1"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["optimizer_step", "begin_stage"])
def test_a_run_that_ends_before_its_first_event_leaves_nothing(
    small_corpus: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    where: str,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(train, where, fail)
    assert train.main(_argv(small_corpus, out)) in (2, 130)
    assert not out.parent.exists()


def test_files_of_others_stay_where_a_run_fails_before_it_begins(
    small_corpus: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_run = train.build_run

    def build_and_fail(plan: train.Plan) -> None:
        build_run(plan)
        (out / "notes.txt").write_text("mine")
        raise ValueError("no")

    monkeypatch.setattr(train, "build_run", build_and_fail)
    assert train.main(_argv(small_corpus, out)) == 2
    assert [path.name for path in out.iterdir()] == ["notes.txt"]


def test_a_run_that_fails_once_it_has_begun_keeps_what_it_has(
    small_corpus: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer_step = train.optimizer_step

    def fail_at_two(run: train.Run) -> object:
        if run.step == 1:
            raise ValueError("out of memory at step 2")
        return optimizer_step(run)

    monkeypatch.setattr(train, "optimizer_step", fail_at_two)
    assert train.main(_argv(small_corpus, out, "--log-every", "1")) == 2
    assert {"config.json", "metrics.jsonl", "initial.pt"} <= {path.name for path in out.iterdir()}


def test_a_refused_resume_changes_nothing(
    small_corpus: Path,
    tmp_path: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fit = train.fit
    monkeypatch.setattr(train, "fit", lambda run: fit(run) and False)  # all but its end
    teacher = _teacher(tmp_path / "teacher.pt", list(PHONE_SETS[39]))
    argv = _argv(small_corpus, out, "--teacher", str(teacher), "--log-every", "1")
    assert train.main(argv) == 130
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    _teacher(teacher, list(PHONE_SETS[39]))  # with other weights
    assert train.main([*argv, "--resume", "auto"]) == 2
    assert "has other weights than the teacher" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_option_of_log_mels_given_to_waveforms_is_said_to_be_left_out(
    small_corpus: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(_argv(small_corpus, out, "--audio-ctx", "own", "--steps", "0")) == 0
    assert "--audio-ctx is of log-mels, and w2v2-demo hears waveforms" in capsys.readouterr().err
