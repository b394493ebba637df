"""What a user gets wrong: one line on stderr, exit status 2, and nothing lost."""

import pickle
import shutil
import struct
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import eval as evaluation
import train
from models import build_model
from models.checkpoint import Checkpoint, save_checkpoint
from models.convert import to_hf
from models.initial import random_checkpoint
from models.tokenizers.symbols import SymbolTokenizer

Corpus = Path


@pytest.fixture
def corpus(small_corpus: Path, tmp_path: Path) -> Path:
    """A copy of the small corpus that a test may damage."""
    return Path(shutil.copytree(small_corpus, tmp_path / "corpus"))


def _refused(
    capsys: pytest.CaptureFixture[str], main: Callable[[list[str]], int], argv: list[str]
) -> str:
    """Run a command that has to fail as the user's mistake; return its one line."""
    capsys.readouterr()
    try:
        status = main(argv)
    except SystemExit as stop:
        status = int(stop.code or 0)
    errors = capsys.readouterr().err
    lines = [line for line in errors.splitlines() if "left out" not in line]
    assert status == 2
    assert len(lines) == 1, errors
    assert "Traceback" not in errors
    return lines[0]


def _train(corpus: Path, out: Path, *flags: str) -> list[str]:
    common = ["--data", str(corpus), "--out", str(out), "--device", "cpu", "--steps", "1"]
    return ["--model", "w2v2-demo", *common, *flags]


def _a_recording(corpus: Path) -> Path:
    return sorted((corpus / "TRAIN").rglob("S[XI]*.WAV"))[0]


def _header(path: Path, field: str, value: str) -> None:
    """Replace a field of a SPHERE header, keeping its length."""
    content = path.read_bytes()
    head, rest = content[:1024], content[1024:]
    lines = head.decode("ascii").split("\n")
    kept = [line for line in lines if not line.startswith(field + " ")]
    kept.insert(2, f"{field} {value}")
    path.write_bytes("\n".join(kept).encode("ascii")[:1024].ljust(1024, b" ") + rest)


@pytest.mark.parametrize("sparsity", ["1", "-0.1", "60"])
def test_sparsity_out_of_range_is_refused(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], sparsity: str
) -> None:
    line = _refused(capsys, train.main, _train(corpus, tmp_path / "run", "--sparsity", sparsity))
    assert "fraction in [0, 1)" in line
    assert not (tmp_path / "run").exists()


def test_missing_corpus_says_where_it_was_looked_for_and_names_the_demo(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = _refused(capsys, train.main, _train(tmp_path / "nowhere", tmp_path / "run"))
    assert "nowhere" in line
    assert "--data demo" in line


def test_empty_corpus_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    line = _refused(capsys, train.main, _train(tmp_path / "empty", tmp_path / "run"))
    assert "TRAIN" in line


def test_users_own_command_without_corpus_and_weights_names_both_remedies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TIMIT_ROOT", raising=False)
    monkeypatch.setenv("PARP_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.chdir(tmp_path)
    line = _refused(capsys, train.main, ["--model", "w2v2", "--sparsity", "0.6"])
    for wanted in ("data/TIMIT", "weights", "facebook/wav2vec2-base", "--data demo"):
        assert wanted in line


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("sample_coding", "-s26 pcm,embedded-shorten-v2.00", "shorten"),
        ("sample_rate", "-i 8000", "8000"),
        ("channel_count", "-i 2", "2 channels|stereo|channel"),
        ("sample_count", "-i 99999999", "truncated|99999999"),
    ],
)
def test_unreadable_audio_is_named(
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    field: str,
    value: str,
    named: str,
) -> None:
    recording = _a_recording(corpus)
    _header(recording, field, value)
    line = _refused(capsys, train.main, _train(corpus, tmp_path / "run"))
    assert recording.name in line
    assert any(word in line for word in named.split("|"))


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        ("0 1000 h#\n1000 2000 xyz\n", "xyz"),
        ("0 1000 h#\n500 2000 aa\n", "overlap|before"),
        (f"0 {'9' * 5000} h#\n", "start end label"),
        ("0 1000 h#\n2000 1500 aa\n", "backward|end"),
    ],
)
def test_wrong_phone_labels_are_named(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], labels: str, named: str
) -> None:
    path = _a_recording(corpus).with_suffix(".PHN")
    path.write_text(labels)
    line = _refused(capsys, train.main, _train(corpus, tmp_path / "run"))
    assert path.name in line
    assert any(word in line for word in named.split("|"))


