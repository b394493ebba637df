"""Parameter names of other formats and our own: one table per format, read in both directions."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from models import SpeechModel
from models.checkpoint import load_strictly


@dataclass(frozen=True)
class KeyMap:
    """A two-way table of names.

    Both sides are whole parameter names, or names of modules whose leaf (``weight``, ``bias``)
    stays as it is; "{}" stands for a layer number.

    Attributes:
        prefix: Stands before every foreign name but those in ``unprefixed``; files may lack it.
        pairs: Foreign name, without the prefix, to native name.
        unprefixed: Foreign names in ``pairs`` that have no prefix.
        dropped: What foreign names start with that are left out on purpose.
    """

    prefix: str
    pairs: Mapping[str, str]
    unprefixed: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    def to_native(self, foreign: str) -> str | None:
        """Return the native name of ``foreign``, None if it is dropped; KeyError if unknown."""
        bare = foreign.removeprefix(self.prefix)
        return None if bare.startswith(self.dropped) else _translated(bare, self.pairs)

    def to_foreign(self, native: str) -> str:
        """Return the foreign name of ``native``; KeyError if unknown."""
        bare = _translated(native, self._reverse)
        return bare if bare.rpartition(".")[0] in self.unprefixed else self.prefix + bare

    @cached_property
    def _reverse(self) -> dict[str, str]:
        return {native: foreign for foreign, native in self.pairs.items()}


def load_renamed(
    model: SpeechModel, tensors: Mapping[str, Tensor], keys: KeyMap, may_lack: tuple[str, ...] = ()
) -> None:
    """Make ``tensors``, by foreign name, the parameters of ``model``.

    Args:
        model: Changed in place.
        tensors: All tensors of the file; floating ones become float32.
        keys: Table of the file's format.
        may_lack: Native names that keep the model's values where the file lacks them.

    Raises:
        ValueError: Listing every name that is unknown, missing or stands there twice, and every
            shape that differs.
    """
    native: dict[str, Tensor] = {}
    unknown = []
    for foreign, tensor in tensors.items():
        try:
            name = keys.to_native(foreign)
        except KeyError:
            unknown.append(foreign)
            continue
        if name in native:
            unknown.append(f"{foreign} (a second {keys.to_foreign(name)})")
        elif name is not None:
            dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
            native[name] = tensor.to(dtype, copy=True).contiguous()  # files may share storage
    load_strictly(model, native, may_lack, unknown, shown=keys.to_foreign)


def _translated(name: str, pairs: Mapping[str, str]) -> str:
    """Look ``name`` up whole, then by its module; the layer number is carried over."""
    number = re.search(r"(?<=\.)\d+(?=\.)", name)
    template = name if number is None else f"{name[: number.start()]}{{}}{name[number.end() :]}"
    if template not in pairs:
        module, _, leaf = template.rpartition(".")
        found = f"{pairs[module]}.{leaf}"
    else:
        found = pairs[template]
    return found if number is None else found.replace("{}", number[0])


_ATTENTION_LEAVES = ("q_proj", "k_proj", "v_proj", "out_proj")

WAV2VEC2_HF = KeyMap(
    prefix="wav2vec2.",
    pairs={
        "feature_extractor.conv_layers.{}.conv": "feature_encoder.layers.{}.conv",
        "feature_extractor.conv_layers.{}.layer_norm": "feature_encoder.layers.{}.norm",
        "feature_projection.layer_norm": "feature_projection.norm",
        "feature_projection.projection": "feature_projection.proj",
        "masked_spec_embed": "masked_embedding",
        # torch's old weight norm kept weight_g and weight_v, its new one numbers them.
        "encoder.pos_conv_embed.conv.parametrizations.weight.original0": (
            "encoder.positional_conv.weight_g"
        ),
        "encoder.pos_conv_embed.conv.parametrizations.weight.original1": (
            "encoder.positional_conv.weight_v"
        ),
        "encoder.pos_conv_embed.conv": "encoder.positional_conv",
        "encoder.layer_norm": "encoder.norm",
        **{
            f"encoder.layers.{{}}.attention.{leaf}": f"encoder.layers.{{}}.self_attn.{leaf}"
            for leaf in _ATTENTION_LEAVES
        },
        "encoder.layers.{}.layer_norm": "encoder.layers.{}.attn_norm",
        "encoder.layers.{}.feed_forward.intermediate_dense": "encoder.layers.{}.ffn.fc1",
        "encoder.layers.{}.feed_forward.output_dense": "encoder.layers.{}.ffn.fc2",
        "encoder.layers.{}.final_layer_norm": "encoder.layers.{}.ffn_norm",
        "lm_head": "head",
    },
    unprefixed=("lm_head",),
    dropped=("quantizer.", "project_q.", "project_hid."),  # of pre-training
)

WHISPER_HF = KeyMap(
    prefix="model.",
    pairs={
        "encoder.conv1": "encoder.conv1",
        "encoder.conv2": "encoder.conv2",
        "decoder.embed_tokens": "decoder.token_embedding",
        "decoder.layers.{}.encoder_attn_layer_norm": "decoder.layers.{}.cross_attn_norm",
        **{
            f"decoder.layers.{{}}.encoder_attn.{leaf}": f"decoder.layers.{{}}.cross_attn.{leaf}"
            for leaf in _ATTENTION_LEAVES
        },
        **{
            f"{side}.{foreign}": f"{side}.{native}"
            for side in ("encoder", "decoder")
            for foreign, native in {
                "embed_positions.weight": "positions",
                "layer_norm": "final_norm",
                **{
                    f"layers.{{}}.self_attn.{leaf}": f"layers.{{}}.self_attn.{leaf}"
                    for leaf in _ATTENTION_LEAVES
                },
                "layers.{}.self_attn_layer_norm": "layers.{}.attn_norm",
                "layers.{}.fc1": "layers.{}.ffn.fc1",
                "layers.{}.fc2": "layers.{}.ffn.fc2",
                "layers.{}.final_layer_norm": "layers.{}.ffn_norm",
            }.items()
        },
    },
    dropped=("proj_out.",),  # the tied head's second name
)

# CTranslate2 writes "/" and layer_0; its reader makes "." and layers.0 of them, and splits the
# fused projections.
WHISPER_CTRANSLATE2 = KeyMap(
    prefix="",
    pairs={
        "encoder.conv1": "encoder.conv1",
        "encoder.conv2": "encoder.conv2",
        "decoder.embeddings": "decoder.token_embedding",
        "decoder.layers.{}.attention.layer_norm": "decoder.layers.{}.cross_attn_norm",
        **{
            f"decoder.layers.{{}}.attention.{leaf}": f"decoder.layers.{{}}.cross_attn.{leaf}"
            for leaf in _ATTENTION_LEAVES
        },
        **{
            f"{side}.{foreign}": f"{side}.{native}"
            for side in ("encoder", "decoder")
            for foreign, native in {
                "position_encodings.encodings": "positions",
                "layer_norm": "final_norm",
                **{
                    f"layers.{{}}.self_attention.{leaf}": f"layers.{{}}.self_attn.{leaf}"
                    for leaf in _ATTENTION_LEAVES
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
HF_KEYS = {"wav2vec2": WAV2VEC2_HF, "whisper": WHISPER_HF}
