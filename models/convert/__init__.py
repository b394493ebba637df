"""Weights of other formats to our checkpoints and back.

``python -m models.convert SRC DST`` is the command; ``load_weights``, ``from_hf``, ``to_hf`` and
``find_weights`` are the same from Python.
"""

import difflib
import os
from pathlib import Path
from typing import Any

from data.files import read_json
from models import FAMILIES, PRESETS, add_preset
from models.archive import describe_content, read_with_headers
from models.checkpoint import Checkpoint, build_checkpoint, checkpoint_file, is_checkpoint
from models.convert.export import to_hf
from models.convert.hf import from_hf, load_hf
from models.convert.hub import HUB_ID, download, find_weights
from models.facts import RunFacts
from models.initial import fit_architecture, random_checkpoint
from models.packed import is_packed, read_packed

WRONG_FILE = "it is damaged, or neither a checkpoint of ours nor weights of a known format"

__all__ = ["find_weights", "from_hf", "know_model", "load_initial", "load_weights", "to_hf"]


def load_weights(path: str | os.PathLike[str]) -> Checkpoint:
    """Read any weights we can read, telling the format from what is there.

    Args:
        path: A checkpoint file of ours, packed or not; a Hugging Face folder (``config.json`` with
            a ``model_type``) or a weight file in one; a file or folder of a format that a family
            names; or, where there is none of that name, a repository of the model hub, OWNER/NAME.

    Returns:
        Checkpoint on the CPU.

    Raises:
        ValueError: If nothing readable is there, the format's own reader refuses it, or a weight is
            NaN or infinite.
    """
    path = Path(path)
    if not path.exists() and HUB_ID.fullmatch(path.as_posix()):
        path = download(path.as_posix())
    try:
        return _load(path)
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: {error}") from None  # the reader of a part knows no file


def _load(path: Path) -> Checkpoint:
    content = None
    if "model_type" not in read_json(path / "config.json", needed=False):
        path = checkpoint_file(path)
    if path.is_file():
        packed = is_packed(path)
        if path.suffix == ".safetensors" and not packed or path.name.startswith("pytorch_model"):
            if not (path.parent / "config.json").is_file():
                raise ValueError(
                    f"{path} holds weights and does not say of which model: put the config.json "
                    "that it was published with beside it"
                )
            return load_hf(path.parent, path)
        content = read_packed(path) if packed else read_with_headers(path, WRONG_FILE)
        if is_checkpoint(content):
            return build_checkpoint(content, path)
    elif "model_type" in read_json(path / "config.json", needed=False):
        return load_hf(path)
    return _load_foreign(path, content)


def _load_foreign(path: Path, content: Any) -> Checkpoint:
    formats = [each for family in FAMILIES.values() for each in family.formats]
    for foreign in formats:
        if foreign.fits(path, content):
            model, settings = foreign.read(path, content)
            return Checkpoint(model, **vars(settings), run=RunFacts(converted_from=foreign.name))
    others = ", ".join(f"{each.name} ({each.looks_like})" for each in formats)
    if content is not None:
        raise ValueError(
            f"{path} holds {describe_content(content)}, which is none of the formats known here: "
            "let the program that wrote it export a Hugging Face folder (config.json and "
            f"model.safetensors), and give that; files are read of {others}"
        )
    if str(path) in PRESETS:
        raise ValueError(
            f"no weights at {path}, which is the name of a model: give that to --model, and here "
            "its weights, or auto, which looks for them"
        )
    raise ValueError(
        f"no weights at {path}: looked for a run or a checkpoint file of ours, a Hugging Face "
        f"folder (config.json with a model_type) or a weight file in one, and {others}; "
        "give the path of one, or a hub name OWNER/NAME"
    )


def know_model(model_name: str) -> bool:
    """Make ``model_name`` one that can be built, where it names weights and not a preset.

    Returns:
        Whether it names weights; they are what training then begins with.

    Raises:
        ValueError: If it names neither, or the weights cannot be read.
    """
    if model_name in PRESETS:
        return False
    if not os.path.exists(model_name) and not HUB_ID.fullmatch(model_name):
        near = difflib.get_close_matches(model_name, PRESETS, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise ValueError(
            f"--model {model_name!r} is unknown: {meant}Give one of {', '.join(PRESETS)}, or "
            "weights of any size: a file, a folder, or a hub name OWNER/NAME"
        )
    add_preset(model_name, load_weights(model_name).model)
    return True


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
