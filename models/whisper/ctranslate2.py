"""Whisper weights in CTranslate2's format, as faster-whisper's models have them.

``model.bin`` is read by hand with numpy. The weights come back as float32, whatever they were
quantised to.

Source:
    ``ctranslate2/specs/model_spec.py`` (the writer and the quantisation) and
    ``ctranslate2/specs/whisper_spec.py`` (the names) of the ctranslate2 Python package, 4.8.
"""

import re
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.facts import DecodingFacts
from models.family import Settings, front_end_facts
from models.fields import Field, JsonFile, take_fields
from models.tokenizers import ByteBPETokenizer
from models.weights import ATTENTION_LEAVES, KeyMap, build_renamed
from models.whisper.config import WhisperConfig
from models.whisper.hugging_face import ids_within, read_front_end
from models.whisper.model import Whisper

Arrays = dict[str, np.ndarray]

BINARY_VERSION, SPEC, REVISION = 6, "WhisperSpec", 3
DTYPES = ("<f4", "i1", "<i2", "<i4", "<f2", "<u2")  # by id in the file; the last is bfloat16
_BFLOAT16 = 5
# What one fused weight holds, in row order.
FUSED = {
    "self_attention/linear_0": ("q_proj", "k_proj", "v_proj"),
    "self_attention/linear_1": ("out_proj",),
    "attention/linear_0": ("q_proj",),
    "attention/linear_1": ("k_proj", "v_proj"),
    "attention/linear_2": ("out_proj",),
}
# Scalars that say how CTranslate2 runs the model; ours runs it in this one way.
REQUIRED = {
    "decoder/activation": 3,  # exact GELU
    "decoder/alibi": 0,
    "decoder/pre_norm": 1,
    "decoder/scale_embeddings": 0,
    "decoder/start_from_zero_embedding": 0,
}
_IGNORED = (
    "decoder/alignment_heads",
    "decoder/alignment_layer",
    "decoder/alibi_use_positive_positions",  # of ALiBi, which is off
    "decoder/scale_alibi",
)


# CTranslate2 writes "/" and layer_0; its reader makes "." and layers.0 of them, and splits the
# fused projections.
KEYS = KeyMap(
    prefix="",
    pairs={
        "encoder.conv1": "encoder.conv1",
        "encoder.conv2": "encoder.conv2",
        "decoder.embeddings": "decoder.token_embedding",
        "decoder.layers.{}.attention.layer_norm": "decoder.layers.{}.cross_attn_norm",
        **{
            f"decoder.layers.{{}}.attention.{leaf}": f"decoder.layers.{{}}.cross_attn.{leaf}"
            for leaf in ATTENTION_LEAVES
        },
        **{
            f"{side}.{foreign}": f"{side}.{native}"
            for side in ("encoder", "decoder")
            for foreign, native in {
                "position_encodings.encodings": "positions",
                "layer_norm": "final_norm",
                **{
                    f"layers.{{}}.self_attention.{leaf}": f"layers.{{}}.self_attn.{leaf}"
                    for leaf in ATTENTION_LEAVES
                },
                "layers.{}.self_attention.layer_norm": "layers.{}.attn_norm",
                "layers.{}.ffn.linear_0": "layers.{}.ffn.fc1",
                "layers.{}.ffn.linear_1": "layers.{}.ffn.fc2",
                "layers.{}.ffn.layer_norm": "layers.{}.ffn_norm",
            }.items()
        },
    },
    dropped=("decoder.projection.weight",),  # the tied head's second name
)


