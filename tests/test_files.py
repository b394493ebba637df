"""Files that are written whole or not at all, and read with errors of one line."""

import json
import math
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.files import (
    append_json_line,
    pack_bits,
    read_json,
    read_json_lines,
    read_toml,
    remove_left_overs,
    shown,
    take_lock,
    temporary_beside,
    to_json,
    unpack_bits,
    write_file,
    write_files,
    write_json,
)


@contextmanager
def _small_disk() -> Iterator[None]:
    """Let the process write no more than 10 kB into a file meanwhile, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        yield
    finally:  # before pytest writes to its own output, which may be a longer file
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_write_file_replaces_and_makes_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    write_file(path, b"old")
    write_file(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["b.txt"]


def test_write_file_that_fails_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    def fail(file: object) -> None:
        raise KeyError("a bug")

    write_file(tmp_path / "a", b"old")
    with pytest.raises(KeyError, match="a bug"):
        write_file(tmp_path / "a", fail)
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_files_that_cannot_all_be_written_are_none(tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_text("old")
    (tmp_path / "file").write_text("")
    contents = {tmp_path / "old.txt": b"new", tmp_path / "file" / "x.txt": b"new"}
    with pytest.raises(ValueError, match="cannot write .*x.txt .*: give another --out"):
        write_files(contents, "give another --out")
    assert (tmp_path / "old.txt").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["file", "old.txt"]


@pytest.mark.parametrize("kind", ["bytes", "tensors"])
def test_full_disk_is_one_line_and_leaves_the_old_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "weights.pt"
    write_file(path, b"old")
    tensors = {"weight": torch.zeros(100_000)}
    contents = {"bytes": bytes(100_000), "tensors": lambda file: torch.save(tensors, file)}
    refused = pytest.raises(ValueError, match="weights.pt .File too large.: give")
    with _small_disk(), refused as info:
        write_file(path, contents[kind])
    assert "\n" not in str(info.value)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["weights.pt"]


def test_left_overs_of_killed_processes_are_removed_and_nothing_else(tmp_path: Path) -> None:
    left = [temporary_beside(tmp_path / "last.pt"), temporary_beside(tmp_path / "demo", "new")]
    kept = [tmp_path / "last.pt", tmp_path / ".sweep.json", tmp_path / ".others.1.tmp"]
    for path in (left[0], *kept):
        path.write_bytes(b"")
    (left[1] / "TRAIN").mkdir(parents=True)
    remove_left_overs(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(kept)


def test_left_overs_that_are_written_to_stay(tmp_path: Path) -> None:
    busy, idle = (temporary_beside(tmp_path / name) for name in ("busy", "idle"))
    busy.write_bytes(b"")
    idle.write_bytes(b"")
    os.utime(idle, (0, 0))
    remove_left_overs(tmp_path, idle_seconds=3600)
    assert list(tmp_path.iterdir()) == [busy]


def test_json_knows_no_nan() -> None:
    value = {"loss": math.nan, "both": [math.inf, (-math.inf, 1.5)], "text": "NaN"}
    expected = {"loss": None, "both": [None, [None, 1.5]], "text": "NaN"}
    assert json.loads(to_json(value), parse_constant=pytest.fail) == expected


def test_json_of_finite_values_is_pythons_own() -> None:
    value = {"a": [0.1, 1e-300, True, None], "ä": "€"}
    assert to_json(value, indent=2) == json.dumps(value, indent=2)


def test_nan_in_an_old_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text('{"loss": NaN}')
    assert math.isnan(read_json(tmp_path / "old.json")["loss"])


def test_json_and_its_lines_come_back(tmp_path: Path) -> None:
    values = [{"step": 1, "text": "a\u2028b\n"}, {"step": 2, "rates": {"per": 0.25}}]
    for value in values:
        write_json(tmp_path / "one.json", value)
        append_json_line(tmp_path / "all.jsonl", value)
        assert read_json(tmp_path / "one.json") == value
    assert read_json_lines(tmp_path / "all.jsonl") == values


def test_missing_json_that_is_not_needed_is_empty(tmp_path: Path) -> None:
    assert read_json(tmp_path / "none.json", needed=False) == {}


@pytest.mark.parametrize(
    "content", [b"{", b"[1]", b"\xff\xfe", b"", b'{"a": 1}}', b"[" * 100_000], ids=range(6)
)
def test_damaged_json_is_one_line_with_the_remedy(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    for read in (read_json, read_json_lines):
        if content in (b"",) and read is read_json_lines:
            assert read(path) == []
            continue
        with pytest.raises(ValueError, match="a.json .*: do this") as info:
            read(path, "do this")
        assert "\n" not in str(info.value)


@pytest.mark.parametrize("content", [b"a = ", b"\xff", b"a = " + b"[" * 10_000])
def test_wrong_toml_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.toml").write_bytes(content)
    with pytest.raises(ValueError, match="a.toml is not TOML .*: correct it") as info:
        read_toml(tmp_path / "a.toml", "give another")
    assert "\n" not in str(info.value)


def test_lock_of_a_living_process_is_refused_and_that_of_a_killed_one_is_none(
    tmp_path: Path,
) -> None:
    path = tmp_path / "lock"
    code = (
        "import sys, time; from data.files import take_lock; file = open(sys.argv[1], 'ab')\n"
        "take_lock(file, 'taken'); print('locked', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(path)]
    root = Path(__file__).parent.parent
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        with path.open("ab") as file, pytest.raises(ValueError, match="in use: wait until it ends"):
            take_lock(file, "in use")
        process.kill()
    with path.open("ab") as file:
        take_lock(file, "in use")


@given(st.lists(st.booleans(), max_size=40), st.integers(1, 4))
def test_bits_come_back_from_an_eighth_of_the_bytes(values: list[bool], rows: int) -> None:
    mask = torch.tensor(values * rows, dtype=torch.bool).reshape(rows, -1)
    packed = pack_bits(mask)
    assert packed["bits"].numel() == math.ceil(mask.numel() / 8)
    assert torch.equal(unpack_bits(packed, "w"), mask)


def test_bits_that_do_not_fill_the_shape_are_refused() -> None:
    packed = pack_bits(torch.ones(3, 5, dtype=torch.bool)) | {"shape": [3, 6]}
    with pytest.raises(ValueError, match="mask 'w' has 2 bytes for 18 bits"):
        unpack_bits(packed, "w")


@pytest.mark.parametrize("value", [torch.ones(4, 4), "a\nb", {"a": torch.zeros(3, 3)}], ids=str)
def test_any_value_is_shown_in_one_short_line(value: object) -> None:
    assert len(shown(value).splitlines()) == 1
    assert len(shown(value)) <= 60
