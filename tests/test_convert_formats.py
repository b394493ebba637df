"""Weights as openai-whisper, fairseq and torchaudio save them, held against Hugging Face's."""

import argparse
import os
import pickle
import re
import sys
import types
import zipfile
from pathlib import Path

import pytest
import torch

from models import build_model
from models.convert import load_weights, to_hf
from tests.test_foreign_fields import TINY_CTC, TINY_WHISPER

safetensors_torch = pytest.importorskip("safetensors.torch")

CTC = {**TINY_CTC, "d_model": 128, "num_heads": 2, "vocab_size": 6}
CTC |= {"conv_norm": "group", "conv_bias": False, "norm_first": False}
LAYER_NORM = {**CTC, "conv_norm": "layer", "conv_bias": True, "norm_first": True}
LAYERS = {"base": CTC, "large": LAYER_NORM}
TO_OPENAI = [
    (r"^model\.", ""),
    (r"embed_tokens", "token_embedding"),
    (r"embed_positions\.weight", "positional_embedding"),
    (r"encoder_attn_layer_norm", "cross_attn_ln"),
    (r"self_attn_layer_norm", "attn_ln"),
    (r"encoder_attn", "cross_attn"),
    (r"self_attn", "attn"),
    (r"(q|k|v)_proj", lambda m: {"q": "query", "k": "key", "v": "value"}[m[1]]),
    (r"out_proj", "out"),
    (r"layers\.(\d+)\.final_layer_norm", r"blocks.\1.mlp_ln"),
    (r"fc1", "mlp.0"),
    (r"fc2", "mlp.2"),
    (r"layers\.", "blocks."),
    (r"encoder\.layer_norm", "encoder.ln_post"),
    (r"decoder\.layer_norm", "decoder.ln"),
]
TO_FAIRSEQ = [
    (r"^wav2vec2\.", ""),
    (r"masked_spec_embed", "mask_emb"),
    (r"(conv_layers\.\d+)\.conv", r"\1.0"),
    (r"feature_projection\.projection", "post_extract_proj"),
    (r"feature_projection\.layer_norm", "layer_norm"),
    (r"pos_conv_embed\.conv\.parametrizations\.weight\.original0", "pos_conv.0.weight_g"),
    (r"pos_conv_embed\.conv\.parametrizations\.weight\.original1", "pos_conv.0.weight_v"),
    (r"pos_conv_embed\.conv\.bias", "pos_conv.0.bias"),
    (r"(encoder\.layers\.\d+)\.layer_norm", r"\1.self_attn_layer_norm"),
    (r"attention\.", "self_attn."),
    (r"feed_forward\.intermediate_dense", "fc1"),
    (r"feed_forward\.output_dense", "fc2"),
]


def renamed(tensors: dict, rules: list) -> dict:
    out = {}
    for name, tensor in tensors.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        out[name] = tensor
    return out


def exported(folder: Path, model) -> dict:
    to_hf(model, folder)
    return safetensors_torch.load_file(folder / "model.safetensors")


def assert_equal_models(one, other, drawn: tuple = ()) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first if name not in drawn)


def openai_file(path: Path, tensors: dict, model) -> Path:
    config = model.config
    dims = {
        "n_mels": config.num_mels,
        "n_audio_ctx": config.audio_positions,
        "n_audio_state": config.d_model,
        "n_audio_head": config.encoder_heads,
        "n_audio_layer": config.encoder_layers,
        "n_vocab": config.vocab_size,
        "n_text_ctx": config.text_positions,
        "n_text_state": config.d_model,
        "n_text_head": config.decoder_heads,
        "n_text_layer": config.decoder_layers,
    }
    torch.save({"dims": dims, "model_state_dict": renamed(tensors, TO_OPENAI)}, path)
    return path


