"""Models by public name, and those of any other size by their weights."""

import json
from pathlib import Path

import pytest
import torch

import train
from models import PRESETS, build_model
from models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from models.convert import to_hf

# Millions of parameters as the papers and model cards give them.
PUBLISHED = {
    "whisper-tiny": 39,
    "whisper-tiny.en": 39,
    "whisper-base": 74,
    "whisper-base.en": 74,
    "whisper-small": 244,
    "whisper-small.en": 244,
    "whisper-medium": 769,
    "whisper-medium.en": 769,
    "whisper-large": 1550,
    "whisper-large-v2": 1550,
    "whisper-large-v3": 1550,
    "whisper-large-v3-turbo": 809,
    "w2v2": 95,
    "w2v2-large": 317,
    "w2v2-large-lv60": 317,
    "xlsr-53": 317,
    "xls-r-300m": 317,
    "hubert": 95,
    "hubert-large": 317,
    "hubert-xlarge": 964,
}


def test_every_preset_with_weights_is_listed_here() -> None:
    assert {name for name, preset in PRESETS.items() if preset.hub_id} == set(PUBLISHED)


@pytest.mark.parametrize(("name", "millions"), PUBLISHED.items())
def test_preset_has_the_published_number_of_parameters(name: str, millions: int) -> None:
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in build_model(name).parameters())
    assert count == pytest.approx(1e6 * millions, rel=0.04)  # 39 M of tiny are 37.8


@pytest.mark.parametrize(("name", "vocab_size"), [("tiny", 51865), ("tiny.en", 51864)])
def test_english_models_have_their_own_vocabulary(name: str, vocab_size: int) -> None:
    with torch.device("meta"):
        assert build_model(f"whisper-{name}").config.vocab_size == vocab_size


def run(corpus: Path, model: Path | str, out: Path, *flags: str) -> int:
    options = ["--model", str(model), "--data", str(corpus), "--steps", "1", "--device", "cpu"]
    options += ["--sparsity", "0.5", "--batch-seconds", "20", "--out", str(out)]
    return train.main([*options, *flags])


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_weights_of_another_size_are_a_model(tmp_path: Path, small_corpus: Path, kind: str) -> None:
    model = build_model("w2v2-demo", num_layers=1, ffn_dim=96)
    weights = tmp_path / "weights"
    if kind == "folder":
        to_hf(model, weights)
    else:
        save_checkpoint(
            weights, Checkpoint(model, frontend={"kind": "waveform", "normalize": True})
        )
    assert run(small_corpus, weights, tmp_path / "run") == 0
    trained = load_checkpoint(tmp_path / "run" / "best.pt")
    assert (trained.config.num_layers, trained.config.ffn_dim) == (1, 96)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["run"]["init"] == str(weights)
    kept = trained.model.get_parameter("feature_encoder.layers.0.conv.weight")
    assert torch.equal(kept, model.get_parameter("feature_encoder.layers.0.conv.weight"))


def test_unknown_models_are_refused_with_what_was_meant(
    tmp_path: Path, small_corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(small_corpus, "whisper-tinny", tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert "--model 'whisper-tinny' is unknown: did you mean whisper-tiny? Give one of w2v2" in said
    assert said.count("\n") == 1
