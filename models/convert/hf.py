"""Read Hugging Face folders: what is the same for every family."""

import os
from pathlib import Path

import torch
from torch import Tensor

from data.files import read_json
from models import FAMILIES, SpeechModel
from models.checkpoint import Checkpoint
from models.convert.hf_config import build_from_hf_config
from models.weights import load_renamed

_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


def from_hf(folder: str | os.PathLike[str]) -> SpeechModel:
    """Build the model of a Hugging Face folder; arguments and errors as ``load_hf``'s."""
    return load_hf(folder).model


def load_hf(folder: str | os.PathLike[str]) -> Checkpoint:
    """Read a Hugging Face folder.

    Weights of any floating type become float32. A CTC model's file without a head (an encoder, or
    a pre-training file) gets a random head from torch's global generator, and
    ``run["head"]`` is then "new"; nothing else may be missing.

    Args:
        folder: Holds ``config.json``, ``model.safetensors`` or ``pytorch_model.bin`` (sharded or
            not), and what there is of tokenizer, preprocessor and generation files.

    Returns:
        Checkpoint; ``tokenizer`` is None where there are no tokenizer files.

    Raises:
        ValueError: If a file is missing or unreadable, a setting is not implemented, or a weight
            is unknown, missing or of another shape.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    tensors = _read_tensors(folder)
    try:
        model = build_from_hf_config(config)
        family = FAMILIES[model.family]
        may_lack = family.hugging_face.may_lack(config, tensors)
        load_renamed(model, tensors, family.hugging_face.keys, may_lack)
        settings = family.hugging_face.read_settings(folder, model.config, config)
    except ValueError as error:
        raise ValueError(f"Hugging Face folder {folder}: {error}") from None
    is_headless = not set(family.head).isdisjoint(may_lack)
    tokenizer = settings.tokenizer
    if is_headless and tokenizer is not None and tokenizer.vocab_size != model.config.vocab_size:
        settings.tokenizer = None  # the new head stands for nothing yet
    run = {"converted_from": "Hugging Face", "head": "new" if is_headless else "loaded"}
    return Checkpoint(model, **vars(settings), run=run)


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """Read the first weight file there is, or all shards of the first index."""
    for name in _WEIGHT_FILES:
        if (folder / name).is_file():
            return _read_weight_file(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            shards = sorted(set(read_json(index).get("weight_map", {}).values()))
            parts = [_read_weight_file(folder / Path(shard).name) for shard in shards]
            return {key: tensor for part in parts for key, tensor in part.items()}
    raise ValueError(
        f"no weights in {folder}: looked for {' and '.join(_WEIGHT_FILES)}, whole or with an index"
    )


def _read_weight_file(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        if not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
            raise TypeError("not only tensors")
        return tensors
    except ImportError:
        raise ValueError(
            f"reading {path} needs the safetensors package: pip install -e '.[hf]'"
        ) from None
    except Exception as error:  # both libraries name no common type for damaged or refused files
        raise ValueError(
            f"{path} can't be read ({type(error).__name__}): missing, damaged, or not weights"
        ) from None
