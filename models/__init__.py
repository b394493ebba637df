"""Hand-written speech models, and the presets they are built from by name."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from data.files import has_type, shown
from models import hubert, wav2vec2, whisper
from models.facts import DecodingFacts
from models.family import Family, Preset, SpeechModel
from models.spec_augment import SpecAugment
from models.training.tasks import Task, check_precision

__all__ = [
    "FAMILIES",
    "MODEL_NAMES",
    "PRESETS",
    "Family",
    "Preset",
    "SpeechModel",
    "add_preset",
    "build_from_config",
    "build_model",
    "build_task",
    "family_of",
    "read_config",
]

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        wav2vec2.FAMILY,
        whisper.FAMILY,
        hubert.FAMILY,
    )
}
"""The record of each family, by the name that checkpoints hold."""

PRESETS: dict[str, Preset] = {
    name: preset for family in FAMILIES.values() for name, preset in family.presets.items()
}
"""Every model that can be built by name."""

MODEL_NAMES = tuple(PRESETS)


def add_preset(name: str, model: SpeechModel) -> None:
    """Make the size of a model one that can be built by name, in this process.

    Args:
        name: Of the preset; one of that name is replaced.
        model: All of its config but the vocabulary becomes the preset's.
    """
    family = FAMILIES[model.family]
    config = dataclasses.asdict(model.config)
    del config["vocab_size"]
    PRESETS[name] = Preset(config)
    presets = {**family.presets, name: PRESETS[name]}
    FAMILIES[family.name] = dataclasses.replace(family, presets=presets)


def family_of(model_name: str) -> Family:
    """Return the family of a preset.

    Raises:
        ValueError: If there is no such preset.
    """
    for family in FAMILIES.values():
        if model_name in family.presets:
            return family
    raise ValueError(f"model {model_name!r} is unknown: choose one of {', '.join(PRESETS)}")


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
    family = family_of(name)
    known = [field.name for field in dataclasses.fields(family.config)]
    unknown = sorted(set(overrides) - set(known))
    if unknown:
        raise ValueError(
            f"{family.name} config has no {', '.join(unknown)}: it has {', '.join(known)}"
        )
    return family.model(family.config(**{**PRESETS[name].config, **overrides}))


def build_from_config(family_name: str, config: Mapping[str, Any]) -> SpeechModel:
    """Build a model from a complete config, as a checkpoint holds it, with random weights.

    Args:
        family_name: A key of ``FAMILIES``.
        config: As for :func:`read_config`.

    Raises:
        ValueError: If the family is unknown, or the config is none of its.
    """
    family, checked = read_config(family_name, config)
    return family.model(checked)


def read_config(family_name: str, config: Mapping[str, Any]) -> tuple[Family, Any]:
    """Return a family and its config from plain values.

    Args:
        family_name: A key of ``FAMILIES``.
        config: A value for every field of the family's config, and nothing else.

    Raises:
        ValueError: If the family is unknown, a field is missing or unknown, a value is of another
            type, or the values do not go together.
    """
    if family_name not in FAMILIES:
        raise ValueError(
            f"model family {shown(family_name)} is unknown: known are {', '.join(FAMILIES)}"
        )
    family = FAMILIES[family_name]
    known = {field.name: field for field in dataclasses.fields(family.config)}
    config = {name: v for name, v in config.items() if name not in family.old_config_fields}
    missing, unknown = sorted(known.keys() - config), sorted(map(str, config.keys() - known))
    if missing or unknown:
        raise ValueError(
            f"{family.name} config does not fit this version: missing "
            f"{', '.join(missing) or 'none'}; unknown {', '.join(unknown) or 'none'}"
        )
    for name, value in config.items():
        wanted = _type_in_config(name, known[name].default)
        if not has_type(list(value) if isinstance(value, tuple) else value, wanted):
            raise ValueError(f"{family.name} config: {name} is {shown(value)}, expected {wanted}")
    return family, family.config(**config)


def _type_in_config(name: str, default: Any) -> str:
    """Return the type of a config field, in the words of ``models.fields``."""
    if isinstance(default, tuple):
        return "list of size"
    if isinstance(default, bool | str):
        return type(default).__name__
    if isinstance(default, float):
        return "share" if name.endswith(("dropout", "_drop", "_prob")) else "number"
    return "id" if name.endswith("_min") else "size"


def build_task(
    model: SpeechModel,
    decoding: DecodingFacts,
    precision: str = "fp32",
    fast: bool = True,
    spec_augment: SpecAugment | None = None,
    label_smoothing: float = 0.0,
) -> Task:
    """Build what training and scoring ask of ``model``.

    Args:
        model: Of any family.
        decoding: The checkpoint's decoding settings.
        precision: "fp32", "bf16" or "fp16".
        fast: Whether to take the fast paths; the plain ones give the same numbers.
        spec_augment: What training hides of log-mels; models of waveforms have masks of their own.
        label_smoothing: Of a sequence-to-sequence loss.

    Raises:
        ValueError: If ``precision`` is unknown, or fp16 is asked for on the CPU.
    """
    check_precision(precision, next(model.parameters()).device)
    task: Task = FAMILIES[model.family].task(
        model, decoding, precision, fast, spec_augment, label_smoothing
    )
    return task