def test_corpus_too_short_for_every_target_is_refused(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from data.sphere import write_sphere

    for path in corpus.rglob("*.WAV"):
        write_sphere(path, np.zeros(800, dtype=np.int16))
        path.with_suffix(".PHN").write_text(
            "".join(f"{80 * i} {80 * i + 80} aa\n" for i in range(10))
        )
    line = _refused(capsys, train.main, _train(corpus, tmp_path / "run"))
    assert "none of the 27 training utterances can be used" in line


def test_context_shorter_than_an_utterance_is_refused_before_training(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--model", "whisper-demo", "--audio-ctx", "1")
    line = _refused(capsys, train.main, _train(corpus, tmp_path / "run", *flags))
    assert "longer than the model's audio context of 1 s" in line
    assert "--audio-ctx own" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("part", ["TRAIN", "TEST"])
@pytest.mark.parametrize("context", ["own", "auto", "full"])
def test_recording_of_more_than_thirty_seconds_is_named_before_training(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str, context: str
) -> None:
    recording = sorted((corpus / part).rglob("S[XI]*.WAV"))[0]
    with wave.open(str(recording), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(2 * 31 * 16_000))
    flags = ("--model", "whisper-demo", "--audio-ctx", context)
    line = _refused(capsys, train.main, _train(corpus, tmp_path / "run", *flags))
    assert str(recording) in line
    assert "take such recordings out of the corpus, or cut them" in line
    assert not (tmp_path / "run").exists()


def test_folder_of_another_run_is_left_alone(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "best.pt").write_bytes(b"precious")
    line = _refused(capsys, train.main, _train(corpus, tmp_path / "run"))
    assert "not empty" in line
    assert (tmp_path / "run" / "best.pt").read_bytes() == b"precious"


def test_weights_of_another_model_are_refused(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(tmp_path / "w.pt", random_checkpoint("whisper-demo"))
    argv = _train(corpus, tmp_path / "run", "--init", str(tmp_path / "w.pt"))
    assert "another model than w2v2-demo" in _refused(capsys, train.main, argv)


def test_whisper_text_target_without_its_vocabulary_is_refused(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = _train(corpus, tmp_path / "run", "--target", "text", "--model", "whisper-demo")
    assert "vocabulary" in _refused(capsys, train.main, argv)


def test_weights_folder_with_keys_missing_lists_them(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file, save_file

    to_hf(build_model("w2v2-demo"), tmp_path / "hf")
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    name = next(key for key in tensors if "q_proj.weight" in key)
    del tensors[name]
    save_file(tensors, tmp_path / "hf" / "model.safetensors", metadata={"format": "pt"})
    argv = _train(corpus, tmp_path / "run", "--init", str(tmp_path / "hf"))
    assert name in _refused(capsys, train.main, argv)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    tokenizer = SymbolTokenizer.for_ctc("phone", ["aa", "sil"])
    model = build_model("w2v2-demo", vocab_size=3)
    frontend = {"kind": "waveform", "normalize": True}
    path = tmp_path / "model.pt"
    save_checkpoint(path, Checkpoint(model, tokenizer, frontend=frontend, decoding={"blank_id": 0}))
    return path


def test_truncated_checkpoint_is_refused(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1000])
    assert str(checkpoint) in _refused(capsys, evaluation.main, ["--ckpt", str(checkpoint)])


def test_checkpoint_of_an_unknown_version_is_refused(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(checkpoint, weights_only=True)
    torch.save(content | {"version": 99}, checkpoint)
    assert "99" in _refused(capsys, evaluation.main, ["--ckpt", str(checkpoint)])


class _RunsCode:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


def test_pickle_that_would_run_code_is_refused_and_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "evil.pt"
    path.write_bytes(pickle.dumps(_RunsCode(tmp_path / "owned")))
    _refused(capsys, evaluation.main, ["--ckpt", str(path)])
    assert not (tmp_path / "owned").exists()


def test_tokenizer_that_does_not_match_the_checkpoint_is_refused(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(checkpoint, weights_only=True)
    content["tokenizer"] = SymbolTokenizer.for_ctc("phone", ["aa", "b", "sil"]).spec()
    torch.save(content, checkpoint)
    line = _refused(capsys, evaluation.main, ["--ckpt", str(checkpoint)])
    assert "vocabulary" in line


def test_missing_checkpoint_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = _refused(capsys, evaluation.main, ["--ckpt", str(tmp_path / "none.pt")])
    assert "none.pt" in line


def test_stereo_riff_is_refused(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recording = _a_recording(corpus)
    data = bytes(6400)
    form = struct.pack("<IHHIIHH", 16, 1, 2, 16000, 64000, 4, 16)
    recording.write_bytes(
        b"RIFF"
        + struct.pack("<I", 36 + len(data))
        + b"WAVEfmt "
        + form
        + b"data"
        + struct.pack("<I", len(data))
        + data
    )
    line = _refused(capsys, train.main, _train(corpus, tmp_path / "run"))
    assert recording.name in line


def test_resume_with_other_options_names_them(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(_train(corpus, tmp_path / "run")) == 0
    before = (tmp_path / "run" / "last.pt").read_bytes()
    argv = _train(corpus, tmp_path / "run", "--resume", "auto", "--seed", "7")
    assert "seed was 0" in _refused(capsys, train.main, argv)
    assert (tmp_path / "run" / "last.pt").read_bytes() == before
