"""Whisper in CTranslate2's format: files written here, ctranslate2's own file, real weights."""

import json
import re
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from models import build_model
from models.convert import load_weights
from models.convert.__main__ import main
from models.whisper import PRUNE_SCOPES

GOLDEN = Path(__file__).parent / "golden" / "ctranslate2_int8"
DTYPES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4, "bfloat16": 5}
SMALL = {
    "num_mels": 6,
    "audio_positions": 20,
    "text_positions": 9,
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_heads": 2,
    "decoder_heads": 4,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 44,
    "vocab_size": 11,
}
SCALARS = {
    "encoder/num_heads": np.int16(2),
    "decoder/num_heads": np.int16(4),
    "decoder/activation": np.int8(3),
    "decoder/alibi": np.int8(0),
    "decoder/pre_norm": np.int8(1),
    "decoder/scale_embeddings": np.int8(0),
    "decoder/start_from_zero_embedding": np.int8(0),
    "decoder/alignment_layer": np.int16(-1),
}


def variables_of(model) -> dict[str, np.ndarray]:
    """Our whisper's tensors as CTranslate2 names and joins them, float32."""
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    found = {
        "encoder/position_encodings/encodings": state["encoder.positions"],
        "decoder/position_encodings/encodings": state["decoder.positions"],
        "decoder/embeddings/weight": state["decoder.token_embedding.weight"],
    }

    def add(target: str, *sources: str) -> None:
        for leaf in ("weight", "bias"):
            parts = []
            for source in sources:
                width = state[f"{source}.weight"].shape[0]
                parts.append(state.get(f"{source}.{leaf}", np.zeros(width, np.float32)))
            name = {"weight": "gamma", "bias": "beta"}[leaf] if "norm" in target else leaf
            found[f"{target}/{name}"] = np.concatenate(parts)

    for side in ("encoder", "decoder"):
        add(f"{side}/layer_norm", f"{side}.final_norm")
        for i in range(SMALL[f"{side}_layers"]):
            new, old = f"{side}/layer_{i}", f"{side}.layers.{i}"
            attention = [f"{old}.self_attn.{leaf}_proj" for leaf in "qkv"]
            add(f"{new}/self_attention/layer_norm", f"{old}.attn_norm")
            add(f"{new}/self_attention/linear_0", *attention)
            add(f"{new}/self_attention/linear_1", f"{old}.self_attn.out_proj")
            add(f"{new}/ffn/layer_norm", f"{old}.ffn_norm")
            add(f"{new}/ffn/linear_0", f"{old}.ffn.fc1")
            add(f"{new}/ffn/linear_1", f"{old}.ffn.fc2")
            if side == "decoder":
                cross = f"{old}.cross_attn"
                add(f"{new}/attention/layer_norm", f"{old}.cross_attn_norm")
                add(f"{new}/attention/linear_0", f"{cross}.q_proj")
                add(f"{new}/attention/linear_1", f"{cross}.k_proj", f"{cross}.v_proj")
                add(f"{new}/attention/linear_2", f"{cross}.out_proj")
    add("encoder/conv1", "encoder.conv1")
    add("encoder/conv2", "encoder.conv2")
    return found | SCALARS


def quantised(variables: dict, dtype: str) -> dict:
    """Store floats as ``dtype``; of the integers, only weights are quantised."""
    result = {}
    for name, array in variables.items():
        is_weight = name.endswith("weight") and "norm" not in name
        if array.dtype != np.float32 or (dtype.startswith("int") and not is_weight):
            result[name] = array
        elif dtype == "int8":
            scale = 127 / np.abs(array.reshape(len(array), -1)).max(1)
            shaped = scale.reshape(-1, *[1] * (array.ndim - 1))
            result[name] = np.rint(array * shaped).astype(np.int8)
            result[f"{name}_scale"] = scale.astype(np.float32)
        elif dtype == "int16":
            scale = np.float32(1024 / np.abs(array).max())
            result[name] = np.rint(array * scale).astype(np.int16)
            result[f"{name}_scale"] = scale
        elif dtype == "bfloat16":
            result[name] = (array.view(np.uint32) >> 16).astype(np.uint16)
        else:
            result[name] = array.astype(dtype)
    return result


def text(string: str) -> bytes:
    return struct.pack("<H", len(string) + 1) + string.encode() + b"\0"


