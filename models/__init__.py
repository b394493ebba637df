"""Hand-written speech models, and the presets they are built from by name."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from models import wav2vec2, whisper
from models.wav2vec2 import Wav2Vec2, Wav2Vec2Config
from models.whisper import Whisper, WhisperConfig

SpeechModel = Wav2Vec2 | Whisper

_FAMILIES: dict[str, tuple[type[Any], type[Any]]] = {
    Wav2Vec2.family: (Wav2Vec2, Wav2Vec2Config),
    Whisper.family: (Whisper, WhisperConfig),
}

_NO_LONGER_CONFIG = ("padding",)  # how wav2vec2 computes a batch: older checkpoints hold it

PRUNE_SCOPES = {Wav2Vec2.family: wav2vec2.PRUNE_SCOPES, Whisper.family: whisper.PRUNE_SCOPES}
"""By family, the names of the prunable parameters in each scope; the default scope first."""


@dataclass(frozen=True)
class Preset:
    """A named model: what differs from its family's default config, and where weights are.

    Attributes:
        family: "wav2vec2" or "whisper".
        config: Config fields that differ from the family's defaults.
        hub_id: Repository on the model hub, None for a model of our own.
    """

    family: str
    config: Mapping[str, Any] = field(default_factory=dict)
    hub_id: str | None = None


_LARGE = {
    "conv_norm": "layer",
    "conv_bias": True,
    "norm_first": True,
    "d_model": 1024,
    "num_layers": 24,
    "num_heads": 16,
    "ffn_dim": 4096,
}

PRESETS: dict[str, Preset] = {
    "w2v2": Preset("wav2vec2", {}, "facebook/wav2vec2-base"),
    "w2v2-large": Preset("wav2vec2", _LARGE, "facebook/wav2vec2-large-lv60"),
    "xlsr-53": Preset("wav2vec2", _LARGE, "facebook/wav2vec2-large-xlsr-53"),
    "w2v2-demo": Preset(
        "wav2vec2",
        {
            "conv_dims": (32, 32, 48, 64, 64, 96, 96),
            "conv_kernels": (20, 4, 3, 3, 3, 2, 2),
            "conv_strides": (10, 2, 2, 2, 2, 2, 1),
            "conv_norm": "layer",
            "conv_bias": True,
            "norm_first": True,
            "d_model": 128,
            "num_layers": 3,
            "num_heads": 4,
            "ffn_dim": 512,
            "positional_kernel": 32,
            "positional_groups": 4,
            "activation_dropout": 0.0,
            "layer_drop": 0.0,
            "mask_time_prob": 0.2,
            "mask_channel_prob": 0.1,
        },
    ),
    "whisper-tiny": Preset("whisper", {}, "openai/whisper-tiny"),
    "whisper-base": Preset(
        "whisper",
        {
            "d_model": 512,
            "encoder_layers": 6,
            "decoder_layers": 6,
            "encoder_heads": 8,
            "decoder_heads": 8,
            "encoder_ffn_dim": 2048,
            "decoder_ffn_dim": 2048,
        },
        "openai/whisper-base",
    ),
    "whisper-small": Preset(
        "whisper",
        {
            "d_model": 768,
            "encoder_layers": 12,
            "decoder_layers": 12,
            "encoder_heads": 12,
            "decoder_heads": 12,
            "encoder_ffn_dim": 3072,
            "decoder_ffn_dim": 3072,
        },
        "openai/whisper-small",
    ),
    "whisper-demo": Preset(
        "whisper",
        {
            "d_model": 96,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_heads": 2,
            "decoder_heads": 2,
            "encoder_ffn_dim": 384,
            "decoder_ffn_dim": 384,
            "vocab_size": 64,
        },
    ),
}
"""Every model that can be built by name."""

MODEL_NAMES = tuple(PRESETS)


def build_model(name: str, **overrides: Any) -> SpeechModel:
    """Build a model by preset name with random weights from torch's global generator.

    Args:
        name: One of ``MODEL_NAMES``.
        **overrides: Config fields to replace, such as ``vocab_size``.

    Raises:
        ValueError: If the name or a field is unknown, or the sizes do not fit one another.

    Example:
        >>> build_model("w2v2-demo", vocab_size=40).head.weight.shape
        torch.Size([40, 128])
    """
    if name not in PRESETS:
        raise ValueError(f"model {name!r} is unknown: choose one of {', '.join(MODEL_NAMES)}")
    preset = PRESETS[name]
    model_class, config_class = _FAMILIES[preset.family]
    known = [field.name for field in fields(config_class)]
    unknown = sorted(set(overrides) - set(known))
    if unknown:
        raise ValueError(
            f"{preset.family} config has no {', '.join(unknown)}: it has {', '.join(known)}"
        )
    return model_class(config_class(**{**preset.config, **overrides}))


def build_from_config(family: str, config: Mapping[str, Any]) -> SpeechModel:
    """Build a model from a complete config, as a checkpoint holds it, with random weights.

    Args:
        family: "wav2vec2" or "whisper".
        config: A value for every field of the family's config, and nothing else.

    Raises:
        ValueError: If the family is unknown, or a field is missing or unknown.
    """
    if family not in _FAMILIES:
        raise ValueError(f"model family {family!r} is unknown: known are {', '.join(_FAMILIES)}")
    model_class, config_class = _FAMILIES[family]
    known = {field.name for field in fields(config_class)}
    config = {name: value for name, value in config.items() if name not in _NO_LONGER_CONFIG}
    missing, unknown = sorted(known - set(config)), sorted(set(config) - known)
    if missing or unknown:
        raise ValueError(
            f"{family} config does not fit this version: missing {', '.join(missing) or 'none'}; "
            f"unknown {', '.join(unknown) or 'none'}"
        )
    return model_class(config_class(**config))
