"""Weights and configs of Hugging Face folders, in and out."""

import json
from pathlib import Path

import pytest
import torch

from models import FAMILIES, PRESETS, build_model
from models.convert import from_hf, load_weights, to_hf
from models.convert.hf_config import hf_config, read_hf_config
from models.fields import JsonFile
from models.wav2vec2 import Wav2Vec2
from models.whisper import Whisper

transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")

BOUND = 1e-10  # float64; observed up to 8.9e-16 (wav2vec2) and 6.7e-16 (whisper), values up to 2.0
WAV2VEC2 = {
    "vocab_size": 7,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "conv_dim": [12, 12, 12],
    "conv_kernel": [10, 3, 2],
    "conv_stride": [5, 2, 2],
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "layerdrop": 0.05,
    "hidden_dropout": 0.02,
    "mask_feature_prob": 0.1,
}
LARGE = {
    **WAV2VEC2,
    "feat_extract_norm": "layer",
    "conv_bias": True,
    "do_stable_layer_norm": True,
    "layer_norm_eps": 1e-3,
}
WHISPER = {
    "vocab_size": 50,
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 48,
    "num_mel_bins": 16,
    "max_source_positions": 50,
    "max_target_positions": 30,
    "pad_token_id": 1,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "decoder_start_token_id": 2,
    "begin_suppress_tokens": None,
    "dropout": 0.03,
}
VARIANTS = {
    "base": ("Wav2Vec2ForCTC", "Wav2Vec2Config", WAV2VEC2),
    "large": ("Wav2Vec2ForCTC", "Wav2Vec2Config", LARGE),
    "whisper": ("WhisperForConditionalGeneration", "WhisperConfig", WHISPER),
    "hubert": ("HubertForCTC", "HubertConfig", {**LARGE, "feat_proj_layer_norm": False}),
}


@pytest.fixture
def theirs(randomise):
    """Return a function that makes a small model of theirs, every parameter randomised."""

    def make(variant: str, model_class: str = "", **changes):
        default_class, config_class, sizes = VARIANTS[variant]
        config = getattr(transformers, config_class)(**{**sizes, **changes})
        return randomise(getattr(transformers, model_class or default_class)(config)).eval()

    return make


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors_torch.load_file(folder / "model.safetensors")


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def reload(model_class: str, folder: Path):
    """Load with transformers, which must find every key and no other."""
    model, report = getattr(transformers, model_class).from_pretrained(
        folder, output_loading_info=True
    )
    problems = {kind: keys for kind, keys in report.items() if keys}
    assert not problems
    return model.eval()


def logits(model) -> torch.Tensor:
    """Logits on random input, of theirs or ours, in float64."""
    model = model.double().eval()
    generator = torch.Generator().manual_seed(5)
    waveform = torch.randn(2, 700, generator=generator, dtype=torch.float64)
    log_mel = torch.randn(2, 16, 100, generator=generator, dtype=torch.float64)
    ids = torch.randint(7, (2, 9), generator=generator)
    with torch.no_grad():
        if isinstance(model, Wav2Vec2):
            return model.logits(waveform)
        if isinstance(model, Whisper):
            return model.logits(log_mel, ids)
        if model.config.model_type in ("wav2vec2", "hubert"):
            return model(waveform).logits
        return model(input_features=log_mel, decoder_input_ids=ids).logits


@pytest.mark.parametrize("variant", VARIANTS)
def test_from_hf_gives_equal_logits(tmp_path, theirs, variant):
    model = theirs(variant)
    model.save_pretrained(tmp_path)
    assert (logits(from_hf(tmp_path)) - logits(model)).abs().max() < BOUND


@pytest.mark.parametrize("variant", VARIANTS)
def test_to_hf_of_from_hf_gives_back_every_tensor_and_setting(tmp_path, theirs, variant):
    theirs(variant).save_pretrained(tmp_path / "in")
    to_hf(from_hf(tmp_path / "in"), tmp_path / "out")
    before, after = read_tensors(tmp_path / "in"), read_tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    configs = [json.loads((tmp_path / f / "config.json").read_text()) for f in ("in", "out")]
    # Special ids come from the decoding settings, which are not handed on here.
    names = {n for n in VARIANTS[variant][2] if not n.endswith(("_token_id", "_tokens"))}
    assert {n: configs[0][n] for n in names} == {n: configs[1][n] for n in names}