def load_ctranslate2(folder: Path) -> tuple[Whisper, Settings]:
    """Read a CTranslate2 whisper folder.

    Args:
        folder: Holds ``model.bin``, ``config.json`` and, for text, ``tokenizer.json``.

    Returns:
        Model with float32 weights, and its settings.

    Raises:
        ValueError: If a file is missing or damaged, the model is no whisper, or a variable is
            unknown, missing or of another shape.
    """
    arrays = read_model_bin(folder / "model.bin")
    heads = {side: _scalar(arrays, f"{side}/num_heads") for side in ("encoder", "decoder")}
    for name, wanted in REQUIRED.items():
        found = _scalar(arrays, name)
        if found != wanted:
            raise ValueError(f"{folder}: {name} is {found}, only {wanted} is implemented")

    for name in _IGNORED:
        arrays.pop(name, None)
    try:
        tensors = _split_fused(_dequantised(arrays))
        if not torch.equal(
            tensors["decoder.projection.weight"], tensors["decoder.embeddings.weight"]
        ):
            raise ValueError("its output head differs from the token embedding: use a tied model")
        model = build_renamed(Whisper, _config(tensors, heads), tensors, KEYS)
    except KeyError as error:
        raise ValueError(f"{folder}/model.bin has no {error.args[0]}: not a whole model") from None
    except ValueError as error:
        raise ValueError(f"{folder}/model.bin: {error}") from None

    tokenizer_file = folder / "tokenizer.json"
    tokenizer = ByteBPETokenizer.from_json(tokenizer_file) if tokenizer_file.is_file() else None
    frontend = front_end_facts(read_front_end(folder, model.config))
    decoding = _decoding(JsonFile.read(folder / "config.json", needed=True), model, tokenizer)
    if tokenizer is not None:
        tokenizer = tokenizer.speaking(decoding["start_ids"])
    return model, Settings(tokenizer, frontend, decoding)


def read_model_bin(path: Path) -> Arrays:
    """Read all variables of a ``model.bin``, aliases resolved, in the file's dtypes.

    bfloat16 comes as float32, numpy having no such dtype.

    Raises:
        ValueError: If the file is missing or damaged, of another version, or no whisper.
    """
    try:
        reader = _Reader(path.read_bytes())
        version = reader.number("I")
        spec = reader.string()
        revision = reader.number("I")
        if (version, spec, revision) != (BINARY_VERSION, SPEC, REVISION):
            raise ValueError(
                f"it is {spec!r} revision {revision} in binary version {version}, only {SPEC!r} "
                f"revision {REVISION} in version {BINARY_VERSION} can be read: convert the model "
                "again with a current ctranslate2"
            )
        arrays = {reader.string(): reader.array() for _ in range(reader.number("I"))}
        for _ in range(reader.number("I")):
            alias = reader.string()
            name = reader.string()
            arrays[alias] = arrays[name]
            if f"{name}_scale" in arrays:  # an alias stands for the scale too
                arrays[f"{alias}_scale"] = arrays[f"{name}_scale"]
        reader.check_end()
    except (OSError, KeyError, UnicodeDecodeError, struct.error) as error:
        reason = type(error).__name__
        raise ValueError(f"{path} can't be read ({reason}): missing, cut off or damaged") from None
    except ValueError as error:
        raise ValueError(f"{path} can't be read: {error}") from None

    return arrays


