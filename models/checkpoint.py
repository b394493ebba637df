"""Our checkpoint: one file with the model and everything that decoding needs beside it.

The file holds tensors and plain values only, so it is read with torch's ``weights_only`` loader,
which runs no code. Masks take one bit a weight.
"""

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.files import has_type, pack_bits, read_archive, shown, unpack_bits, write_file
from models import read_config
from models.archive import describe_content
from models.facts import DecodingFacts, FrontEndFacts, RunFacts, read_facts
from models.family import SpeechModel
from models.packed import PackedSize, is_packed, read_packed, write_packed
from models.tokenizers import Tokenizer, build_tokenizer
from models.weights import build_with_weights, refuse_not_finite

FORMAT = "parp-checkpoint"
VERSION = 1

_FRONT_END = {
    "kind": "str",
    "normalize": "bool",
    "num_mels": "size",
    "audio_ctx": "number or str or null",
}
_DECODING = {
    "blank_id": "id or null",
    "start_ids": "list of id or null",
    "eos_id": "id or null",
    "suppress_ids": "list of id",
    "begin_suppress_ids": "list of id",
    "max_tokens": "size",
}
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
        frontend: What its input is.
        decoding: What its hypotheses are made of.
        run: Where the weights come from.
        training: What resuming needs: nested dicts and lists of tensors and plain values.
    """

    model: SpeechModel
    tokenizer: Tokenizer | None = None
    masks: dict[str, Tensor] = field(default_factory=dict)
    frontend: FrontEndFacts = field(default_factory=FrontEndFacts)
    decoding: DecodingFacts = field(default_factory=DecodingFacts)
    run: RunFacts = RunFacts()
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
    content = _content(path, checkpoint)
    write_file(path, lambda file: torch.save(content, file))


def save_packed(
    path: str | os.PathLike[str], checkpoint: Checkpoint, values: str = "fp32"
) -> PackedSize:
    """Write ``checkpoint`` packed: one bit a prunable weight and the kept ones.

    ``load_checkpoint`` reads it as any other; a pruned weight of -0.0 then is 0.0, and training
    cannot be resumed.

    Args:
        path: The file, written whole or not at all.
        checkpoint: What to write; ``training`` is left out.
        values: "fp32", which keeps every value, "fp16", or "int8" with a scale for each row.

    Returns:
        What it takes.

    Raises:
        ValueError: As ``save_checkpoint``, or if a pruned weight is not zero, or a value is beyond
            the range of fp16.
    """
    path = Path(path)
    return write_packed(path, _content(path, checkpoint), values)


def _content(path: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what the file of a checkpoint holds."""
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
        "run": checkpoint.run.stored(),
        "training": checkpoint.training,
    }
    stored: dict[str, Any] = _storable(content, "checkpoint")
    return stored


