"""Files that could keep a program busy for ever are refused at once."""

import os
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from data.audio import measure
from data.files import read_json, read_json_lines, read_toml
from data.folders import read_text
from data.timit import load_timit
from models.convert import load_weights

AT_ONCE = 2.0  # seconds; what was seen before took a minute, or had no end


@pytest.fixture
def at_once() -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < AT_ONCE


DEEP: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a.json": ("[" * 100_000, read_json),
    "b.json": ('{"a":' * 100_000, read_json),
    "c.json": ('{"a":' + "[" * 5000 + "]" * 5000 + "}", read_json),
    "d.jsonl": ("[" * 100_000, read_json_lines),
    "e.toml": ("a = " + "[" * 100_000, lambda path: read_toml(path, "give another")),
    "f.toml": ("a = " + "{b=" * 9000, lambda path: read_toml(path, "give another")),
    "g.toml": ("a" + ".a" * 45_000 + " = 1", lambda path: read_toml(path, "give another")),
    "h.toml": ("a" + ".a" * 5_000 + " = 1", lambda path: read_toml(path, "give another")),
    "i.toml": ("[[a]]\n" * 100_000, lambda path: read_toml(path, "give another")),
}


@pytest.mark.parametrize("name", DEEP)
@pytest.mark.usefixtures("at_once")
def test_deeply_nested_files_are_damaged_files(tmp_path: Path, name: str) -> None:
    text, read = DEEP[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=name):
        read(tmp_path / name)


@pytest.mark.parametrize("read", [measure, read_text])
@pytest.mark.usefixtures("at_once")
def test_a_pipe_in_place_of_a_file_is_refused(tmp_path: Path, read: Callable[[Path], None]) -> None:
    os.mkfifo(tmp_path / "SX1.WAV")
    with pytest.raises(ValueError, match="SX1.WAV is a pipe or a device"):
        read(tmp_path / "SX1.WAV")


@pytest.mark.usefixtures("at_once")
def test_a_pipe_in_a_corpus_is_named(small_corpus: Path, tmp_path: Path) -> None:
    import shutil

    corpus = Path(shutil.copytree(small_corpus, tmp_path / "corpus"))
    for suffix in (".WAV", ".PHN", ".TXT"):
        path = next((corpus / "TEST").rglob("S[XI]*.WAV")).with_suffix(suffix)
        content = path.read_bytes()
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(ValueError, match=f"{path.name} is a pipe or a device"):
            load_timit(corpus, "test")
        path.unlink()
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("0 1 x" + " " * 200_000 + "\ny", None),
        ("0 1 " + "a " * 100_000 + "\n \n x", None),
        (" " * 500_000, None),
        ("0" * 500_000, None),
        ("0 1", None),
        ("0 x She had.", None),
        ("0 1 " + "a " * 100_000 + "\n", ("a " * 100_000).rstrip()),
        ("  0\t46797  She had your  dark suit. \r\n", "She had your  dark suit."),
    ],
    ids=range(8),
)
@pytest.mark.usefixtures("at_once")
def test_a_sentence_of_any_length_is_read_or_refused_at_once(
    small_corpus: Path, tmp_path: Path, text: str, sentence: str | None
) -> None:
    import shutil

    corpus = Path(shutil.copytree(small_corpus, tmp_path / "corpus"))
    path = sorted((corpus / "TEST").rglob("S[XI]*.TXT"))[0]
    path.write_bytes(text.encode())
    if sentence is None:
        with pytest.raises(ValueError, match=f"{path.name}: line 1: not `start end sentence`"):
            load_timit(corpus, "test")
    else:
        assert sentence in {each.text for each in load_timit(corpus, "test")}


@pytest.mark.usefixtures("at_once")
def test_a_class_with_an_endless_name_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            is_pickle = name.endswith("data.pkl")
            archive.writestr(name, b"ca\n" + b"b" * 30_000 + b"\n." if is_pickle else content)
    with pytest.raises(ValueError, match="it names a class with 30,002 letters"):
        load_weights(path)
