"""wav2vec 2.0 weights as fairseq and torchaudio save them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from data.files import JsonObject
from models.archive import Header
from models.family import Settings, Waveform, front_end_facts
from models.fields import Field, JsonFile, shown, take_fields
from models.tokenizers import SymbolTokenizer
from models.wav2vec2.config import Wav2Vec2Config
from models.wav2vec2.model import Wav2Vec2
from models.weights import ATTENTION_LEAVES, KeyMap, build_renamed, without_wrappers

_POSITIONAL = "encoder.positional_conv"
_FAIRSEQ = KeyMap(
    prefix="",
    pairs={
        "mask_emb": "masked_embedding",
        "feature_extractor.conv_layers.{}.0": "feature_encoder.layers.{}.conv",
        # The group norm of layer 0 follows dropout; layer norm stands between two transposes.
        "feature_extractor.conv_layers.{}.2": "feature_encoder.layers.{}.norm",
        "layer_norm": "feature_projection.norm",
        "post_extract_proj": "feature_projection.proj",
        "encoder.pos_conv": _POSITIONAL,
        "encoder.layer_norm": "encoder.norm",
        **{
            f"encoder.layers.{{}}.self_attn.{leaf}": f"encoder.layers.{{}}.self_attn.{leaf}"
            for leaf in ATTENTION_LEAVES
        },
        "encoder.layers.{}.self_attn_layer_norm": "encoder.layers.{}.attn_norm",
        "encoder.layers.{}.fc1": "encoder.layers.{}.ffn.fc1",
        "encoder.layers.{}.fc2": "encoder.layers.{}.ffn.fc2",
        "encoder.layers.{}.final_layer_norm": "encoder.layers.{}.ffn_norm",
        "head": "head",
    },
    dropped=("quantizer.", "project_q.", "final_proj."),  # of pre-training
)
_TORCHAUDIO = KeyMap(
    prefix="",
    pairs={
        "feature_extractor.conv_layers.{}.conv": "feature_encoder.layers.{}.conv",
        "feature_extractor.conv_layers.{}.layer_norm": "feature_encoder.layers.{}.norm",
        "encoder.feature_projection.layer_norm": "feature_projection.norm",
        "encoder.feature_projection.projection": "feature_projection.proj",
        "encoder.transformer.pos_conv_embed.conv": _POSITIONAL,
        "encoder.transformer.pos_conv_embed.conv.parametrizations.weight.original0": (
            f"{_POSITIONAL}.weight_g"
        ),
        "encoder.transformer.pos_conv_embed.conv.parametrizations.weight.original1": (
            f"{_POSITIONAL}.weight_v"
        ),
        "encoder.transformer.layer_norm": "encoder.norm",
        **{
            f"encoder.transformer.layers.{{}}.attention.{leaf}": (
                f"encoder.layers.{{}}.self_attn.{leaf}"
            )
            for leaf in ATTENTION_LEAVES
        },
        "encoder.transformer.layers.{}.layer_norm": "encoder.layers.{}.attn_norm",
        "encoder.transformer.layers.{}.feed_forward.intermediate_dense": (
            "encoder.layers.{}.ffn.fc1"
        ),
        "encoder.transformer.layers.{}.feed_forward.output_dense": "encoder.layers.{}.ffn.fc2",
        "encoder.transformer.layers.{}.final_layer_norm": "encoder.layers.{}.ffn_norm",
        "aux": "head",
    },
)
_STRIDES = (5, 2, 2, 2, 2, 2, 2)  # of every released model; the weights do not say
_HEAD_DIM = 64  # likewise
_SETTINGS = {
    "encoder_attention_heads": Field("size or null"),
    "layer_norm_first": Field("bool or null"),
    "conv_feature_layers": Field("str or null"),
    "normalize": Field("bool or null"),
}


def is_fairseq(content: Any) -> bool:
    """Return whether a file's content has the form of fairseq's wav2vec 2.0."""
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        return False
    return any("feature_extractor.conv_layers.0.0.weight" in str(name) for name in content["model"])


def load_fairseq(path: Path, content: Any) -> tuple[Wav2Vec2, Settings]:
    """Read a fairseq checkpoint, pre-trained or fine-tuned with CTC.

    Sizes are read off the weights, and what those do not say from the settings under ``args`` or
    ``cfg``. Of a fine-tuned model, ``dict.ltr.txt`` or ``dict.phn.txt`` beside the file gives the
    symbols; fairseq's blank is its id 0.

    Args:
        path: The file.
        content: What it holds.

    Raises:
        ValueError: If a weight is missing or does not fit, or a setting is of another type.
    """
    tensors = {}
    for name, tensor in without_wrappers(_tensors(path, content["model"])).items():
        bare = name.removeprefix("w2v_encoder.").removeprefix("w2v_model.")
        bare = re.sub(r"^proj\.", "head.", bare).replace("pos_conv.0.", "pos_conv.")
        tensors[re.sub(r"(conv_layers\.\d+\.2)\.1\.", r"\1.", bare)] = tensor
    settings = take_fields(
        _SETTINGS, JsonFile(path, _flat(content.get("args"), content.get("cfg")))
    )
    config = _config(path, tensors, _FAIRSEQ, settings)
    model = build_renamed(Wav2Vec2, config, tensors, _FAIRSEQ, _may_lack(tensors))
    normalize = settings["normalize"]
    front_end = Waveform(config.conv_norm == "layer" if normalize is None else normalize)
    tokenizer = _read_dictionary(path.parent, config.vocab_size)
    return model, Settings(tokenizer, front_end_facts(front_end), {"blank_id": 0})


def is_torchaudio(content: Any) -> bool:
    """Return whether a file's content has the form of torchaudio's wav2vec 2.0."""
    return isinstance(content, dict) and any(
        "encoder.feature_projection.projection.weight" in str(name) for name in content
    )


def load_torchaudio(path: Path, content: Any) -> tuple[Wav2Vec2, Settings]:
    """Read a state dict of torchaudio's ``Wav2Vec2Model``.

    It holds no settings: heads are 64 wide, strides those of every released model, and models with
    layer norm in the feature encoder are pre-norm and take normalised waveforms, as torchaudio's
    own are. The embedding of masked frames is drawn.

    Args:
        path: The file.
        content: What it holds.

    Raises:
        ValueError: If a weight is missing or does not fit.
    """
    tensors = without_wrappers(_tensors(path, content))
    tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    config = _config(path, tensors, _TORCHAUDIO, dict.fromkeys(_SETTINGS))
    model = build_renamed(Wav2Vec2, config, tensors, _TORCHAUDIO, _may_lack(tensors))
    front_end = Waveform(normalize=config.conv_norm == "layer")
    return model, Settings(None, front_end_facts(front_end), {"blank_id": 0})


def _tensors(path: Path, content: Any) -> dict[str, Tensor]:
    if not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()):
        raise ValueError(f"{path}: its weights are not all tensors by name: the file is damaged")
    return dict(content)


def _may_lack(tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    head = (
        ()
        if any(n.startswith(("head.", "aux.")) for n in tensors)
        else ("head.weight", "head.bias")
    )
    return (*head, *(() if "mask_emb" in tensors else ("masked_embedding",)))


def _flat(*parts: Any) -> JsonObject:
    """Return every setting of nested ones by its own name, the innermost first.

    A fine-tuned model holds the settings of its pre-training under ``w2v_args``, and those say how
    the encoder was built.
    """
    flat: JsonObject = {}
    waiting = [*parts]
    seen = set()
    while waiting:
        part = waiting.pop()
        while isinstance(part, Header) and id(part) not in seen:
            seen.add(id(part))
            part = part.values
        if not isinstance(part, dict) or id(part) in seen:
            continue
        seen.add(id(part))
        for name, value in part.items():
            if isinstance(value, dict | Header):
                waiting.append(value)
                plain = value.values if isinstance(value, Header) else None
                # OmegaConf wraps each value in a node, whose state holds it under "_val".
                value = plain.get("_val") if isinstance(plain, dict) else None
            if value is not None and isinstance(name, str):
                flat[name] = value
    return flat


def _config(
    path: Path, tensors: Mapping[str, Tensor], keys: KeyMap, settings: Mapping[str, Any]
) -> Wav2Vec2Config:
    """Read the sizes off the shapes, and the rest from the settings."""
    shapes = {}
    for name, tensor in tensors.items():
        try:
            if (native := keys.to_native(name)) is not None:
                shapes[native] = tuple(tensor.shape)
        except KeyError:
            continue  # named when the weights are fitted
    depths = [_count(shapes, prefix) for prefix in ("feature_encoder.layers.", "encoder.layers.")]
    try:
        convs = [shapes[f"feature_encoder.layers.{i}.conv.weight"] for i in range(depths[0])]
        d_model = shapes["feature_projection.proj.weight"][0]
        ffn_dim = shapes["encoder.layers.0.ffn.fc1.weight"][0]
        _, group, kernel = shapes[f"{_POSITIONAL}.weight_v"]
        conv_dims, kernels = zip(*((conv[0], conv[2]) for conv in convs), strict=True)
    except (KeyError, IndexError, ValueError):
        raise ValueError(f"{path}: no whole wav2vec 2.0: layers are missing or misshapen") from None
    is_layer_norm = "feature_encoder.layers.1.norm.weight" in shapes
    norm_first = settings["layer_norm_first"]
    heads = settings["encoder_attention_heads"]
    return Wav2Vec2Config(
        conv_dims=conv_dims,
        conv_kernels=kernels,
        conv_strides=_strides(path, settings["conv_feature_layers"], depths[0]),
        conv_bias="feature_encoder.layers.0.conv.bias" in shapes,
        conv_norm="layer" if is_layer_norm else "group",
        d_model=d_model,
        num_layers=depths[1],
        num_heads=max(1, d_model // _HEAD_DIM) if heads is None else heads,
        ffn_dim=ffn_dim,
        positional_kernel=kernel,
        positional_groups=max(1, d_model // max(1, group)),
        norm_first=is_layer_norm if norm_first is None else norm_first,
        vocab_size=shapes.get("head.bias", (32,))[0],
    )


def _count(shapes: Mapping[str, Any], prefix: str) -> int:
    numbers = {n.removeprefix(prefix).split(".")[0] for n in shapes if n.startswith(prefix)}
    return len(numbers)


def _strides(path: Path, layers: str | None, depth: int) -> tuple[int, ...]:
    """Read strides off "[(512, 10, 5)] + [(512, 3, 2)] * 4", which fairseq evaluates as code."""
    if layers is None:
        return _STRIDES[:depth]
    strides: list[int] = []
    for part in layers.replace(" ", "").split("+"):
        match = re.fullmatch(r"\[((?:\(\d+,\d+,\d+\),?)+)\](?:\*(\d{1,3}))?", part, re.ASCII)
        if match is None:
            raise ValueError(f"{path}: conv_feature_layers is {shown(layers)}, expected a list")
        here = [int(stride) for stride in re.findall(r",(\d{1,6})\)", match[1])]
        strides += here * int(match[2] or 1)
    if len(strides) != depth:
        raise ValueError(f"{path}: conv_feature_layers is {shown(layers)}, for {depth} layers")
    return tuple(strides)


def _read_dictionary(folder: Path, vocab_size: int) -> SymbolTokenizer | None:
    for name, kind in (("dict.ltr.txt", "char"), ("dict.phn.txt", "phone")):
        if (folder / name).is_file():
            lines = (folder / name).read_text(encoding="utf-8", errors="replace").splitlines()
            symbols = ["<s>", "<pad>", "</s>", "<unk>", *(line.split(" ")[0] for line in lines)]
            if len(symbols) == vocab_size:
                return SymbolTokenizer(kind, symbols, blank_id=0)
    return None