class _Reader:
    """Takes values off the front of a file's bytes, little-endian."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.position = 0

    def number(self, code: str) -> int:
        (value,) = struct.unpack_from("<" + code, self.content, self.position)
        self.position += struct.calcsize("<" + code)
        return value

    def string(self) -> str:
        end = self.position + 2 + self.number("H")
        text = self.content[self.position : end - 1].decode()  # without the closing NUL
        self.position = end
        return text

    def array(self) -> np.ndarray:
        shape = [self.number("I") for _ in range(self.number("B"))]
        dtype_id = self.number("B")
        num_bytes = self.number("I")
        if dtype_id >= len(DTYPES):
            raise ValueError(f"data type {dtype_id} is unknown, known are 0 to {len(DTYPES) - 1}")
        values = np.frombuffer(
            self.content[self.position : self.position + num_bytes], DTYPES[dtype_id]
        ).reshape(shape)
        self.position += num_bytes
        if dtype_id == _BFLOAT16:
            values = (values.astype(np.uint32) << 16).view(np.float32)
        return values

    def check_end(self) -> None:
        if self.position != len(self.content):
            raise ValueError(f"it is {len(self.content)} bytes long, expected {self.position}")


def _dequantised(arrays: Arrays) -> Arrays:
    """Return float32 arrays; int8 has one scale per row (of the first axis), int16 one in all."""
    plain: Arrays = {}
    for name, array in arrays.items():
        if name.endswith("_scale"):
            continue
        scale = arrays.get(name + "_scale")
        if scale is None and array.dtype.kind != "f":
            raise ValueError(f"{name} is {array.dtype} without a scale")
        values = array.astype(np.float32)
        if scale is not None:
            values /= scale.astype(np.float32).reshape(
                scale.shape + (1,) * (array.ndim - scale.ndim)
            )
        plain[name] = values
    return plain


def _split_fused(arrays: Arrays) -> dict[str, Tensor]:
    """Split joined projections, drop the zero biases of keys, and name by "." and "layers.0"."""
    tensors: dict[str, Tensor] = {}
    for name, array in arrays.items():
        module, _, leaf = name.rpartition("/")
        block = "/".join(module.split("/")[-2:])
        leaves = FUSED.get(block)
        parts = np.split(array, len(leaves)) if leaves else [array]
        for part_name, part in zip(leaves or (module.split("/")[-1],), parts, strict=True):
            new_leaf = {"gamma": "weight", "beta": "bias"}.get(leaf, leaf)
            path = "/".join([*module.split("/")[:-1], part_name, new_leaf])
            path = re.sub(r"/layer_(\d+)/", r"/layers/\1/", path).replace("/", ".")
            if path.endswith("k_proj.bias"):
                if part.any():
                    raise ValueError(f"{name} holds a bias of the keys, which whisper has none of")
                continue
            tensors[path] = torch.from_numpy(part)
    return tensors


def _scalar(arrays: Arrays, name: str) -> int:
    if name not in arrays or arrays[name].size != 1:
        raise ValueError(f"model.bin has no number {name}: not a whole whisper model")
    return int(arrays.pop(name))


def _config(tensors: dict[str, Tensor], heads: dict[str, int]) -> WhisperConfig:
    """Read the sizes off the shapes."""
    d_model, num_mels, _ = tensors["encoder.conv1.weight"].shape
    sizes: dict[str, int] = {}
    for side in ("encoder", "decoder"):
        layers = {name.split(".")[2] for name in tensors if name.startswith(f"{side}.layers.")}
        sizes[f"{side}_layers"] = len(layers)
        sizes[f"{side}_heads"] = heads[side]
        sizes[f"{side}_ffn_dim"] = len(tensors[f"{side}.layers.0.ffn.linear_0.weight"])
    return WhisperConfig(
        num_mels=num_mels,
        audio_positions=len(tensors["encoder.position_encodings.encodings"]),
        text_positions=len(tensors["decoder.position_encodings.encodings"]),
        d_model=d_model,
        vocab_size=len(tensors["decoder.embeddings.weight"]),
        **sizes,
    )


_DECODING = {
    "suppress_ids": Field("list of int or null", ()),
    "suppress_ids_begin": Field("list of int or null", ()),
    "start_ids": Field("list of id or null"),  # this and the next are in our own folders only
    "max_tokens": Field("size or null"),
}


def _decoding(file: JsonFile, model: Whisper, tokenizer: ByteBPETokenizer | None) -> DecodingFacts:
    """Join the suppressed ids of ``config.json`` and the tokenizer's special ids."""
    settings = take_fields(_DECODING, file)
    most_tokens = model.config.text_positions
    vocab_size = model.config.vocab_size
    decoding: DecodingFacts = {
        "suppress_ids": ids_within(settings["suppress_ids"], vocab_size),
        "begin_suppress_ids": ids_within(settings["suppress_ids_begin"], vocab_size),
        "max_tokens": min(settings["max_tokens"] or most_tokens, most_tokens),
    }
    if tokenizer is not None:
        decoding["start_ids"] = list(settings["start_ids"] or tokenizer.start_ids)
        decoding["eos_id"] = tokenizer.eos_id
    return decoding
