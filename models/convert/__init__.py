"""Weights of other formats to our checkpoints and back.

``python -m models.convert SRC DST`` is the command; ``load_weights``, ``from_hf``, ``to_hf`` and
``find_weights`` are the same from Python.
"""

import os
from pathlib import Path

from data.files import read_json
from models import FAMILIES, PRESETS
from models.checkpoint import Checkpoint, load_checkpoint
from models.convert.hf import from_hf, load_hf
from models.convert.hf_export import to_hf
from models.convert.hub import find_weights
from models.facts import RunFacts
from models.initial import fit_architecture, random_checkpoint

__all__ = ["find_weights", "from_hf", "load_initial", "load_weights", "to_hf"]


def load_weights(path: str | os.PathLike[str]) -> Checkpoint:
    """Read any weights we can read, telling the format from what is there.

    Args:
        path: A checkpoint file of ours, a Hugging Face folder (``config.json`` with a
            ``model_type``) or a folder of another format that a family can read.

    Returns:
        Checkpoint on the CPU.

    Raises:
        ValueError: If nothing readable is there, or the format's own reader refuses it.
    """
    path = Path(path)
    if path.is_file():
        return load_checkpoint(path)
    if "model_type" in read_json(path / "config.json", needed=False):
        return load_hf(path)
    formats = [each for family in FAMILIES.values() for each in family.formats]
    for foreign in formats:
        if (path / foreign.sign).is_file():
            model, settings = foreign.read(path)
            return Checkpoint(model, **vars(settings), run=RunFacts(converted_from=foreign.name))
    others = " and ".join(f"a {each.name} folder ({each.sign})" for each in formats)
    raise ValueError(
        f"no weights at {path}: looked for a checkpoint file of ours, a Hugging Face folder "
        f"(config.json with a model_type) and {others}"
    )


def load_initial(model_name: str, init: str) -> tuple[Checkpoint, str]:
    """Return the weights that a run begins with, as ``model_name``, and where they come from.

    Args:
        model_name: A preset.
        init: "random", "auto" (:func:`find_weights`, random where a model has none), or a path.

    Raises:
        ValueError: If there are none, or they are of another model.
    """
    if init == "auto":
        init = str(find_weights(model_name)) if PRESETS[model_name].hub_id else "random"
    if init == "random":
        return random_checkpoint(model_name), init
    checkpoint = load_weights(init)
    fit_architecture(checkpoint, model_name, init)
    return checkpoint, init
