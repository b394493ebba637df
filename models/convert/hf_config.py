"""Configs of Hugging Face models and our own: a family's table, read in both directions."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from models import FAMILIES, SpeechModel, build_from_config


def build_from_hf_config(config: Mapping[str, Any]) -> SpeechModel:
    """Build the model that a Hugging Face ``config.json`` describes, with random weights.

    Settings of no consequence for the model are ignored.

    Raises:
        ValueError: If the model type, or a setting that changes the numbers, is not implemented.
    """
    families = {family.hugging_face.model_type: family for family in FAMILIES.values()}
    model_type = config.get("model_type", "")
    if model_type not in families:
        raise ValueError(
            f"model_type {model_type!r} is not implemented: only {' and '.join(families)} are"
        )
    family = families[model_type]
    for name, wanted in family.hugging_face.required.items():
        if config.get(name, wanted) != wanted:
            raise ValueError(f"{name} = {config[name]!r} is not implemented, only {wanted!r} is")
    table = family.hugging_face.config
    native = {ours: config.get(theirs, default) for theirs, ours, default in table}
    return build_from_config(family.name, family.hugging_face.read_config(config, native))


def hf_config(model: SpeechModel, decoding: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of ``config.json`` for ``model``.

    Args:
        model: Any model of ours.
        decoding: As a checkpoint holds it; {} leaves the special ids undefined.
    """
    hugging_face = FAMILIES[model.family].hugging_face
    native = asdict(model.config)
    config = {theirs: native[ours] for theirs, ours, _ in hugging_face.config}
    config |= hugging_face.required
    config |= {
        "model_type": hugging_face.model_type,
        "architectures": [hugging_face.architecture],
        "dtype": "float32",
    }
    return hugging_face.finish_config(model, decoding, config)