def whisper(randomise):
    sizes = {**TINY_WHISPER, "d_model": 8, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    return randomise(build_model("whisper-demo", **sizes, vocab_size=51864))


def test_openai_weights_equal_those_of_the_hugging_face_path(tmp_path, randomise):
    model = whisper(randomise)
    file = openai_file(tmp_path / "tiny.pt", exported(tmp_path / "hf", model), model)
    checkpoint = load_weights(file)
    reference = load_weights(tmp_path / "hf")
    assert_equal_models(checkpoint.model, reference.model)
    assert checkpoint.config == reference.config
    assert checkpoint.frontend == reference.frontend
    assert checkpoint.decoding["start_ids"] == [50257, 50362]
    assert checkpoint.decoding["eos_id"] == 50256


def test_openai_sizes_that_the_weights_do_not_have_are_refused(tmp_path, randomise):
    model = whisper(randomise)
    file = openai_file(tmp_path / "tiny.pt", exported(tmp_path / "hf", model), model)
    content = torch.load(file)
    for name, value in (("n_audio_state", 10**9), ("n_audio_layer", 10**6), ("n_vocab", "x")):
        changed = {**content, "dims": {**content["dims"], name: value}}
        torch.save(changed, tmp_path / "b.pt")
        with pytest.raises(ValueError, match="^[^\n]+$"):
            load_weights(tmp_path / "b.pt")


def test_an_error_of_a_part_that_knows_no_file_names_it(tmp_path):
    torch.save({"dims": {}, "model_state_dict": {"x": torch.ones(1)}}, tmp_path / "tiny.pt")
    with pytest.raises(ValueError, match=r"tiny.pt: .*\S"):
        load_weights(tmp_path / "tiny.pt")


def fairseq_tensors(tensors: dict, is_layer_norm: bool) -> dict:
    named = renamed(tensors, TO_FAIRSEQ)
    norm = "2.1" if is_layer_norm else "2"
    named = {
        re.sub(r"(conv_layers\.\d+)\.layer_norm", rf"\1.{norm}", n): t for n, t in named.items()
    }
    return {
        n.replace("lm_head.", "proj.") if "lm_head" in n else f"w2v_encoder.w2v_model.{n}": t
        for n, t in named.items()
    }


def _set_value(node, value) -> None:
    node._val = value


# As pickle sees it, a class of a package that is not installed.
OmegaNode = type("AnyNode", (), {"__init__": _set_value, "__module__": "omegaconf.nodes"})


def header(kind: str, layers: str, norm_first: bool) -> dict:
    """The settings of a fine-tuned model in the three forms that fairseq has written."""
    inner = {"encoder_attention_heads": 2, "layer_norm_first": norm_first}
    inner["conv_feature_layers"] = layers
    if kind == "Namespace":
        pretrained = argparse.Namespace(**inner)
        return {"args": argparse.Namespace(w2v_args=pretrained, normalize=True), "cfg": None}
    cfg: dict = {"model": {"w2v_args": {"model": inner}}, "task": {"normalize": True}}
    if kind == "OmegaConf":
        inner = {name: OmegaNode(value) for name, value in inner.items()}
        cfg = {"model": OmegaNode({"w2v_args": inner}), "task": {"normalize": OmegaNode(True)}}
    return {"args": None, "cfg": cfg}


@pytest.mark.parametrize("kind", ["Namespace", "dict", "OmegaConf"])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("layers", LAYERS)
def test_fairseq_weights_equal_those_of_the_hugging_face_path(
    tmp_path, randomise, monkeypatch, kind, zipped, layers
):
    module = types.ModuleType("omegaconf.nodes")
    module.AnyNode = OmegaNode
    monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
    monkeypatch.setitem(sys.modules, "omegaconf.nodes", module)
    model = randomise(build_model("w2v2-demo", **LAYERS[layers]))
    tensors = fairseq_tensors(exported(tmp_path / "hf", model), layers == "large")
    text = "[(4, 10, 5)] + [(4,3,2)] * 1"
    content = {**header(kind, text, layers == "large"), "model": tensors}
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    monkeypatch.delitem(sys.modules, "omegaconf.nodes")  # reading has to do without

    checkpoint, reference = load_weights(tmp_path / "w.pt"), load_weights(tmp_path / "hf")
    assert_equal_models(checkpoint.model, reference.model)
    for name in ("conv_strides", "num_heads", "norm_first", "conv_norm", "conv_bias", "d_model"):
        assert getattr(checkpoint.config, name) == getattr(reference.config, name)
    assert checkpoint.frontend["normalize"] is True


def test_fairseq_dictionary_beside_the_file_gives_the_symbols(tmp_path, randomise):
    model = randomise(build_model("w2v2-demo", **CTC))
    tensors = fairseq_tensors(exported(tmp_path / "hf", model), False)
    torch.save({"args": None, "model": tensors}, tmp_path / "w.pt")
    (tmp_path / "dict.ltr.txt").write_text("| 94802\nE 51860\n")
    tokenizer = load_weights(tmp_path / "w.pt").tokenizer
    assert tokenizer.symbols == ("<s>", "<pad>", "</s>", "<unk>", "|", "E")
    assert tokenizer.blank_id == 0


@pytest.mark.parametrize("layers", LAYERS)
def test_torchaudio_weights_equal_those_of_the_hugging_face_path(tmp_path, randomise, layers):
    transformers = pytest.importorskip("transformers")
    utils = pytest.importorskip("torchaudio.models.wav2vec2.utils")
    model = randomise(build_model("w2v2-demo", **LAYERS[layers]))
    to_hf(model, tmp_path / "hf")
    theirs = transformers.Wav2Vec2ForCTC.from_pretrained(tmp_path / "hf")
    torch.save(utils.import_huggingface_model(theirs).state_dict(), tmp_path / "w.pth")
    checkpoint = load_weights(tmp_path / "w.pth")
    assert_equal_models(
        checkpoint.model, load_weights(tmp_path / "hf").model, ("masked_embedding",)
    )
    assert checkpoint.config.norm_first is (layers == "large")
    assert checkpoint.config.num_heads == 2


def test_a_bare_weight_file_is_read_with_its_folders_config(tmp_path, randomise):
    model = randomise(build_model("w2v2-demo", **CTC))
    tensors = exported(tmp_path / "hf", model)
    torch.save(tensors, tmp_path / "hf" / "pytorch_model.bin")
    for name in ("model.safetensors", "pytorch_model.bin"):
        assert_equal_models(load_weights(tmp_path / "hf" / name).model, model)


def test_a_hub_repository_is_fetched_where_no_file_has_its_name(tmp_path, monkeypatch, randomise):
    model = randomise(build_model("w2v2-demo", **CTC))
    to_hf(model, tmp_path / "cache")
    asked = []
    monkeypatch.setattr(
        "models.convert.hub._download", lambda name: asked.append(name) or tmp_path / "cache"
    )
    assert_equal_models(load_weights("facebook/wav2vec2-base-960h").model, model)
    assert asked == ["facebook/wav2vec2-base-960h"]


class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["dims", "args", "cfg", "weights"])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, place, zipped):
    bomb = Bomb(tmp_path / "exploded")
    weight = {"feature_extractor.conv_layers.0.0.weight": torch.ones(4, 1, 10)}
    content = {
        "dims": {"dims": bomb, "model_state_dict": {}},
        "args": {"args": argparse.Namespace(x=bomb), "model": weight},
        "cfg": {"cfg": {"model": bomb}, "model": weight},
        "weights": {"encoder.feature_projection.projection.weight": bomb},
    }[place]
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"names code to run|UnpicklingError") as caught:
        load_weights(tmp_path / "a.pt")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "exploded").exists()


def test_a_bare_pickle_with_code_is_refused_and_not_run(tmp_path):
    (tmp_path / "a.pt").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(ValueError, match="can't be read"):
        load_weights(tmp_path / "a.pt")
    assert not (tmp_path / "exploded").exists()


def test_a_compressed_archive_is_refused(tmp_path):
    torch.save({"a": torch.zeros(10)}, tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as source,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(ValueError, match="has compressed entries"):
        load_weights(tmp_path / "b.pt")


def test_a_tensor_with_more_values_than_bytes_is_refused(tmp_path):
    torch.save({"a": torch.zeros(1).expand(10**9)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="more values than are stored"):
        load_weights(tmp_path / "a.pt")


def test_other_files_name_every_format_that_was_looked_for(tmp_path):
    torch.save({"state": 1}, tmp_path / "a.pt")
    with pytest.raises(
        ValueError, match="a.pt holds state, which is none of the formats known"
    ) as caught:
        load_weights(tmp_path / "a.pt")
    for name in ("CTranslate2", "openai-whisper", "fairseq", "torchaudio", "Hugging Face"):
        assert name in str(caught.value)
    assert "\n" not in str(caught.value)
