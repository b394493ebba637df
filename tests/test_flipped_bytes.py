"""One byte of a file changed: it is refused in a line that names it, or it means what it did."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data.files import read_archive
from models.checkpoint import load_checkpoint, save_checkpoint, save_packed
from models.facts import RunFacts
from pruning.mask_file import load_masks, save_masks
from pruning.run.stages import Stage, load_stage, save_stage
from tests.test_checkpoint import small_checkpoint

Reader = Callable[[Path], Any]
RUN = RunFacts(seed=3, method="parp", sparsity=0.5)
MASKS = {"a.weight": torch.rand(30, 50) < 0.5, "a.bias": torch.rand(50) < 0.5}
ABOUT = {"model": "m", "scope": "s", "sparsity": 0.5, "source_run": "r", "weights_hash": "0"}


def _checkpoint(path: Path) -> dict[str, Any]:
    checkpoint = load_checkpoint(path)
    assert checkpoint.tokenizer is not None
    return {
        "weights": checkpoint.model.state_dict(),
        "tokenizer": checkpoint.tokenizer.spec(),
        **{
            name: getattr(checkpoint, name)
            for name in ("config", "masks", "frontend", "decoding", "run", "training")
        },
    }


def _masks(path: Path) -> Any:
    return vars(load_masks(path))


def _stage(path: Path) -> Any:
    return vars(load_stage(path.parent, "dense"))


def _dense() -> Any:
    """A checkpoint whose pruned weights are zero."""
    checkpoint = small_checkpoint(run=RUN)
    with torch.no_grad():
        for name, mask in checkpoint.masks.items():
            checkpoint.model.get_parameter(name).masked_fill_(~mask, 0.0)
    return checkpoint


def _write_last(path: Path) -> None:
    training = {"step": 3, "adam": {0: {"exp_avg": torch.randn(40)}}, "rng": torch.get_rng_state()}
    save_checkpoint(path, small_checkpoint(run=RUN, training=training))


WRITERS: dict[str, tuple[Callable[[Path], object], Reader]] = {
    "best.pt": (lambda path: save_checkpoint(path, _dense()), _checkpoint),
    "last.pt": (_write_last, _checkpoint),
    "packed": (lambda path: save_packed(path, _dense()), _checkpoint),
    "packed.fp16": (lambda path: save_packed(path, _dense(), "fp16"), _checkpoint),
    "packed.int8": (lambda path: save_packed(path, _dense(), "int8"), _checkpoint),
    "masks.pt": (lambda path: save_masks(path, MASKS, ABOUT), _masks),
    "stage-dense.pt": (
        lambda path: save_stage(path.parent, "dense", Stage({"a": torch.randn(300)}, 3, 1.5)),
        _stage,
    ),
    "any.pt": (
        lambda path: torch.save({"a": torch.randn(300), "b": [1, "text"]}, path),
        lambda path: read_archive(path, "a file", "restore it"),
    ),
}


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    return bool(a == b)


def _flip(folder: Path, name: str, count: int, seed: int) -> int:
    """Change one byte at a time; return how often the file was refused."""
    write, read = WRITERS[name]
    path = folder / name
    write(path)
    content = path.read_bytes()
    expected = read(path)
    numbers = random.Random(f"{name} {seed}")
    refused = 0
    for _ in range(count):
        place = numbers.randrange(len(content))
        changed = bytearray(content)
        changed[place] ^= numbers.choice([1, 2, 4, 8, 16, 32, 64, 128, 255])
        path.write_bytes(changed)
        try:
            found = read(path)
        except ValueError as error:
            message = str(error)
            assert str(path) in message, (place, message)
            assert "\n" not in message, place
            refused += 1
        else:
            assert _equal(found, expected), place
    return refused


@pytest.mark.parametrize("name", WRITERS)
def test_files_with_a_changed_byte_mean_the_same_or_are_refused(tmp_path: Path, name: str) -> None:
    assert _flip(tmp_path, name, 40, seed=0) > 10


@pytest.mark.long
@pytest.mark.parametrize("name", WRITERS)
def test_thousands_of_changed_bytes_mean_the_same_or_are_refused(tmp_path: Path, name: str) -> None:
    assert _flip(tmp_path, name, 3000, seed=1) > 1000


def test_packed_file_without_a_checksum_is_read(tmp_path: Path) -> None:
    from models.tensor_file import read_metadata, read_tensors, write_tensors

    save_packed(tmp_path / "a", _dense())
    metadata = read_metadata(tmp_path / "a")
    assert metadata.pop("checksum")
    with (tmp_path / "b").open("wb") as file:
        write_tensors(file, read_tensors(tmp_path / "a"), metadata)
    assert _equal(_checkpoint(tmp_path / "b"), _checkpoint(tmp_path / "a"))