def write_folder(
    folder: Path,
    variables: dict,
    aliases=(("decoder/projection/weight", "decoder/embeddings/weight"),),
    header=(6, "WhisperSpec", 3),
) -> Path:
    version, spec, revision = header
    parts = [struct.pack("<I", version), text(spec), struct.pack("<II", revision, len(variables))]
    for name, array in sorted(variables.items()):
        dtype = "bfloat16" if array.dtype == np.uint16 else str(array.dtype)
        shape = struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        kind = struct.pack("<BI", DTYPES[dtype], array.nbytes)
        parts += [text(name), shape, kind, array.tobytes()]
    parts += [struct.pack("<I", len(aliases)), *(text(name) for pair in aliases for name in pair)]
    folder.mkdir(exist_ok=True)
    (folder / "model.bin").write_bytes(b"".join(parts))
    (folder / "config.json").write_text(json.dumps({"suppress_ids": [4], "suppress_ids_begin": []}))
    return folder


@pytest.fixture
def model(randomise):
    return randomise(build_model("whisper-demo", **SMALL))


def test_load_weights_of_float32_gives_every_tensor(tmp_path, model):
    checkpoint = load_weights(write_folder(tmp_path / "a", variables_of(model)))
    ours = checkpoint.model.state_dict()
    assert checkpoint.model.config == model.config
    assert all(torch.equal(tensor, ours[name]) for name, tensor in model.state_dict().items())


def test_load_weights_reads_the_decoding_settings(tmp_path, model):
    checkpoint = load_weights(write_folder(tmp_path / "a", variables_of(model)))
    assert checkpoint.decoding["suppress_ids"] == [4]
    assert checkpoint.decoding["begin_suppress_ids"] == []
    assert checkpoint.decoding["max_tokens"] == 9
    assert checkpoint.frontend == {"kind": "log_mel", "num_mels": 6, "audio_ctx": 0.4}
    assert checkpoint.tokenizer is None


# The greatest error of rounding: relative to each weight, or to the greatest of its row or tensor.
@pytest.mark.parametrize(
    ("dtype", "bound", "axes"),
    [
        ("float16", 2**-11, None),
        ("bfloat16", 2**-7, None),
        ("int8", 0.5001 / 127, "row"),
        ("int16", 0.5001 / 1024, "all"),
    ],
)
def test_load_weights_of_fewer_bits_is_off_by_their_rounding_only(
    tmp_path, model, dtype, bound, axes
):
    variables = quantised(variables_of(model), dtype)
    ours = load_weights(write_folder(tmp_path / "a", variables)).model.state_dict()
    for name, tensor in model.state_dict().items():
        assert ours[name].dtype == torch.float32
        error, greatest = (ours[name] - tensor).abs(), tensor.abs()
        if axes == "all" and name.endswith("proj.weight"):
            continue  # one scale for the joined projections: bounded by the other weights
        if axes == "row" and tensor.dim() > 1:
            greatest = greatest.amax(tuple(range(1, tensor.dim())), keepdim=True)
        elif axes == "all":
            greatest = greatest.max()
        assert (error <= bound * greatest + 1e-7).all(), name


def test_load_weights_gives_an_alias_the_values_it_stands_for(tmp_path, model):
    with torch.no_grad():
        model.encoder.layers[1].attn_norm.bias.copy_(model.encoder.layers[0].attn_norm.bias)
    variables = variables_of(model)
    names = [f"encoder/layer_{i}/self_attention/layer_norm/beta" for i in (1, 0)]
    del variables[names[0]]
    aliases = [("decoder/projection/weight", "decoder/embeddings/weight"), tuple(names)]
    ours = load_weights(write_folder(tmp_path / "a", variables, aliases)).model
    expected = model.encoder.layers[0].attn_norm.bias
    assert torch.equal(ours.encoder.layers[1].attn_norm.bias, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder/extra": np.ones(3, np.float32)}, "unexpected: decoder.extra$"),
        ({"encoder/layer_norm/beta": None}, "missing: encoder.layer_norm.bias$"),
        (
            {"encoder/layer_0/ffn/linear_1/bias": np.ones(3, np.float32)},
            r"encoder.layers.0.ffn.linear_1.bias floating \(3,\) instead of floating \(24,\)",
        ),
        ({"decoder/activation": np.int8(1)}, "decoder/activation is 1, only 3 is implemented"),
        ({"decoder/num_heads": None}, "no number decoder/num_heads"),
        (
            {"encoder/layer_0/self_attention/linear_0/bias": np.ones(72, np.float32)},
            "self_attention/linear_0/bias holds a bias of the keys",
        ),
        ({"encoder/conv1/weight": np.ones((24, 6, 3), np.int8)}, "int8 without a scale"),
        (
            {"decoder/layer_1/self_attention/linear_0/bias": np.ones(70, np.float32)},
            "model.bin: array split",
        ),
        ({"encoder/conv1/weight": None}, "no encoder.conv1.weight: not a whole model"),
    ],
)
def test_load_weights_of_other_variables_says_which(tmp_path, model, changes, message):
    variables = {**variables_of(model), **changes}
    variables = {name: array for name, array in variables.items() if array is not None}
    with pytest.raises(ValueError, match=message) as caught:
        load_weights(write_folder(tmp_path / "a", variables))
    assert "\n" not in str(caught.value)


