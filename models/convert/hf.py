"""Read Hugging Face folders: what is the same for every family."""

import os
from pathlib import Path

from torch import Tensor

from data.files import read_archive
from models import SpeechModel
from models.checkpoint import Checkpoint
from models.convert.hf_config import read_hf_config
from models.facts import RunFacts
from models.fields import Field, JsonFile, take_fields
from models.tensor_file import read_tensors
from models.weights import build_renamed

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


def from_hf(folder: str | os.PathLike[str]) -> SpeechModel:
    """Build the model of a Hugging Face folder; arguments and errors as ``load_hf``'s."""
    return load_hf(folder).model


def load_hf(folder: str | os.PathLike[str], weights: Path | None = None) -> Checkpoint:
    """Read a Hugging Face folder.

    Weights of any floating type become float32. A CTC model's file without a head (an encoder, or
    a pre-training file) gets a random head from torch's global generator, and ``run["head"]`` is
    then "new". The embedding of masked frames, which many published files lack and which only
    training uses, is drawn too where it is missing, and ``run.drawn`` names it. Nothing else may
    be missing.

    Args:
        folder: Holds ``config.json``, ``model.safetensors`` or ``pytorch_model.bin`` (sharded or
            not), and what there is of tokenizer, preprocessor and generation files.
        weights: A weight file to read instead of the folder's.

    Returns:
        Checkpoint; ``tokenizer`` is None where there are no tokenizer files.

    Raises:
        ValueError: If a file is missing or unreadable, a setting is not implemented, or a weight
            is unknown, missing or of another shape.
    """
    folder = Path(folder)
    config_file = JsonFile.read(folder / "config.json", needed=True)
    tensors = _read_tensors(folder, weights)
    try:
        family, config = read_hf_config(config_file)
        hugging_face = family.hugging_face
        may_lack = hugging_face.may_lack(tensors)
        model = build_renamed(family.model, config, tensors, hugging_face.keys, may_lack)
        settings = hugging_face.read_settings(config, config_file)
    except ValueError as error:
        raise ValueError(f"Hugging Face folder {folder}: {error}") from None

    is_headless = not set(family.head).isdisjoint(may_lack)
    tokenizer = settings.tokenizer
    if tokenizer is not None and tokenizer.vocab_size != config.vocab_size:
        if not is_headless:
            raise ValueError(
                f"Hugging Face folder {folder}: the tokenizer has {tokenizer.vocab_size} ids, "
                f"vocab_size in config.json is {config.vocab_size}: put the model's own there"
            )
        settings.tokenizer = None  # the new head stands for nothing yet
    run = RunFacts(
        converted_from="Hugging Face",
        head="new" if is_headless else "loaded",
        drawn=tuple(name for name in may_lack if name not in family.head),
    )
    return Checkpoint(model, **vars(settings), run=run)


def _read_tensors(folder: Path, weights: Path | None) -> dict[str, Tensor]:
    """Read the weight file named, or the first there is, or all shards of the first index."""
    if weights is not None:
        return read_weight_file(weights)
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return read_weight_file(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            schema = {"weight_map": Field("dict of str", {})}
            shards = set(take_fields(schema, JsonFile.read(index))["weight_map"].values())
            parts = [read_weight_file(folder / Path(shard).name) for shard in sorted(shards)]
            return {key: tensor for part in parts for key, tensor in part.items()}
    raise ValueError(
        f"no weights in {folder}: looked for {' and '.join(WEIGHT_FILES)}, whole or with an index"
    )


def read_weight_file(path: Path) -> dict[str, Tensor]:
    """Read a file that holds tensors by name and nothing else.

    Raises:
        ValueError: If it is missing, damaged, compressed or holds anything else.
    """
    if path.suffix != ".safetensors":
        content = read_archive(path, "weights", "missing, damaged, or not weights")
        if not isinstance(content, dict) or not all(
            isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
        ):
            raise ValueError(f"{path} holds more than weights: give a file of tensors by name")
        return content
    return read_tensors(path)