@pytest.mark.parametrize("variant", VARIANTS)
def test_to_hf_folder_loads_in_transformers_with_equal_logits(tmp_path, theirs, randomise, variant):
    file = JsonFile(tmp_path / "config.json", json.loads(theirs(variant).config.to_json_string()))
    family, config = read_hf_config(file)
    ours = randomise(family.model(config))
    to_hf(ours, tmp_path / "out")
    model = reload(VARIANTS[variant][0], tmp_path / "out")
    assert (logits(model) - logits(ours)).abs().max() < BOUND


def test_to_hf_without_training_masks_loads_in_transformers(tmp_path, randomise):
    ours = build_model("w2v2-demo", mask_time_prob=0.0, mask_channel_prob=0.0)
    to_hf(randomise(ours), tmp_path / "out")
    model = reload("Wav2Vec2ForCTC", tmp_path / "out")
    assert torch.equal(model.wav2vec2.masked_spec_embed, ours.masked_embedding)
    assert from_hf(tmp_path / "out").config == ours.config


def test_from_hf_without_a_mask_embedding_keeps_a_random_one(tmp_path, theirs):
    theirs("base", mask_time_prob=0.0, mask_feature_prob=0.0).save_pretrained(tmp_path)
    assert "wav2vec2.masked_spec_embed" not in read_tensors(tmp_path)
    assert from_hf(tmp_path).config.mask_time_prob == 0


@pytest.mark.parametrize(
    ("variant", "model_class"), [("base", "Wav2Vec2Model"), ("whisper", "WhisperModel")]
)
def test_from_hf_reads_names_without_the_models_prefix(tmp_path, theirs, variant, model_class):
    model = theirs(variant, model_class)
    model.save_pretrained(tmp_path)
    weight = from_hf(tmp_path).encoder.layers[1].self_attn.k_proj.weight
    layer = model.encoder.layers[1]
    expected = layer.attention if variant == "base" else layer.self_attn
    assert torch.equal(weight, expected.k_proj.weight)


def test_load_weights_of_a_pretraining_file_drops_the_quantizer_and_makes_a_head(tmp_path, theirs):
    model = theirs("base", "Wav2Vec2ForPreTraining")
    model.save_pretrained(tmp_path)
    assert any(name.startswith("quantizer.") for name in read_tensors(tmp_path))
    checkpoint = load_weights(tmp_path)
    assert checkpoint.run.head == "new"
    ours, expected = checkpoint.model.masked_embedding, model.wav2vec2.masked_spec_embed
    assert torch.equal(ours, expected)


def test_from_hf_reads_the_old_weight_norm_names(tmp_path, theirs):
    model = theirs("large")
    model.save_pretrained(tmp_path)
    new = "parametrizations.weight.original"
    tensors = {
        name.replace(f"{new}0", "weight_g").replace(f"{new}1", "weight_v"): tensor
        for name, tensor in read_tensors(tmp_path).items()
    }
    assert "wav2vec2.encoder.pos_conv_embed.conv.weight_g" in tensors
    safetensors_torch.save_file(tensors, tmp_path / "model.safetensors")
    assert (logits(from_hf(tmp_path)) - logits(model)).abs().max() < BOUND


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_from_hf_of_half_precision_gives_the_same_values_in_float32(tmp_path, theirs, dtype):
    model = theirs("whisper").to(dtype)
    model.save_pretrained(tmp_path)
    weight = from_hf(tmp_path).decoder.token_embedding.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, model.model.decoder.embed_tokens.weight.float())


def test_from_hf_reads_a_pickled_file_with_the_tied_head(tmp_path, theirs):
    model = theirs("whisper")
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert "proj_out.weight" in model.state_dict()
    assert (logits(from_hf(tmp_path)) - logits(model)).abs().max() < BOUND


