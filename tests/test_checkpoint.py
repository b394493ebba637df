"""Our checkpoint file: exact, whole or not at all, strict, and never running code."""

import pickle
from pathlib import Path

import pytest
import torch

from models import FAMILIES, build_from_config, build_model, build_task
from models.checkpoint import FORMAT, VERSION, Checkpoint, load_checkpoint, save_checkpoint
from models.facts import RunFacts
from models.tokenizers import SymbolTokenizer

SMALL = {
    "wav2vec2": {
        "conv_dims": (12, 12),
        "conv_kernels": (10, 3),
        "conv_strides": (5, 2),
        "d_model": 24,
        "num_layers": 2,
        "num_heads": 4,
        "ffn_dim": 40,
        "positional_kernel": 8,
        "positional_groups": 4,
        "vocab_size": 4,
    },
    "whisper": {
        "audio_positions": 20,
        "text_positions": 9,
        "d_model": 24,
        "encoder_layers": 2,
        "decoder_layers": 1,
        "encoder_heads": 2,
        "decoder_heads": 2,
        "encoder_ffn_dim": 40,
        "decoder_ffn_dim": 40,
        "vocab_size": 4,
    },
}
PRESET = {"wav2vec2": "w2v2", "whisper": "whisper-tiny"}
MASKED = {
    "wav2vec2": "encoder.layers.1.ffn.fc1.bias",  # 40 bits
    "whisper": "decoder.layers.0.cross_attn.k_proj.weight",
}


def small_checkpoint(family: str = "wav2vec2", **parts) -> Checkpoint:
    model = build_model(PRESET[family], **SMALL[family])
    parameter = dict(model.named_parameters())[MASKED[family]]
    phones = ["aa", "sil", "t"] if family == "wav2vec2" else ["aa", "t"]
    if family == "wav2vec2":
        tokenizer = SymbolTokenizer.for_ctc("phone", phones)
    else:
        tokenizer = SymbolTokenizer.for_seq2seq("phone", phones)
    defaults = {
        "model": model,
        "tokenizer": tokenizer,
        "masks": {MASKED[family]: torch.rand(parameter.shape) < 0.5},
        "frontend": {"kind": "waveform", "normalize": True},
        "decoding": {"blank_id": 0},
        "run": RunFacts(seed=3, method="parp"),
    }
    return Checkpoint(**{**defaults, **parts})


def saved(path: Path, **changes) -> Path:
    """Save a small checkpoint, then change top-level entries of its file."""
    save_checkpoint(path, small_checkpoint())
    content = torch.load(path, weights_only=True)
    torch.save({**content, **changes}, path)
    return path


@pytest.mark.parametrize("family", SMALL)
def test_load_checkpoint_gives_back_every_bit(tmp_path, randomise, family):
    before = small_checkpoint(family)
    randomise(before.model)
    save_checkpoint(tmp_path / "new" / "a.pt", before)
    after = load_checkpoint(tmp_path / "new" / "a.pt")
    assert type(after.model) is type(before.model)
    assert after.config == before.config
    states = before.model.state_dict(), after.model.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert after.masks.keys() == before.masks.keys()
    assert all(torch.equal(mask, after.masks[name]) for name, mask in before.masks.items())
    assert after.tokenizer.spec() == before.tokenizer.spec()
    others = ("frontend", "decoding", "run", "training")
    assert all(getattr(after, name) == getattr(before, name) for name in others)


def test_load_checkpoint_keeps_what_is_trained_and_what_is_not(tmp_path):
    before = small_checkpoint("whisper")
    save_checkpoint(tmp_path / "a.pt", before)
    after = load_checkpoint(tmp_path / "a.pt").model
    for name, parameter in before.model.named_parameters():
        assert dict(after.named_parameters())[name].requires_grad == parameter.requires_grad, name


def test_load_checkpoint_gives_back_nested_training_state(tmp_path):
    training = {"state": {0: {"moment": torch.randn(3), "step": 7}}, "rng": [torch.ones(2), None]}
    save_checkpoint(tmp_path / "a.pt", small_checkpoint(training=training))
    after = load_checkpoint(tmp_path / "a.pt").training
    assert torch.equal(after["state"][0]["moment"], training["state"][0]["moment"])
    assert after["state"][0]["step"] == 7
    assert torch.equal(after["rng"][0], torch.ones(2))
    assert after["rng"][1] is None


def test_load_checkpoint_keeps_float64_weights(tmp_path):
    before = small_checkpoint()
    before.model.double()
    save_checkpoint(tmp_path / "a.pt", before)
    after = load_checkpoint(tmp_path / "a.pt").model
    assert torch.equal(after.head.weight, before.model.head.weight)
    assert after.head.weight.dtype == torch.float64


