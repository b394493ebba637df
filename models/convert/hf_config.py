"""Configs of Hugging Face models and our own: a family's table, read in both directions."""

import re
from dataclasses import asdict
from typing import Any

from data.files import JsonObject
from models import FAMILIES, Family, SpeechModel, read_config
from models.facts import DecodingFacts
from models.fields import Field, JsonFile, shown, take_fields


def read_hf_config(file: JsonFile) -> tuple[Family, Any]:
    """Return the family and our config of a Hugging Face ``config.json``.

    Settings of no consequence for the model are ignored.

    Raises:
        ValueError: If the model type, or a setting that changes the numbers, is not implemented,
            or a setting is of another type.
    """
    families = {family.hugging_face.model_type: family for family in FAMILIES.values()}
    model_type = file.content.get("model_type", "")
    if not isinstance(model_type, str) or model_type not in families:
        raise ValueError(
            f"model_type {shown(model_type)} is not implemented: only {' and '.join(families)} are"
        )
    family = families[model_type]
    for name, wanted in family.hugging_face.required.items():
        if file.content.get(name, wanted) != wanted:
            raise ValueError(
                f"{name} = {shown(file.content[name])} is not implemented, only {wanted!r} is"
            )
    table = family.hugging_face.config
    theirs = take_fields({name: Field(kind, default) for name, _, kind, default in table}, file)
    ours = {name_here: theirs[name] for name, name_here, _, _ in table}
    try:
        return read_config(family.name, family.hugging_face.read_config(file, ours))
    except ValueError as error:  # which speaks of our names, and the file has others
        their_name = {name_here: name for name, name_here, _, _ in table}
        said = re.sub(r"\w+", lambda word: their_name.get(word[0], word[0]), str(error))
        raise ValueError(f"config.json: {said}: correct the file") from None


def hf_config(model: SpeechModel, decoding: DecodingFacts) -> JsonObject:
    """Return the content of ``config.json`` for ``model``.

    Args:
        model: Any model of ours.
        decoding: As a checkpoint holds it; {} leaves the special ids undefined.
    """
    hugging_face = FAMILIES[model.family].hugging_face
    native = asdict(model.config)
    config = {theirs: native[ours] for theirs, ours, _, _ in hugging_face.config}
    config |= hugging_face.required
    config |= {
        "model_type": hugging_face.model_type,
        "architectures": [hugging_face.architecture],
        "dtype": "float32",
    }
    return hugging_face.finish_config(model, decoding, config)