def test_load_weights_with_an_untied_head_is_refused(tmp_path, model):
    variables = variables_of(model)
    variables["decoder/projection/weight"] = variables["decoder/embeddings/weight"] + 1
    with pytest.raises(ValueError, match="output head differs from the token embedding"):
        load_weights(write_folder(tmp_path / "a", variables, aliases=()))


@pytest.mark.parametrize("header", [(5, "WhisperSpec", 3), (6, "TransformerSpec", 7)])
def test_load_weights_of_another_kind_names_both(tmp_path, model, header):
    folder = write_folder(tmp_path / "a", variables_of(model), header=header)
    message = f"it is '{header[1]}' revision {header[2]} in binary version {header[0]}, only"
    with pytest.raises(ValueError, match=message):
        load_weights(folder)


@pytest.mark.parametrize("keep", [0, 3, 30, 5000, -1])
def test_load_weights_of_a_cut_off_file_says_so_in_one_line(tmp_path, model, keep):
    folder = write_folder(tmp_path / "a", variables_of(model))
    whole = (folder / "model.bin").read_bytes()
    (folder / "model.bin").write_bytes(whole[:keep])
    with pytest.raises(ValueError, match="model.bin can't be read") as caught:
        load_weights(folder)
    assert "\n" not in str(caught.value)


def test_load_weights_without_config_says_so(tmp_path, model):
    folder = write_folder(tmp_path / "a", variables_of(model))
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match="cannot read .*config.json .*: restore the file"):
        load_weights(folder)


def test_golden_int8_file_gives_ctranslate2s_own_encoder_output_and_logits():
    checkpoint, expected = load_weights(GOLDEN), np.load(GOLDEN / "expected.npz")
    model, log_mel = checkpoint.model.eval(), torch.from_numpy(expected["log_mel"])
    with torch.no_grad():
        encoded = model.encode(log_mel)
        logits = model.decode(torch.from_numpy(expected["ids"])[None], encoded)[0]
    num_steps = len(expected["logits"])
    difference = np.abs(encoded.numpy() - expected["encoded"]).max()
    assert difference < 2e-5  # float32, observed 2.5e-6, values up to 2.3
    difference = np.abs(logits[-num_steps - 1 : -1].numpy() - expected["logits"]).max()
    assert difference < 2e-5  # float32, observed 1.0e-6, values up to 4.1
    assert checkpoint.decoding["begin_suppress_ids"] == [2]


@pytest.mark.long
def test_real_tiny_en_has_the_known_counts(tiny_en_folder):
    checkpoint = load_weights(tiny_en_folder)
    parameters = dict(checkpoint.model.named_parameters())
    pattern = re.compile(PRUNE_SCOPES["encoder_decoder"])
    prunable = [p for name, p in parameters.items() if pattern.fullmatch(name)]
    assert sum(parameter.numel() for parameter in parameters.values()) == 37_760_256
    assert sum(parameter.numel() for parameter in prunable) == 16_544_256
    assert sum(int((parameter == 0).sum()) for parameter in prunable) == 20
    assert checkpoint.tokenizer.vocab_size == checkpoint.config.vocab_size == 51_864
    assert checkpoint.decoding["start_ids"] == [50257, 50362]
    assert checkpoint.decoding["eos_id"] == 50256
    assert len(checkpoint.decoding["suppress_ids"]) == 90


@pytest.mark.long
def test_real_tiny_en_encodes_as_ctranslate2(tiny_en_folder):
    ctranslate2 = pytest.importorskip("ctranslate2")
    runner = ctranslate2.models.Whisper(str(tiny_en_folder), compute_type="float32")
    log_mel = torch.rand(1, 80, 3000) * 2 - 1
    theirs = np.array(runner.encode(ctranslate2.StorageView.from_array(log_mel.numpy())))
    with torch.no_grad():
        ours = load_weights(tiny_en_folder).model.eval().encode(log_mel)
    # Observed 7e-5 to 3.4e-4 (values up to 15); float32 is itself 2.7e-4 off our float64.
    assert np.abs(ours.numpy() - theirs).max() < 1e-3


def test_convert_command_reads_a_ctranslate2_folder(tmp_path, capsys):
    shutil.copytree(GOLDEN, tmp_path / "a")
    assert main([str(tmp_path / "a"), str(tmp_path / "b.pt")]) == 0
    assert re.search(r"whisper, [\d,]+ parameters, no tokenizer$", capsys.readouterr().out.strip())
