"""Our reader and writer of safetensors' layout against the safetensors package."""

import json
import struct
from pathlib import Path

import pytest
import torch

from models.tensor_file import DTYPES, read_metadata, read_tensors, write_tensors

safetensors_torch = pytest.importorskip("safetensors.torch")

# Odd sizes of narrow types before wide ones, an empty tensor, and a scalar.
TENSORS = {
    "a": torch.arange(5, dtype=torch.uint8),
    "b": torch.randn(3, 4),
    "c": torch.randn(7).half(),
    "d": torch.zeros(0, 3),
    "e": torch.tensor(1.5, dtype=torch.float64),
    "f": torch.tensor([True, False, True]),
    "g": torch.randn(2, 3).bfloat16(),
    "h": torch.arange(-3, 4, dtype=torch.int64),
    "ü": torch.arange(9, dtype=torch.int8).reshape(3, 3),
}


def ours(path: Path, tensors: dict, metadata: dict | None = None) -> Path:
    with path.open("wb") as file:
        write_tensors(file, tensors, metadata or {"format": "pt"})
    return path


def assert_equal(found: dict, wanted: dict) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def test_safetensors_reads_what_is_written(tmp_path):
    assert_equal(safetensors_torch.load_file(ours(tmp_path / "a", TENSORS)), TENSORS)


def test_what_safetensors_wrote_is_read(tmp_path):
    safetensors_torch.save_file(TENSORS, tmp_path / "a", metadata={"made": "there"})
    assert_equal(read_tensors(tmp_path / "a"), TENSORS)
    assert read_metadata(tmp_path / "a") == {"made": "there"}


@pytest.mark.parametrize("name", DTYPES)
def test_every_type_is_read_and_written(tmp_path, name):
    tensors = {"x": torch.ones(3, 5).to(DTYPES[name])}
    assert_equal(read_tensors(ours(tmp_path / "a", tensors)), tensors)


def test_tensors_read_have_memory_of_their_own(tmp_path):
    first = read_tensors(ours(tmp_path / "a", TENSORS))
    first["b"].zero_()
    assert torch.equal(read_tensors(tmp_path / "a")["b"], TENSORS["b"])


def header(**entries: object) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


def entry(dtype: object = "U8", shape: object = (4,), offsets: object = (0, 4)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no header"),
        (struct.pack("<Q", 2**63) + b"{}", "no header"),
        (struct.pack("<Q", 4) + b"{{}}", "JSONDecodeError in its header"),
        (struct.pack("<Q", 2) + b"[]", "its header is no object"),
        (struct.pack("<Q", 200_000) + b"[" * 200_000, "RecursionError in its header"),
        (header(x=entry()) + b"123", "3 bytes, expected 4"),
        (header(x=entry()) + b"12345", "5 bytes, expected 4"),
        (header(x=entry("F8_E4M3")) + b"1234", "tensor 'x'"),
        (header(x=entry(shape=[2**40])) + b"1234", "tensor 'x'"),
        (header(x=entry(shape=[-4])) + b"1234", "tensor 'x'"),
        (header(x=entry(shape=[3])) + b"1234", "size of 'x'"),
        (header(x=entry(offsets=[4, 0])) + b"1234", "tensor 'x'"),
        (header(x=entry(offsets=[0, 4.0])) + b"1234", "tensor 'x'"),
        (header(x=None) + b"1234", "tensor 'x'"),
        (header(x=entry(), y=entry()) + b"1234", "gaps or overlaps"),
        (header(x=entry(offsets=[1, 5])) + b"12345", "gaps or overlaps"),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path, content, reason):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match="can't be read") as caught:
        read_tensors(tmp_path / "a")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_are_refused_and_have_no_metadata(tmp_path):
    with pytest.raises(ValueError, match="can't be read .No such file"):
        read_tensors(tmp_path / "a")
    assert read_metadata(tmp_path / "a") == {}