def test_float64_weights_are_computed_with_in_float64():
    model = small_checkpoint().model.double().eval()
    waveforms = [torch.randn(900), torch.randn(700)]
    task = build_task(model, {"blank_id": 0})
    found = task.outputs(waveforms, [[], []]).logits.values
    assert found.dtype == torch.float64
    assert torch.equal(found[0], model.logits(waveforms[0][None].double())[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.float8_e4m3fn])
@pytest.mark.parametrize("name", ["head.bias", "encoder.layers.0.ffn.fc1.weight"])
def test_load_checkpoint_refuses_floats_of_several_types(tmp_path, dtype, name):
    weights = dict(small_checkpoint().model.state_dict())
    path = saved(tmp_path / "a.pt", weights=weights | {name: weights[name].to(dtype)})
    with pytest.raises(ValueError, match=r"a.pt is not consistent: .*(float64|instead of)"):
        load_checkpoint(path)


@pytest.mark.parametrize("pattern", [r"(\w+\w+)*~", "(.|.)" * 40 + "~", "(", "x" * 10**6, ".*"])
def test_load_checkpoint_refuses_scope_patterns_that_are_not_ours(tmp_path, pattern):
    path = saved(tmp_path / "a.pt", run={"scope_pattern": pattern})
    with pytest.raises(ValueError, match=r"a.pt is not consistent: run: scope_pattern is .* no"):
        load_checkpoint(path)


@pytest.mark.parametrize("version", [torch.ones(3), True, None, "1", 1.0])
def test_load_checkpoint_refuses_a_version_that_is_none(tmp_path, version):
    path = saved(tmp_path / "a.pt", version=version)
    with pytest.raises(ValueError, match=r"a.pt is not consistent: it has checkpoint version"):
        load_checkpoint(path)


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_check_pattern_takes_every_scope_of_a_family(family, biases):
    for scope in FAMILIES[family].prune_scopes:
        FAMILIES[family].check_pattern(FAMILIES[family].scope_pattern(scope, biases))


def test_load_checkpoint_leaves_the_random_state_alone(tmp_path):
    save_checkpoint(tmp_path / "a.pt", small_checkpoint())
    before = torch.get_rng_state()
    load_checkpoint(tmp_path / "a.pt")
    assert torch.equal(torch.get_rng_state(), before)


def test_save_checkpoint_of_a_view_does_not_store_the_rest(tmp_path):
    save_checkpoint(tmp_path / "without.pt", small_checkpoint(training={"view": None}))
    view = torch.zeros(1_000_000)[5:6]
    save_checkpoint(tmp_path / "a.pt", small_checkpoint(training={"view": view}))
    sizes = [(tmp_path / name).stat().st_size for name in ("a.pt", "without.pt")]
    assert sizes[0] - sizes[1] < 1_000


def test_save_checkpoint_stores_masks_at_one_bit_a_weight(tmp_path):
    masks = {"encoder.layers.0.ffn.fc1.weight": torch.ones(40, 24, dtype=torch.bool)}
    save_checkpoint(tmp_path / "a.pt", small_checkpoint(masks=masks))
    stored = torch.load(tmp_path / "a.pt", weights_only=True)["masks"]
    assert stored["encoder.layers.0.ffn.fc1.weight"]["bits"].numel() == 40 * 24 // 8


def test_save_checkpoint_stores_whispers_tied_head_once(tmp_path):
    save_checkpoint(tmp_path / "a.pt", small_checkpoint("whisper"))
    weights = torch.load(tmp_path / "a.pt", weights_only=True)["weights"]
    assert [name for name, tensor in weights.items() if tensor.shape == (4, 24)] == [
        "decoder.token_embedding.weight"
    ]


def test_save_checkpoint_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    save_checkpoint(path, small_checkpoint(run=RunFacts(seed=1)))

    def write_half(content, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", write_half)
    with pytest.raises(ValueError, match="cannot write .*a.pt .disk full.: give another place"):
        save_checkpoint(path, small_checkpoint(run=RunFacts(seed=2)))
    monkeypatch.undo()
    assert load_checkpoint(path).run == RunFacts(seed=1)
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]


