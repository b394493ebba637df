"""Our checkpoint: one file with the model and everything that decoding needs beside it.

The file holds tensors and plain values only, so it is read with torch's ``weights_only`` loader,
which runs no code. Masks take one bit a weight.
"""

import os
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.files import pack_bits, unpack_bits, write_file
from models import build_from_config
from models.family import SpeechModel
from models.tokenizers import Tokenizer, build_tokenizer
from models.weights import load_strictly

FORMAT = "parp-checkpoint"
VERSION = 1

_PARTS: dict[str, tuple[type, ...]] = {
    "family": (str,),
    "config": (dict,),
    "weights": (dict,),
    "masks": (dict,),
    "tokenizer": (dict, type(None)),
    "frontend": (dict,),
    "decoding": (dict,),
    "run": (dict,),
    "training": (dict, type(None)),
}


@dataclass
class Checkpoint:
    """A model with what belongs to it.

    Attributes:
        model: Of any family.
        tokenizer: Maps text to the model's ids; None where the weights came without one.
        masks: Prune masks by native parameter name, bool, True = kept; {} for a dense model.
        frontend: The fields of a ``models.family.FrontEnd``.
        decoding: ``blank_id`` (CTC), or ``start_ids``, ``eos_id``, ``suppress_ids``,
            ``begin_suppress_ids`` and ``max_tokens``.
        run: Free metadata, plain values only.
        training: What resuming needs: nested dicts and lists of tensors and plain values.
    """

    model: SpeechModel
    tokenizer: Tokenizer | None = None
    masks: dict[str, Tensor] = field(default_factory=dict)
    frontend: dict[str, Any] = field(default_factory=dict)
    decoding: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] | None = None

    @property
    def config(self) -> Any:
        """The model's config."""
        return self.model.config


def save_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Write ``checkpoint`` to ``path``, whole or not at all.

    The file is written beside ``path``, synced and renamed over it, so that an interruption
    leaves the old file. Tensors are stored on the CPU, and views without the rest of their
    storage.

    Raises:
        ValueError: If a mask or the tokenizer does not fit the model, a value is neither a tensor
            nor plain, or the file cannot be written.
    """
    path = Path(path)
    problem = _mismatch(checkpoint)
    if problem:
        raise ValueError(f"checkpoint for {path} is not consistent: {problem}")
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    content = {
        "format": FORMAT,
        "version": VERSION,
        "family": model.family,
        "config": asdict(model.config),
        "weights": dict(model.state_dict()),
        "masks": {name: pack_bits(mask) for name, mask in checkpoint.masks.items()},
        "tokenizer": tokenizer.spec() if tokenizer else None,
        "frontend": checkpoint.frontend,
        "decoding": checkpoint.decoding,
        "run": checkpoint.run,
        "training": checkpoint.training,
    }
    content = _storable(content, "checkpoint")
    write_file(path, lambda file: torch.save(content, file))


def load_checkpoint(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Checkpoint:
    """Read a checkpoint, checking everything in it against the model.

    Torch's global random state is left as it was.

    Args:
        path: File written by ``save_checkpoint``.
        device: Where model and masks go; ``training`` stays on the CPU.

    Raises:
        ValueError: If the file is missing, unreadable, of another format or version, or its
            weights, masks or tokenizer do not fit its config.
    """
    path = Path(path)
    content = _read(path)
    try:
        with torch.random.fork_rng(devices=[]):
            model = build_from_config(content["family"], content["config"])
        load_strictly(model, content["weights"])
        checkpoint = Checkpoint(
            model=model,
            tokenizer=build_tokenizer(content["tokenizer"]) if content["tokenizer"] else None,
            masks={name: unpack_bits(packed, name) for name, packed in content["masks"].items()},
            **{name: content[name] for name in ("frontend", "decoding", "run", "training")},
        )
        problem = _mismatch(checkpoint)
        if problem:
            raise ValueError(problem)
    except ValueError as error:
        raise ValueError(f"checkpoint {path} is not consistent: {error}") from None
    model.to(device)
    checkpoint.masks = {name: mask.to(device) for name, mask in checkpoint.masks.items()}
    return checkpoint


def _mismatch(checkpoint: Checkpoint) -> str | None:
    """Say what in ``checkpoint`` does not fit its model, or return None."""
    parameters = dict(checkpoint.model.named_parameters())
    for name, mask in checkpoint.masks.items():
        if name not in parameters:
            return f"mask {name} belongs to no parameter of the model"
        if mask.dtype != torch.bool or mask.shape != parameters[name].shape:
            return (
                f"mask {name} is {mask.dtype} {tuple(mask.shape)}, expected torch.bool "
                f"{tuple(parameters[name].shape)}"
            )
    tokenizer = checkpoint.tokenizer
    if tokenizer and tokenizer.vocab_size != checkpoint.config.vocab_size:
        return (
            f"the tokenizer has {tokenizer.vocab_size} ids, the model's vocabulary "
            f"{checkpoint.config.vocab_size}"
        )
    return None


def _storable(value: Any, where: str) -> Any:
    """Copy ``value`` for storing: tensors on the CPU and in a storage of their own size."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous()
        owned = value.untyped_storage().nbytes() == value.numel() * value.element_size()
        return value if owned else value.clone()
    if isinstance(value, dict):
        return {key: _storable(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_storable(item, f"{where}[{i}]") for i, item in enumerate(value))
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise ValueError(f"{where} is a {type(value).__name__}: only tensors and plain values are kept")


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"no checkpoint file at {path}: give the path of a .pt file of ours")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about files that are refused anyway
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch names no common type for damaged or refused files
        raise ValueError(
            f"{path} can't be read as a checkpoint ({type(error).__name__}): it is damaged, or was "
            "not written by train.py or models.convert"
        ) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(
            f"{path} is not a checkpoint of ours: no format name {FORMAT!r} in it; "
            "convert other weights with python -m models.convert"
        )
    if content.get("version") != VERSION:
        raise ValueError(
            f"{path} has checkpoint version {content.get('version')!r}, this code reads {VERSION}: "
            "use the version of the code that wrote it"
        )
    wrong = [name for name, types in _PARTS.items() if not isinstance(content.get(name, ()), types)]
    if wrong:
        raise ValueError(f"{path} is not a whole checkpoint: missing or wrong {', '.join(wrong)}")
    return content
