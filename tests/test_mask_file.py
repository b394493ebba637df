"""Mask files: round trip, size, what is refused; and the hash of the weights."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.mask_file import check_masks, load_masks, save_masks, weights_hash

METADATA = {
    "model": "w2v2",
    "scope": "encoder",
    "sparsity": 0.5,
    "source_run": "runs/a",
    "weights_hash": "0" * 64,
}


def some_masks() -> dict:
    return {"a.weight": torch.rand(3, 5) > 0.5, "a.bias": torch.rand(9) > 0.5}


@settings(deadline=None)  # each example is synced to the disk
@given(st.lists(st.integers(0, 4), max_size=3), st.integers(0, 2**31))
def test_mask_file_round_trip_keeps_every_bit(
    tmp_path_factory: pytest.TempPathFactory, shape: list, seed: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "masks.pt"
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) > 0.5
    save_masks(path, {"w": mask}, METADATA)
    assert torch.equal(load_masks(path).masks["w"], mask)


def test_mask_file_round_trip_keeps_metadata_and_more(tmp_path: Path) -> None:
    save_masks(tmp_path / "masks.pt", some_masks(), {**METADATA, "task": ["phone", 3]})
    assert load_masks(tmp_path / "masks.pt").metadata == {**METADATA, "task": ["phone", 3]}


def test_mask_file_holds_eight_weights_to_a_byte(tmp_path: Path) -> None:
    save_masks(tmp_path / "masks.pt", {"w": torch.rand(1_000_000) > 0.5}, METADATA)
    assert 125_000 <= (tmp_path / "masks.pt").stat().st_size < 128_000  # 126,8xx observed


def test_save_masks_without_required_metadata_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lacks sparsity, source_run, weights_hash"):
        save_masks(tmp_path / "masks.pt", some_masks(), {"model": "w2v2", "scope": "encoder"})


def test_save_masks_of_floats_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'w' is torch.float32: masks are bool"):
        save_masks(tmp_path / "masks.pt", {"w": torch.ones(3)}, METADATA)


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_save_masks_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "masks.pt"
    save_masks(path, some_masks(), METADATA)
    before = path.read_bytes()

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, no_space)
    with pytest.raises(ValueError, match="cannot write .*No space left"):
        save_masks(path, {"other": torch.ones(1, dtype=torch.bool)}, METADATA)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["masks.pt"]


def test_load_masks_of_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none.pt can't be read as a mask file .No such file"):
        load_masks(tmp_path / "none.pt")


@pytest.mark.parametrize("content", [b"", b"not a mask file", b"PK\x03\x04 cut"])
def test_load_masks_of_foreign_bytes_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "masks.pt").write_bytes(content)
    with pytest.raises(ValueError, match="can't be read as a mask file"):
        load_masks(tmp_path / "masks.pt")


def test_load_masks_of_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "masks.pt"
    save_masks(path, some_masks(), METADATA)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ValueError, match="can't be read as a mask file"):
        load_masks(path)


@pytest.mark.parametrize("content", [{"format": "other"}, [1, 2], {}])
def test_load_masks_of_other_torch_file_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "masks.pt")
    with pytest.raises(ValueError, match="is no mask file: its format is not 'parp-masks'"):
        load_masks(tmp_path / "masks.pt")


def test_load_masks_of_other_version_is_refused(tmp_path: Path) -> None:
    torch.save({"format": "parp-masks", "version": 99}, tmp_path / "masks.pt")
    with pytest.raises(ValueError, match="version 99, this program reads 1"):
        load_masks(tmp_path / "masks.pt")


def test_load_masks_with_too_few_bits_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "masks.pt"
    save_masks(path, {"w": torch.ones(20, dtype=torch.bool)}, METADATA)
    content = torch.load(path, weights_only=True)
    content["masks"]["w"]["bits"] = content["masks"]["w"]["bits"][:2]
    torch.save(content, path)
    with pytest.raises(ValueError, match="damaged .mask 'w' has 2 bytes for 20 bits"):
        load_masks(path)


def test_check_masks_of_same_model_passes(tmp_path: Path) -> None:
    masks = some_masks()
    save_masks(tmp_path / "masks.pt", masks, METADATA)
    params = {name: torch.zeros(mask.shape) for name, mask in masks.items()}
    check_masks(load_masks(tmp_path / "masks.pt"), params, "w2v2", "encoder")


@pytest.mark.parametrize(
    ("model", "scope", "shape", "name", "match"),
    [
        ("whisper-tiny", "encoder", (9,), "a.bias", "for model 'w2v2', this run is for 'whisper-t"),
        ("w2v2", "decoder", (9,), "a.bias", "for scope 'encoder', this run is for 'decoder'"),
        ("w2v2", "encoder", (8,), "a.bias", r"mask 'a.bias' is \(9,\), the parameter \(8,\)"),
        ("w2v2", "encoder", (9,), "b.bias", "differ in 2 parameter names, first in 'a.bias'"),
    ],
)
def test_check_masks_of_another_model_is_refused(
    tmp_path: Path, model: str, scope: str, shape: tuple, name: str, match: str
) -> None:
    save_masks(tmp_path / "masks.pt", some_masks(), METADATA)
    params = {"a.weight": torch.zeros(3, 5), name: torch.zeros(shape)}
    with pytest.raises(ValueError, match=match):
        check_masks(load_masks(tmp_path / "masks.pt"), params, model, scope)


def test_weights_hash_does_not_depend_on_order_or_layout() -> None:
    weight, bias = torch.randn(3, 4), torch.randn(3)
    expected = weights_hash({"weight": weight, "bias": bias})
    assert weights_hash({"bias": bias, "weight": weight.T.contiguous().T}) == expected


@pytest.mark.parametrize(
    "other",
    [
        {"v": torch.arange(6.0)},
        {"w": torch.arange(6.0).reshape(2, 3)},
        {"w": torch.arange(6.0).double()},
        {"w": torch.arange(6.0) + 2**-20},
        {"w": torch.arange(6.0), "x": torch.zeros(0)},
    ],
)
def test_weights_hash_changes_with_name_shape_dtype_and_value(other: dict) -> None:
    assert weights_hash(other) != weights_hash({"w": torch.arange(6.0)})


def test_weights_hash_tells_dtypes_of_equal_bytes_apart() -> None:
    zeros = torch.zeros(2, dtype=torch.bfloat16)
    assert weights_hash({"w": zeros}) != weights_hash({"w": zeros.half()})


def test_weights_hash_takes_scalars_and_bfloat16() -> None:
    tensors = {"s": torch.tensor(1.0), "h": torch.ones(2, dtype=torch.bfloat16)}
    assert len(weights_hash(tensors)) == 64