def test_from_hf_of_tensors_in_one_storage_gives_each_parameter_its_own(tmp_path, theirs):
    model = theirs("whisper")
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    state = model.state_dict()
    name = "model.encoder.layers.{}.fc1.bias"
    state[name.format(1)] = state[name.format(0)]
    torch.save(state, tmp_path / "pytorch_model.bin")
    first, second = (layer.ffn.fc1.bias for layer in from_hf(tmp_path).encoder.layers)
    assert torch.equal(first, second)
    assert first.data_ptr() != second.data_ptr()


def test_from_hf_reads_shards(tmp_path, theirs):
    model = theirs("whisper")
    model.save_pretrained(tmp_path, max_shard_size="50kB")
    assert not (tmp_path / "model.safetensors").exists()
    assert (logits(from_hf(tmp_path)) - logits(model)).abs().max() < BOUND


def test_from_hf_lists_every_weight_that_does_not_fit(tmp_path, theirs):
    theirs("base").save_pretrained(tmp_path)
    tensors = read_tensors(tmp_path)
    del tensors["wav2vec2.encoder.layers.0.attention.q_proj.bias"]
    tensors["wav2vec2.extra.weight"] = torch.ones(1)
    tensors["wav2vec2.encoder.layers.9.layer_norm.weight"] = torch.ones(1)
    tensors["lm_head.weight"] = torch.ones(6, 24)
    tensors["encoder.layer_norm.bias"] = torch.ones(24)
    safetensors_torch.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="weights do not fit") as caught:
        from_hf(tmp_path)
    message = str(caught.value)
    assert "missing: wav2vec2.encoder.layers.0.attention.q_proj.bias;" in message
    unexpected = message.partition("unexpected: ")[2].partition(";")[0]
    assert "wav2vec2.extra.weight" in unexpected
    assert "wav2vec2.encoder.layers.9.layer_norm.weight" in unexpected
    assert "(a second wav2vec2.encoder.layer_norm.bias)" in unexpected
    assert "lm_head.weight floating (6, 24) instead of floating (7, 24)" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("variant", "changes", "message"),
    [
        ("base", {"hidden_act": "relu"}, "hidden_act = 'relu' is not implemented, only 'gelu'"),
        ("base", {"add_adapter": True}, "add_adapter = True"),
        ("base", {"feat_extract_activation": "relu"}, "feat_extract_activation = 'relu'"),
        ("base", {"conv_dim": [12, 12]}, "need one entry per layer"),
        ("base", {"model_type": "wavlm"}, "model_type 'wavlm' is not implemented"),
        ("whisper", {"tie_word_embeddings": False}, "tie_word_embeddings = False"),
        (
            "base",
            {"num_attention_heads": 5},
            "json: hidden_size .* of num_attention_heads 5: correct",
        ),
        ("whisper", {"scale_embedding": True}, "scale_embedding = True"),
    ],
)
def test_from_hf_with_a_setting_not_implemented_names_it(
    tmp_path, theirs, variant, changes, message
):
    theirs(variant).save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", **changes)
    with pytest.raises(ValueError, match=message):
        from_hf(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{", "config.json is damaged .*: restore the file"),
        ("model.safetensors", "x", "model.safetensors can't be read .no header."),
        ("model.safetensors", None, "no weights in .*: looked for model.safetensors and pytorch_"),
        ("vocab.json", '{"<pad>": 0, "a": 2}', "ids are not 0 to 1"),
        ("vocab.json", '{"a": 0, "b": 1}', "no '<pad>', the pad token"),
    ],
)
def test_from_hf_with_a_bad_file_says_which(tmp_path, theirs, file, content, message):
    theirs("base").save_pretrained(tmp_path)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        from_hf(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("preset", [name for name in PRESETS if PRESETS[name].hub_id])
def test_preset_at_real_size_has_the_shapes_of_transformers(preset):
    with torch.device("meta"):
        ours = build_model(preset)
        config = hf_config(ours, {})
        their_class = getattr(transformers, config["architectures"][0])
        theirs = their_class(their_class.config_class.from_dict(config))

    to_foreign = FAMILIES[ours.family].hugging_face.keys.to_foreign
    shapes = {to_foreign(name): tensor.shape for name, tensor in ours.state_dict().items()}
    expected = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    expected.pop("proj_out.weight", None)
    assert shapes == expected