def test_save_checkpoint_of_an_object_says_where_it_is(tmp_path):
    checkpoint = small_checkpoint(training={"best": [1.0, Path("x")]})
    with pytest.raises(ValueError, match=r"\['training'\]\['best'\]\[1\] is a PosixPath"):
        save_checkpoint(tmp_path / "a.pt", checkpoint)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"masks": {"head": torch.ones(2) > 0}}, "mask head belongs to no parameter"),
        ({"masks": {"head.bias": torch.ones(3) > 0}}, r"mask head.bias is torch.bool \(3,\), exp"),
        ({"masks": {"head.bias": torch.ones(4)}}, "mask head.bias is torch.float32"),
        ({"tokenizer": SymbolTokenizer.for_ctc("phone", ["a"])}, "tokenizer has 2 ids, .* 4"),
    ],
)
def test_save_checkpoint_with_parts_that_do_not_fit_is_refused(tmp_path, parts, message):
    with pytest.raises(ValueError, match=message):
        save_checkpoint(tmp_path / "a.pt", small_checkpoint(**parts))


def test_load_checkpoint_of_a_missing_file_says_so(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint file at .*a.pt"):
        load_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("keep", [0, 10, 3000, -1])
def test_load_checkpoint_of_a_cut_off_file_says_so_in_one_line(tmp_path, keep):
    save_checkpoint(tmp_path / "a.pt", small_checkpoint())
    whole = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(whole[:keep])
    with pytest.raises(ValueError, match="can't be read as a checkpoint") as caught:
        load_checkpoint(tmp_path / "a.pt")
    assert "\n" not in str(caught.value)


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("legacy", [False, True])
def test_load_checkpoint_of_a_pickle_with_code_does_not_run_it(tmp_path, legacy):
    content = {"format": FORMAT, "version": VERSION, "run": Trap(str(tmp_path / "ran"))}
    if legacy:
        (tmp_path / "a.pt").write_bytes(pickle.dumps(content))
    else:
        torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="can't be read as a checkpoint"):
        load_checkpoint(tmp_path / "a.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "not a checkpoint of ours, it holds format, version"),
        ({"version": 99}, "version 99, this code reads 1"),
        ({"masks": None, "run": 3}, "missing or wrong masks, run"),
        ({"family": "wavlm"}, "family 'wavlm' is unknown: known are wav2vec2, whisper, hubert"),
        ({"config": {"d_model": 3, "depth": 2}}, "missing .*num_layers.*; unknown depth"),
        ({"tokenizer": {"kind": "rune"}}, "unknown tokenizer kind 'rune'"),
    ],
)
def test_load_checkpoint_of_another_layout_says_which(tmp_path, changes, message):
    path = saved(tmp_path / "a.pt", **changes)
    with pytest.raises(ValueError, match=message) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_load_checkpoint_lists_all_weights_that_do_not_fit(tmp_path):
    weights = dict(small_checkpoint().model.state_dict())
    del weights["head.bias"]
    weights["tail.bias"] = torch.ones(1)
    weights["head.weight"] = torch.ones(3, 24)
    weights["encoder.norm.bias"] = torch.ones(24, dtype=torch.int64)
    path = saved(tmp_path / "a.pt", weights=weights)
    with pytest.raises(ValueError, match="missing: head.bias; unexpected: tail.bias") as caught:
        load_checkpoint(path)
    assert "head.weight floating (3, 24) instead of floating (4, 24)" in str(caught.value)
    assert "encoder.norm.bias torch.int64 (24,)" in str(caught.value)


def test_load_checkpoint_with_too_few_mask_bits_is_refused(tmp_path):
    packed = {"bits": torch.zeros(4, dtype=torch.uint8), "shape": [40]}
    path = saved(tmp_path / "a.pt", masks={MASKED["wav2vec2"]: packed})
    with pytest.raises(ValueError, match="4 bytes for 40 bits"):
        load_checkpoint(path)


def test_build_model_with_an_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match="'w2v3' is unknown: choose one of w2v2, w2v2-la"):
        build_model("w2v3")


def test_build_model_with_an_unknown_field_lists_the_known():
    with pytest.raises(ValueError, match="has no width: it has num_mels, audio_positions"):
        build_model("whisper-tiny", width=3)


def test_build_from_config_with_lists_for_tuples_equals_the_original():
    model = build_model("w2v2", **SMALL["wav2vec2"])
    config = {**vars(model.config), "conv_dims": list(model.config.conv_dims)}
    assert build_from_config("wav2vec2", config).config == model.config


@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [
        ("w2v2", 94_396_320),
        ("whisper-tiny", 37_760_640),
        ("whisper-base", 72_593_920),
        ("whisper-small", 241_734_912),
    ],
)
def test_build_model_has_the_published_number_of_parameters(name, num_parameters):
    with torch.device("meta"):
        model = build_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters


@pytest.mark.parametrize("name", ["w2v2-demo", "whisper-demo"])
def test_build_model_demo_is_small(name):
    assert sum(parameter.numel() for parameter in build_model(name).parameters()) < 3_000_000