def load_checkpoint(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Checkpoint:
    """Read a checkpoint, checking everything in it against the model.

    Torch's global random state is left as it was.

    Args:
        path: File written by ``save_checkpoint`` or ``save_packed``.
        device: Where model and masks go; ``training`` stays on the CPU.

    Raises:
        ValueError: If the file is missing, unreadable, of another format or version, or its
            weights, masks or tokenizer do not fit its config.
    """
    file = checkpoint_file(Path(path))
    return build_checkpoint(_read(file), file, device)


def checkpoint_file(path: Path) -> Path:
    """Return the best.pt of a run folder, else ``path`` as it is."""
    best = path / "best.pt"
    return best if best.is_file() else path


def build_checkpoint(
    content: dict[str, Any], path: Path, device: str | torch.device = "cpu"
) -> Checkpoint:
    """Return the checkpoint that a file holds; ``load_checkpoint`` after the reading.

    Args:
        content: What the file holds, changed nowhere.
        path: Its path, for messages.
        device: As for ``load_checkpoint``.

    Raises:
        ValueError: As ``load_checkpoint``.
    """
    try:
        _check_parts(content)
        family, config = read_config(content["family"], content["config"])
        with torch.random.fork_rng(devices=[]):
            model = build_with_weights(family.model, config, content["weights"])
        checkpoint = Checkpoint(
            model=model,
            tokenizer=build_tokenizer(content["tokenizer"]) if content["tokenizer"] else None,
            masks={name: unpack_bits(packed, name) for name, packed in content["masks"].items()},
            run=read_facts(content["run"]),
            **{name: content[name] for name in ("frontend", "decoding", "training")},
        )
        family.check_pattern(checkpoint.run.scope_pattern)
        refuse_not_finite(model.state_dict())
        problem = _mismatch(checkpoint)
        if problem:
            raise ValueError(problem)
    except ValueError as error:
        raise ValueError(f"checkpoint {path} is not consistent: {error}") from None

    model.to(device)
    checkpoint.masks = {name: mask.to(device) for name, mask in checkpoint.masks.items()}
    return checkpoint


def _mismatch(checkpoint: Checkpoint) -> str | None:
    """Return what in ``checkpoint`` does not fit its model, in words, or None."""
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


OTHERS_WEIGHTS = ("model.safetensors.index.json", "pytorch_model.bin", "model.bin")


def _read(path: Path) -> dict[str, Any]:
    if any((path / name).is_file() for name in ("model.safetensors", *OTHERS_WEIGHTS)):
        raise ValueError(
            f"{path} is a folder without a best.pt, and looks like another program's weights: "
            "convert them first, with models.convert"
        )
    if path.is_dir():
        raise ValueError(
            f"{path} is a folder without a best.pt: give the folder of a run that has been scored, "
            "or a checkpoint file"
        )
    if not path.is_file():
        raise ValueError(f"no checkpoint file at {path}: give the path of a .pt file of ours")
    if is_packed(path):
        return read_packed(path)
    remedy = "it is damaged, or was not written by train.py or models.convert"
    content = read_archive(path, kind="a checkpoint", remedy=remedy)
    if not is_checkpoint(content):
        raise ValueError(
            f"{path} is not a checkpoint of ours, it holds {describe_content(content)}: convert "
            "weights of a known format with python -m models.convert, and fine-tune those without "
            "a head with train.py --init"
        )
    return dict(content)


def is_checkpoint_file(path: str | os.PathLike[str]) -> bool:
    """Return whether a file calls itself a checkpoint of ours, packed or not."""
    if is_packed(Path(path)):
        return True
    try:
        return is_checkpoint(read_archive(Path(path), "a checkpoint", "give one of ours"))
    except ValueError:
        return False


def is_checkpoint(content: Any) -> bool:
    """Return whether what a file holds calls itself a checkpoint of ours."""
    name = content.get("format") if isinstance(content, dict) else None
    return isinstance(name, str) and name == FORMAT


def _check_parts(content: dict[str, Any]) -> None:
    """Raise where a part is missing or of another type; a damaged file can hold anything."""
    version = content.get("version")
    if type(version) is not int or version != VERSION:  # a tensor has no one answer
        raise ValueError(
            f"it has checkpoint version {shown(version)}, this code reads {VERSION}: use the "
            "version of the code that wrote it"
        )

    wrong = [name for name, types in _PARTS.items() if not isinstance(content.get(name, ()), types)]
    if wrong:
        raise ValueError(f"it is not a whole checkpoint: missing or wrong {', '.join(wrong)}")
    for part, schema in (("frontend", _FRONT_END), ("decoding", _DECODING)):
        for name, value in content[part].items():
            if name in schema and not has_type(value, schema[name]):
                raise ValueError(f"its {part} has {name} {shown(value)}, expected {schema[name]}")

    for part in ("config", "weights", "run"):
        if not all(isinstance(name, str) for name in content[part]):
            raise ValueError(f"its {part} has a name that is no text")
