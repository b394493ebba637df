"""What can be known before training is checked before it, in train, dev and test alike."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import eval as evaluation
import train
from data import checks, files
from data.audio import read_audio
from data.sphere import write_sphere

PARTS = ("train", "dev", "test")


@pytest.fixture
def corpus(small_corpus: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_corpus, tmp_path / "corpus"))


def _recording(corpus: Path, part: str) -> Path:
    """Return a recording of a split; dev is the tenth speaker of TRAIN."""
    folder = "TEST" if part == "test" else "TRAIN"
    speakers = sorted((path for path in corpus.glob(f"{folder}/*/*")), key=lambda p: p.name)
    speaker = speakers[9 if part == "dev" else 0]
    return sorted(speaker.glob("S[XI]*.WAV"))[0]


def _argv(corpus: Path, out: Path, *flags: str) -> list[str]:
    common = ["--data", str(corpus), "--out", str(out), "--steps", "1", "--sparsity", "0.5"]
    return ["--model", "w2v2-demo", *common, "--device", "cpu", *flags]


def _cut(path: Path, num_samples: int) -> None:
    write_sphere(path, (read_audio(path, 0, num_samples) * 32768).numpy().astype(np.int16))
    path.with_suffix(".PHN").write_text(f"0 {num_samples} h#\n")


@pytest.mark.parametrize("part", ["dev", "test"])
def test_a_recording_without_a_frame_is_named_before_training(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    path = _recording(corpus, part)
    _cut(path, 100)
    assert train.main(_argv(corpus, tmp_path / "run")) == 2
    line = capsys.readouterr().err
    assert "too short for one frame of the model" in line
    assert str(path) in line
    assert not (tmp_path / "run").exists()


def test_a_recording_without_a_frame_is_left_out_of_train_with_its_reason(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _recording(corpus, "train")
    _cut(path, 100)
    assert train.main(_argv(corpus, tmp_path / "run")) == 0
    assert "0 frames can't align" in capsys.readouterr().err
    assert "\ttrain-left-out\t" in (tmp_path / "run" / "manifest.tsv").read_text()


def test_eval_names_a_recording_without_a_frame_before_it_decodes(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(_argv(corpus, tmp_path / "run")) == 0
    _cut(_recording(corpus, "test"), 100)
    capsys.readouterr()
    assert evaluation.main(["--ckpt", str(tmp_path / "run" / "best.pt")]) == 2
    assert "too short for one frame" in capsys.readouterr().err


@pytest.mark.parametrize("part", PARTS)
def test_damaged_samples_are_named_before_training(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    path = _recording(corpus, part)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"byte_format -s2 01", b"byte_format -s2 10"))
    assert train.main(_argv(corpus, tmp_path / "run")) == 2
    line = capsys.readouterr().err
    assert f"{path}: read as its header says its samples are noise" in line
    assert not (tmp_path / "run").exists()


def test_every_damaged_recording_is_named(corpus: Path) -> None:
    from data.corpus import Corpus

    utterances = Corpus(corpus).utterances("test")
    for each in utterances[1:4]:
        content = each.path.read_bytes()
        each.path.write_bytes(content.replace(b"byte_format -s2 01", b"byte_format -s2 10"))
    with pytest.raises(ValueError, match=utterances[1].path.name) as refused:
        checks.check_recordings(utterances)
    assert all(each.utt_id in str(refused.value) for each in utterances[2:4])
    checks.check_recordings(utterances, hours=utterances[0].seconds / 3600)  # not so far


@pytest.mark.parametrize("part", ["dev", "test"])
def test_a_split_without_anything_to_compare_is_refused_before_training(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    recordings = corpus.rglob("*.WAV")
    wanted = _recording(corpus, part).parent.parent if part == "dev" else corpus / "TEST"
    for path in recordings:
        inside = path.is_relative_to(wanted) if part == "test" else path.parent == wanted
        if inside or path.parent == _recording(corpus, part).parent:
            path.with_suffix(".TXT").write_text("0 100 ...\n")
    argv = _argv(corpus, tmp_path / "run", "--target", "char")
    assert train.main(argv) == 2
    assert f"no utterance of {part} has text that count" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_single_empty_references_are_named_in_a_warning(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _recording(corpus, "test")
    path.with_suffix(".TXT").write_text("0 100 ...\n")
    assert train.main(_argv(corpus, tmp_path / "run", "--target", "char")) == 0
    warnings = [x for x in capsys.readouterr().err.splitlines() if x.startswith("warning")]
    assert len(warnings) == 1
    assert str(path) in warnings[0]


def test_too_small_a_disk_for_kept_inputs_is_refused_before_training(
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    argv = _argv(corpus, tmp_path / "run", "--cache", str(tmp_path / "cache"))
    assert train.main(argv) == 2
    assert "where 0.00 GB are free: give another place, or make room" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "cache").exists()
