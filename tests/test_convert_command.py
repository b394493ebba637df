"""Folders that are in the way, ``python -m models.convert``, and the search for weights."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models import build_model
from models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from models.convert import find_weights, from_hf, load_weights, to_hf
from models.convert.__main__ import main
from models.tokenizers import SymbolTokenizer

safetensors_torch = pytest.importorskip("safetensors.torch")

PHONES = ["aa", "ah", "b", "dcl", "sil", "sh"]


def test_to_hf_into_a_full_folder_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ValueError, match="exists and is not empty"):
        to_hf(build_model("w2v2-demo"), tmp_path)
    with pytest.raises(ValueError, match="no older export"):
        to_hf(build_model("w2v2-demo"), tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_to_hf_with_overwrite_replaces_an_older_export(tmp_path):
    to_hf(build_model("w2v2-demo"), tmp_path / "out")
    model = build_model("w2v2-demo", vocab_size=5)
    to_hf(model, tmp_path / "out", overwrite=True)
    assert from_hf(tmp_path / "out").config == model.config
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_to_hf_with_another_models_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match="tokenizer has 2 ids, the model's vocabulary 32"):
        to_hf(build_model("w2v2-demo"), tmp_path / "a", SymbolTokenizer.for_ctc("phone", ["a"]))


def test_load_weights_of_nothing_says_what_it_looked_for(tmp_path):
    with pytest.raises(
        ValueError, match="no weights at .*: looked for a run or a checkpoint file of ours"
    ):
        load_weights(tmp_path / "nothing")


def demo_checkpoint(path: Path) -> Path:
    tokenizer = SymbolTokenizer.for_ctc("phone", PHONES)
    model = build_model("w2v2-demo", vocab_size=tokenizer.vocab_size)
    save_checkpoint(path, Checkpoint(model, tokenizer, decoding={"blank_id": 0}))
    return path


def test_convert_command_there_and_back_keeps_every_bit(tmp_path, capsys):
    source = demo_checkpoint(tmp_path / "a.pt")
    assert main(["--to", "hf", str(source), str(tmp_path / "hf")]) == 0
    assert main([str(tmp_path / "hf"), str(tmp_path / "b.pt")]) == 0
    before, after = load_checkpoint(source), load_checkpoint(tmp_path / "b.pt")
    states = before.model.state_dict(), after.model.state_dict()
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert re.search(r"b.pt \(parp\): wav2vec2, [\d,]+ parameters, 7 phone tokens$", lines[1])


@pytest.mark.parametrize("target", ["hf", "parp"])
def test_convert_command_says_what_own_lengths_mean_in_hugging_face(tmp_path, capsys, target):
    frontend = {"kind": "log_mel", "num_mels": 80, "audio_ctx": "own"}
    save_checkpoint(tmp_path / "a.pt", Checkpoint(build_model("whisper-demo"), frontend=frontend))
    assert main(["--to", target, str(tmp_path / "a.pt"), str(tmp_path / "out")]) == 0
    line = capsys.readouterr().out
    assert ("other programs pad all audio to 30 s" in line) == (target == "hf")
    assert line.count("\n") == 1


def test_convert_command_says_that_a_head_is_new(tmp_path, capsys):
    to_hf(build_model("w2v2-demo"), tmp_path / "hf")
    weights = tmp_path / "hf" / "model.safetensors"
    tensors = safetensors_torch.load_file(weights)
    safetensors_torch.save_file({n: t for n, t in tensors.items() if "lm_head" not in n}, weights)
    assert main([str(tmp_path / "hf"), str(tmp_path / "b.pt")]) == 0
    assert capsys.readouterr().out.endswith("no tokenizer, new CTC head\n")


def test_convert_command_does_not_overwrite_without_force(tmp_path, capsys):
    source = demo_checkpoint(tmp_path / "a.pt")
    (tmp_path / "b.pt").write_text("precious")
    assert main([str(source), str(tmp_path / "b.pt")]) == 2
    assert re.fullmatch(
        r"python -m models.convert: error: .*b.pt exists: .*--force\n", capsys.readouterr().err
    )
    assert (tmp_path / "b.pt").read_text() == "precious"
    assert main(["--force", str(source), str(tmp_path / "b.pt")]) == 0


@pytest.mark.long
def test_convert_command_as_a_module_reports_a_mistake_in_one_line(tmp_path):
    command = [sys.executable, "-m", "models.convert", str(tmp_path / "no"), str(tmp_path / "b")]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 2
    assert re.fullmatch(r"python -m models.convert: error: no weights at .*\n", done.stderr)
    assert not done.stdout


@pytest.mark.parametrize("name", ["w2v2", "w2v2.pt"])
def test_find_weights_looks_in_the_local_folder_first(tmp_path, monkeypatch, name):
    (tmp_path / name).touch()
    monkeypatch.setenv("PARP_WEIGHTS", str(tmp_path))
    assert find_weights("w2v2") == tmp_path / name


def test_find_weights_without_any_names_every_remedy(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PARP_WEIGHTS", raising=False)

    def offline(*args, **kwargs):
        raise hub.errors.LocalEntryNotFoundError("offline")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(ValueError, match="no weights for whisper-tiny") as caught:
        find_weights("whisper-tiny")
    message = str(caught.value)
    for part in ("weights/whisper-tiny[.pt]", "hf download openai/whisper-tiny", "--init PATH"):
        assert part in message
    assert "--model whisper-demo --data demo" in message
    assert "\n" not in message


def test_find_weights_takes_the_pickle_where_the_hub_has_no_safetensors(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("PARP_WEIGHTS", str(tmp_path / "none"))
    asked = []

    def download(hub_id, name):
        asked.append((hub_id, name))
        if name == "model.safetensors":
            raise hub.errors.EntryNotFoundError("none")
        return str(tmp_path / name)

    monkeypatch.setattr(hub, "snapshot_download", lambda *args, **kwargs: str(tmp_path))
    monkeypatch.setattr(hub, "hf_hub_download", download)
    assert find_weights("w2v2") == tmp_path
    assert asked[1] == ("facebook/wav2vec2-base", "pytorch_model.bin")


def test_find_weights_of_the_demo_model_says_it_has_none(tmp_path, monkeypatch):
    monkeypatch.setenv("PARP_WEIGHTS", str(tmp_path))
    with pytest.raises(ValueError, match="train it with --init random"):
        find_weights("w2v2-demo")
