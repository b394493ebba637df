"""HuBERT against Hugging Face's, every parameter randomised; runs from a folder of theirs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import eval as evaluation
import train
from models import FAMILIES, build_model
from models.checkpoint import load_checkpoint
from models.convert import from_hf, load_weights, to_hf
from models.convert.__main__ import main as convert
from models.hubert import Hubert
from pruning.report.__main__ import main as report

transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")

BOUND = 1e-10  # float64; observed up to 2.0e-15 (states, logits) and 3.3e-13 (gradients)
BASE = {
    "vocab_size": 11,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "conv_dim": [12, 12, 12],
    "conv_kernel": [10, 3, 2],
    "conv_stride": [5, 2, 2],
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "layer_norm_eps": 1e-3,
    "mask_feature_prob": 0.1,
}
LARGE = {
    **BASE,
    "feat_extract_norm": "layer",
    "conv_bias": True,
    "do_stable_layer_norm": True,
    "num_conv_pos_embeddings": 7,
}
VARIANTS = {"base": BASE, "large": LARGE, "bare": {**BASE, "feat_proj_layer_norm": False}}
LABELS = torch.tensor([[3, 3, 7, 1], [5, 2, -100, -100]])


@pytest.fixture(params=VARIANTS)
def pair(request: Any, randomise: Any, tmp_path: Path) -> tuple[Any, Hubert]:
    """Return a small HubertForCTC, and ours read from its folder, in float64."""
    config = transformers.HubertConfig(**VARIANTS[request.param])
    theirs = randomise(transformers.HubertForCTC(config))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = from_hf(tmp_path / "theirs")
    assert isinstance(ours, Hubert)
    return theirs.double().eval(), ours.double().eval()


def batch(num_samples: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Waveforms padded with zeros, their lengths, and Hugging Face's attention mask."""
    lengths = torch.tensor(num_samples)
    attention_mask = torch.arange(max(num_samples)) < lengths[:, None]
    generator = torch.Generator().manual_seed(2)
    waveform = torch.randn(attention_mask.shape, generator=generator, dtype=torch.float64)
    return waveform * attention_mask, lengths, attention_mask.long()


def largest_difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


@pytest.mark.parametrize("samples", [501, 1000])
def test_logits_without_lengths_equal_hf(pair, samples):
    theirs, ours = pair
    waveform, _, _ = batch([samples, samples])
    assert largest_difference(ours.logits(waveform), theirs(waveform).logits) <= BOUND


@pytest.mark.parametrize("num_samples", [[777, 500, 41], [640, 640, 640]])
def test_logits_with_lengths_equal_hf(pair, num_samples):
    theirs, ours = pair
    waveform, lengths, attention_mask = batch(num_samples)
    expected = theirs(waveform, attention_mask=attention_mask).logits
    assert largest_difference(ours.logits(waveform, lengths), expected) <= BOUND


@pytest.mark.parametrize("padded", [False, True])
def test_hidden_states_equal_hubert_model_at_every_layer(pair, padded):
    theirs, ours = pair
    waveform, lengths, attention_mask = batch([777, 500])
    if not padded:
        lengths = attention_mask = None
    expected = theirs.hubert(waveform, attention_mask=attention_mask, output_hidden_states=True)
    num_frames = None if lengths is None else ours.num_frames(lengths)
    states = ours.hidden_states(ours.features(waveform, lengths), num_frames)
    assert len(states) == len(expected.hidden_states) == 3
    for actual, state in zip(states, expected.hidden_states, strict=True):
        assert largest_difference(actual, state) <= BOUND


def test_all_gradients_of_ctc_loss_equal_hf(pair):
    theirs, ours = pair
    waveform, lengths, attention_mask = batch([777, 500])
    for logits in (
        theirs(waveform, attention_mask=attention_mask).logits,
        ours.logits(waveform, lengths),
    ):
        log_probs, target_lengths = logits.log_softmax(2).transpose(0, 1), (LABELS >= 0).sum(1)
        num_frames = ours.num_frames(lengths)
        labels = LABELS[LABELS >= 0]
        F.ctc_loss(log_probs, labels, num_frames, target_lengths, reduction="sum").backward()

    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    assert gradients.pop("masked_embedding") is None  # not used in eval mode
    to_native = FAMILIES["hubert"].hugging_face.keys.to_native
    for name, parameter in theirs.named_parameters():
        if parameter.grad is not None:
            gradient = gradients.pop(to_native(name))
            assert largest_difference(gradient, parameter.grad) <= BOUND, name
    assert not gradients


