"""The card beside exported weights: its facts, and its Python, which is run."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data.log_mel import log_mel
from models import build_model, build_task
from models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from models.convert import load_weights
from models.convert.__main__ import main
from models.facts import RunFacts
from models.tokenizers import ByteBPETokenizer, SymbolTokenizer
from tests.test_byte_bpe import small_parts

pytest.importorskip("transformers")

RUN = RunFacts(
    model="some-model",
    target="phone",
    method="parp",
    sparsity=0.6,
    scope="encoder",
    seed=3,
    init="random",
)


def ctc_checkpoint() -> Checkpoint:
    tokenizer = SymbolTokenizer.for_ctc("phone", ["aa", "ah", "b", "sil", "sh"])
    model = build_model("w2v2-demo", vocab_size=tokenizer.vocab_size)
    frontend = {"kind": "waveform", "normalize": True}
    return Checkpoint(model, tokenizer, frontend=frontend, decoding={"blank_id": 0}, run=RUN)


def text_checkpoint(audio_ctx: float | None = 1.0) -> Checkpoint:
    tokenizer = ByteBPETokenizer(*small_parts(multilingual=False))
    model = build_model("whisper-demo", vocab_size=tokenizer.vocab_size)
    with torch.no_grad():
        model.decoder.positions.add_(0.1 * torch.randn(model.decoder.positions.shape))
    decoding = {"start_ids": list(tokenizer.start_ids), "eos_id": tokenizer.eos_id}
    decoding |= {"max_tokens": 448, "suppress_ids": [], "begin_suppress_ids": []}
    frontend = {"kind": "log_mel", "num_mels": 80, "audio_ctx": audio_ctx}
    return Checkpoint(model, tokenizer, frontend=frontend, decoding=decoding, run=RUN)


def export(folder: Path, checkpoint: Checkpoint) -> str:
    """Export from a run folder; return the card."""
    save_checkpoint(folder / "best.pt", checkpoint)
    assert main(["--to", "hf", str(folder / "best.pt"), str(folder / "hf")]) == 0
    return (folder / "hf" / "README.md").read_text()


def said_by(card: str, folder: Path, waveform: torch.Tensor, capsys: pytest.CaptureFixture) -> str:
    """Run the card's Python and return what it prints."""
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    capsys.readouterr()
    exec(code.replace("FOLDER", str(folder / "hf")), {"waveform": waveform.numpy()})
    return capsys.readouterr().out.strip()


def test_python_of_a_ctc_card_gives_our_text(tmp_path, capsys):
    checkpoint = ctc_checkpoint()
    card = export(tmp_path, checkpoint)
    waveform = 0.1 * torch.randn(16000)
    normal = (waveform - waveform.mean()) / torch.sqrt(waveform.var(correction=0) + 1e-7)
    (ids,) = build_task(checkpoint.model.eval(), checkpoint.decoding).search([normal])
    assert said_by(card, tmp_path, waveform, capsys) == checkpoint.tokenizer.decode(ids) != ""


def test_python_of_a_text_card_gives_our_text(tmp_path, capsys):
    checkpoint = text_checkpoint()
    card = export(tmp_path, checkpoint)
    waveform = 0.1 * torch.randn(16000)
    task = build_task(checkpoint.model.eval(), checkpoint.decoding)
    (ids,) = task.search([log_mel(waveform, num_mels=80, seconds=1.0)])
    assert ids
    assert said_by(card, tmp_path, waveform, capsys) == checkpoint.tokenizer.decode(ids).strip()


def test_text_is_exported_with_all_of_the_decoders_places(tmp_path):
    export(tmp_path, text_checkpoint())
    generation = json.loads((tmp_path / "hf" / "generation_config.json").read_text())
    assert generation["max_length"] == 448
    assert load_weights(tmp_path / "hf").decoding["max_tokens"] == 448


def test_card_names_what_the_model_is(tmp_path):
    card = export(tmp_path, text_checkpoint(audio_ctx=0.5))
    assert "# some-model" in card
    assert "Pruned with parp to 60.0% of its encoder weights" in card
    assert "takes 1 s of audio, the context that it was trained with" in card
    assert "--audio-ctx full" in card
    assert "Not known here." in card


@pytest.mark.parametrize(("data", "said"), [("demo", "made-up speech"), ("/a/TIMIT", "TIMIT")])
def test_card_names_the_corpus(tmp_path, data, said):
    checkpoint = ctc_checkpoint()
    checkpoint.run = replace(RUN, data=data)
    assert f"- Corpus: {said}.\n" in export(tmp_path, checkpoint)


def test_card_gives_the_score_of_the_run_that_the_checkpoint_is_of(tmp_path):
    results = {"model": "some-model", "method": "parp", "target": "phone", "seed": 3}
    results |= {"per": {"rate": 0.1234}, "protocol": "PER on test: 192 utterances"}
    (tmp_path / "results.json").write_text(json.dumps(results))
    card = export(tmp_path, ctc_checkpoint())
    assert "PER 12.34 %. PER on test: 192 utterances." in card


def test_card_takes_no_score_of_another_run(tmp_path):
    results = {"model": "some-model", "method": "omp", "target": "phone", "seed": 3}
    results |= {"per": {"rate": 0.1234}, "protocol": "PER on test: 192 utterances"}
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert "12.34" not in export(tmp_path, ctc_checkpoint())


def test_parameters_printed_are_those_written(tmp_path, capsys):
    from safetensors import safe_open

    card = export(tmp_path, text_checkpoint(audio_ctx=0.5))
    with safe_open(tmp_path / "hf" / "model.safetensors", "pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]
    written = sum(torch.Size(shape).numel() for shape in shapes)
    whole = sum(p.numel() for p in load_checkpoint(tmp_path / "best.pt").model.parameters())
    assert written < whole
    assert f" {written:,} parameters" in capsys.readouterr().out
    assert f" {written:,} parameters" in card


@pytest.mark.parametrize("stopped_at", ["fsync", "replace"])
def test_an_export_that_fails_leaves_the_older_one(tmp_path, monkeypatch, capsys, stopped_at):
    export(tmp_path, ctc_checkpoint())
    before = {path.name: path.read_bytes() for path in (tmp_path / "hf").iterdir()}
    replace = os.replace

    def disk_full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    def fails_once(source: Path, target: Path) -> None:
        if target.name == "hf" and not failed:
            failed.append(target)
            raise OSError(28, "No space left on device")
        replace(source, target)

    failed: list[Path] = []
    monkeypatch.setattr(f"os.{stopped_at}", disk_full if stopped_at == "fsync" else fails_once)
    flags = ["--to", "hf", "--force", str(tmp_path / "best.pt"), str(tmp_path / "hf")]
    assert main(flags) == 2
    assert "cannot write" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "hf").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "hf"]
