"""What a message advises can be done, and leads on."""

import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import eval as evaluation
import train
from data import files
from data.options import run_program
from models.checkpoint import save_checkpoint
from models.initial import presets_like, random_checkpoint


def _train(*flags: str) -> list[str]:
    return ["--model", "w2v2-demo", "--device", "cpu", "--steps", "1", *flags]


def _said(
    capsys: pytest.CaptureFixture[str], main: Callable[[list[str]], int], argv: list[str]
) -> str:
    """Run a command that has to fail as the user's mistake; return its one line."""
    capsys.readouterr()
    try:
        status = main(argv)
    except SystemExit as stop:
        status = int(stop.code or 0)
    errors = capsys.readouterr().err
    assert status == 2
    assert len(errors.splitlines()) == 1, errors
    return errors


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        (["--sparcity", "0.5"], "did you mean --sparsity?"),
        (["--batch-size=8"], "did you mean --batch-seconds?"),
        (["--learning_rates", "1"], "(see --help)"),
        (["--method", "prap"], "did you mean parp?"),
        (["--target", "phones"], "did you mean phone?"),
    ],
)
def test_a_near_miss_of_a_flag_or_a_choice_is_answered(
    capsys: pytest.CaptureFixture[str], wrong: list[str], meant: str
) -> None:
    assert meant in _said(capsys, train.main, _train(*wrong))


def test_a_near_miss_in_a_config_file_is_answered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.toml").write_text("sparcity = 0.5\n")
    argv = _train("--config", str(tmp_path / "c.toml"))
    assert "did you mean sparsity?" in _said(capsys, train.main, argv)


@pytest.mark.parametrize("name", ["TIMIT.zip", "timit.tar.gz", "LDC93S1.TGZ"])
def test_an_archive_in_place_of_a_corpus_is_to_be_unpacked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        archive.writestr("TIMIT/README", "")
    for data in (tmp_path / name, tmp_path):
        line = _said(capsys, train.main, _train("--data", str(data)))
        assert f"{tmp_path / name} is an archive: unpack it" in line


@pytest.mark.parametrize(("there", "missing"), [("TRAIN", "TEST"), ("TEST", "TRAIN")])
def test_one_part_of_timit_without_the_other_is_said_to_be_there(
    small_corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    there: str,
    missing: str,
) -> None:
    shutil.copytree(small_corpus / there, tmp_path / "deep" / "TIMIT" / there)
    line = _said(capsys, train.main, _train("--data", str(tmp_path)))
    assert f"{tmp_path / 'deep' / 'TIMIT'} has {there} and no {missing}: restore" in line


def test_a_recording_of_another_suffix_beside_labels_is_named_and_the_advice_works(
    small_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import soundfile

    corpus = shutil.copytree(small_corpus, tmp_path / "corpus")
    recordings = sorted(corpus.rglob("*.WAV"))
    for path in recordings:
        samples, rate = soundfile.read(path, dtype="int16")
        path.unlink()
        soundfile.write(path.with_suffix(".flac"), samples, rate)
    argv = _train("--data", str(corpus), "--out", str(tmp_path / "run"))
    line = _said(capsys, train.main, argv)
    assert ".flac is there; whatever they hold, recordings are named .WAV here" in line
    for path in recordings:
        path.with_suffix(".flac").rename(path)
    assert train.main(argv) == 0


OTHERS: dict[str, tuple[object, str]] = {
    "trainer": ({"state_dict": {"a": torch.zeros(1)}, "epoch": 3}, "training script with state_di"),
    "lightning": (
        {"pytorch-lightning_version": "2.0", "state_dict": {}},
        "a checkpoint of PyTorch Lightning or NeMo with",
    ),
    "tensors": ({f"layer{i}": torch.zeros(1) for i in range(6)}, "layer3 and 2 more"),
    "list": ([torch.zeros(1)], "it holds a list|holds a list"),
}


@pytest.mark.parametrize(("content", "said"), OTHERS.values(), ids=OTHERS)
def test_weights_of_others_are_named_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: object, said: str
) -> None:
    path = tmp_path / "other.pt"
    torch.save(content, path)
    line = _said(capsys, evaluation.main, ["--ckpt", str(path)])
    assert any(words in line for words in said.split("|"))
    line = _said(capsys, train.main, _train("--data", "demo", "--init", str(path)))
    assert any(words in line for words in said.split("|"))
    assert "export a Hugging Face folder" in line


def test_safetensors_without_a_config_say_what_is_missing_beside_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"x": torch.zeros(2)}, tmp_path / "model.safetensors")
    argv = _train("--data", "demo", "--init", str(tmp_path / "model.safetensors"))
    assert "put the config.json that it was published with beside it" in _said(
        capsys, train.main, argv
    )


def test_a_run_folder_stands_for_its_best_checkpoint(
    small_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    common = ("--data", str(small_corpus))
    assert train.main(_train(*common, "--out", str(run))) == 0
    assert evaluation.main(["--ckpt", str(run), "--device", "cpu"]) == 0
    flags = (*common, "--init", str(run), "--out", str(tmp_path / "next"))
    assert train.main(_train(*flags)) == 0
    (run / "best.pt").unlink()
    line = _said(capsys, evaluation.main, ["--ckpt", str(run)])
    assert f"{run} is a folder without a best.pt" in line


@pytest.mark.parametrize(
    ("weights", "model"),
    [("hubert-demo", "w2v2-demo"), ("whisper-demo", "w2v2-demo"), ("w2v2-demo", "whisper-demo")],
)
def test_a_wrong_model_for_the_weights_is_told_the_right_one(
    small_corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    weights: str,
    model: str,
) -> None:
    save_checkpoint(tmp_path / "w.pt", random_checkpoint(weights))
    argv = ["--data", str(small_corpus), "--init", str(tmp_path / "w.pt"), "--model", model]
    line = _said(capsys, train.main, [*argv, "--out", str(tmp_path / "run")])
    assert f"holds another model than {model}" in line
    assert f"give --model {weights}" in line


def test_presets_are_told_by_their_sizes() -> None:
    from models import PRESETS, build_model

    small = [name for name in PRESETS if name.endswith("demo")]
    assert [presets_like(build_model(name, vocab_size=9)) for name in small] == [[n] for n in small]


@pytest.mark.parametrize(
    ("built", "count", "said"),
    [(False, 0, "is built without CUDA"), (True, 0, "torch sees no CUDA device")]
    + [(True, 2, "there are 2, cuda:0 to cuda:1")],
)
def test_a_device_that_is_not_there_says_why(
    monkeypatch: pytest.MonkeyPatch, built: bool, count: int, said: str
) -> None:
    from models.device import resolve_device

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("none")

    monkeypatch.setattr(torch, "empty", refuse)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: built)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(ValueError, match=said):
        resolve_device("cuda:7")


def test_warnings_of_libraries_are_one_line_of_ours_and_said_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_SAID", set())

    def work() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            for _ in range(2):
                warnings.warn("two\nlines", stacklevel=1)
            warnings.warn("for programmers", DeprecationWarning, stacklevel=1)

    before = warnings.showwarning
    warnings.showwarning = before
    assert run_program("a program", work) == 0
    assert capsys.readouterr().err == "warning: two lines\n"
    assert warnings.showwarning is before