def test_to_hf_folder_loads_in_transformers_with_equal_logits(pair, tmp_path):
    _, ours = pair
    to_hf(ours, tmp_path / "out")
    theirs, found = transformers.HubertForCTC.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(found.values())
    waveform, _, _ = batch([777, 777])
    expected = theirs.double().eval()(waveform).logits
    assert largest_difference(ours.float().double().logits(waveform), expected) <= BOUND


def test_both_spellings_of_weight_norm_are_read(tmp_path, randomise):
    model = randomise(transformers.HubertForCTC(transformers.HubertConfig(**BASE)))
    model.save_pretrained(tmp_path / "new")
    new = safetensors_torch.load_file(tmp_path / "new" / "model.safetensors")
    spelling = {"parametrizations.weight.original0": "weight_g"}
    spelling |= {"parametrizations.weight.original1": "weight_v"}
    old = {}
    for name, tensor in new.items():
        stem, _, leaf = name.partition("pos_conv_embed.conv.")
        old[f"{stem}pos_conv_embed.conv.{spelling.get(leaf, leaf)}" if leaf else name] = tensor
    assert old.keys() != new.keys()

    (tmp_path / "old").mkdir()
    torch.save(old, tmp_path / "old" / "pytorch_model.bin")
    (tmp_path / "old" / "config.json").write_bytes((tmp_path / "new/config.json").read_bytes())
    read = [from_hf(tmp_path / folder).state_dict() for folder in ("new", "old")]
    assert all(torch.equal(read[0][name], read[1][name]) for name in read[0])


def test_encoder_alone_gets_a_new_head(tmp_path, randomise):
    encoder = randomise(transformers.HubertModel(transformers.HubertConfig(**BASE)))
    encoder.save_pretrained(tmp_path)
    checkpoint = load_weights(tmp_path)
    assert checkpoint.run.head == "new"
    waveform, _, _ = batch([777])
    model: Any = checkpoint.model.double().eval()
    expected = encoder.double().eval()(waveform).last_hidden_state
    assert largest_difference(model.hidden_states(model.features(waveform))[-1], expected) <= BOUND


def test_batch_norm_of_the_positions_is_refused(tmp_path):
    config = transformers.HubertConfig(**BASE, conv_pos_batch_norm=True)
    transformers.HubertForCTC(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="conv_pos_batch_norm = True is not implemented"):
        from_hf(tmp_path)


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder of the demo's size, with random weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("hubert") / "folder"
    to_hf(build_model("hubert-demo"), folder)
    return folder


def run(corpus: Path, folder: Path, out: Path, *flags: str) -> int:
    common = ["--data", str(corpus), "--init", str(folder), "--out", str(out), "--steps", "3"]
    common += ["--device", "cpu", "--batch-seconds", "4", "--sparsity", "0.5"]
    return train.main(["--model", "hubert-demo", *common, *flags])


@pytest.mark.parametrize("target", ["phone", "char", "subword"])
def test_run_from_a_hugging_face_folder_for_each_target(
    small_corpus, demo_folder, tmp_path, target
):
    flags = ("--target", target, "--prune-every", "2", "--subword-vocab", "40")
    assert run(small_corpus, demo_folder, tmp_path / "run", *flags) == 0
    best = load_checkpoint(tmp_path / "run" / "best.pt")
    assert isinstance(best.model, Hubert)
    assert best.run.freeze == "feature_encoder"
    before = load_weights(demo_folder).model.state_dict()
    after = best.model.state_dict()
    same = [name for name in before if torch.equal(before[name], after[name])]
    assert all(name in same for name in before if name.startswith("feature_encoder."))
    assert not any(name.endswith("proj.weight") for name in same)

    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["sparsity"]["in_scope"] == pytest.approx(0.5, abs=1e-5)
    scores = tmp_path / "scores.json"
    ckpt = ["--ckpt", str(tmp_path / "run" / "best.pt"), "--device", "cpu"]
    assert evaluation.main([*ckpt, "--json", str(scores)]) == 0
    name = "per" if target == "phone" else "wer"
    assert json.loads(scores.read_text())[name] == results[name]


@pytest.mark.long
def test_two_stage_run_is_reported_and_exported(small_corpus, demo_folder, tmp_path):
    flags = ("--method", "imp", "--prune-every", "2")
    assert run(small_corpus, demo_folder, tmp_path / "runs" / "run", *flags) == 0
    assert report([str(tmp_path / "runs"), "--out", str(tmp_path / "report")]) == 0
    assert "hubert-demo" in (tmp_path / "report" / "results.md").read_text()
    best = tmp_path / "runs" / "run" / "best.pt"
    assert convert(["--to", "hf", str(best), str(tmp_path / "out")]) == 0
    theirs = transformers.AutoModelForCTC.from_pretrained(tmp_path / "out")
    assert type(theirs).__name__ == "HubertForCTC"
