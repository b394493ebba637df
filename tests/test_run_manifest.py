"""A run goes on, and takes over stages, with the data that it began with, or not at all."""

import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import train
from data.corpus import Split
from data.run_manifest import check_manifest, write_manifest
from data.utterance import Phone, Utterance

Splits = list[Split]


@pytest.fixture
def splits(tmp_path: Path) -> Splits:
    """Two utterances in each of train, dev and test."""
    found = []
    for number, name in enumerate(("train", "dev", "test")):
        utterances = []
        for i in range(2):
            path = tmp_path / f"{name}{i}.wav"
            path.write_bytes(bytes([number, i]) * 9000)
            phones = (Phone(0, 800, "aa"),)
            each = Utterance(utt_id=f"{name}{i}", path=path, num_samples=1600, phones=phones)
            utterances.append(replace(each, speaker=name, text="a word"))
        found.append(Split(name, utterances, name))
    return found


def _with(splits: Splits, number: int, **changes: object) -> Splits:
    first, *rest = splits[number].utterances
    changed = Split(splits[number].name, [replace(first, **changes), *rest], "")  # type: ignore[arg-type]
    return [*splits[:number], changed, *splits[number + 1 :]]


NEW = Utterance(utt_id="new", path=Path("new.wav"), num_samples=1600)
CHANGES: dict[str, tuple[Callable[[Splits], Splits], str]] = {
    "labels": (
        lambda s: _with(s, 0, phones=(Phone(0, 800, "iy"),)),
        r"are 1 with another label in train \(train0\): put it back",
    ),
    "times": (lambda s: _with(s, 1, phones=(Phone(0, 801, "aa"),)), r"label in dev \(dev0\)"),
    "words": (lambda s: _with(s, 2, text="another word"), r"label in test \(test0\)"),
    "length": (lambda s: _with(s, 0, num_samples=1601), r"another length in train \(train0\)"),
    "part": (lambda s: _with(s, 0, start=7), r"another beginning in train \(train0\)"),
    "gone": (
        lambda s: [replace(s[0], utterances=s[0].utterances[1:]), *s[1:]],
        r"1 gone from train \(train0\)",
    ),
    "all": (lambda s: [replace(s[0], utterances=[]), *s[1:]], r"2 gone from train \(train0, ...\)"),
    "new": (
        lambda s: [replace(s[0], utterances=[*s[0].utterances, NEW]), *s[1:]],
        r"1 new in train \(new\)",
    ),
    "moved": (
        lambda s: [
            replace(s[0], utterances=[s[0].utterances[0], s[1].utterances[0]]),
            replace(s[1], utterances=[s[0].utterances[1], s[1].utterances[1]]),
            s[2],
        ],
        r"1 moved out of dev \(dev0\), 1 moved out of train \(train1\): put",
    ),
}


@pytest.mark.parametrize(("change", "said"), CHANGES.values(), ids=CHANGES)
def test_a_changed_split_is_refused_with_what_differs(
    splits: Splits, tmp_path: Path, change: Callable[[Splits], Splits], said: str
) -> None:
    write_manifest(splits, tmp_path, tmp_path / "m.tsv")
    check_manifest(splits, tmp_path / "m.tsv", "put it back")
    with pytest.raises(ValueError, match=said):
        check_manifest(change(splits), tmp_path / "m.tsv", "put it back")


def test_another_recording_of_equal_size_is_refused(splits: Splits, tmp_path: Path) -> None:
    write_manifest(splits, tmp_path, tmp_path / "m.tsv")
    content = (tmp_path / "dev1.wav").read_bytes()
    (tmp_path / "dev1.wav").write_bytes(content[:5001] + b"\x07" + content[5002:])
    with pytest.raises(ValueError, match=r"another recording in dev \(dev1\)"):
        check_manifest(splits, tmp_path / "m.tsv", "put it back")


def test_utterances_that_were_left_out_belong_to_their_split(
    splits: Splits, tmp_path: Path
) -> None:
    write_manifest(splits, tmp_path, tmp_path / "m.tsv", {"train1"})
    assert "\ttrain-left-out\t" in (tmp_path / "m.tsv").read_text()
    check_manifest(splits, tmp_path / "m.tsv", "put it back")


def test_a_manifest_of_an_earlier_version_is_compared_as_far_as_it_goes(
    splits: Splits, tmp_path: Path
) -> None:
    write_manifest(splits[:2], tmp_path, tmp_path / "m.tsv")  # without test
    lines = [line.rpartition("\t")[0] for line in (tmp_path / "m.tsv").read_text().splitlines()]
    (tmp_path / "m.tsv").write_text("\n".join(lines) + "\n")  # and without the last column
    (tmp_path / "dev1.wav").write_bytes(b"xy" * 9000)
    check_manifest(_with(splits, 2, text="another"), tmp_path / "m.tsv", "put it back")
    with pytest.raises(ValueError, match="another label in dev"):
        check_manifest(_with(splits, 1, text="another"), tmp_path / "m.tsv", "put it back")


def test_a_damaged_manifest_is_named_with_its_line(splits: Splits, tmp_path: Path) -> None:
    write_manifest(splits, tmp_path, tmp_path / "m.tsv")
    with (tmp_path / "m.tsv").open("a") as file:
        file.write("cut\toff")
    with pytest.raises(ValueError, match="m.tsv: line 8 is no row of a manifest"):
        check_manifest(splits, tmp_path / "m.tsv", "put it back")


@pytest.fixture
def corpus(small_corpus: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_corpus, tmp_path / "corpus"))


def _argv(corpus: Path, out: Path, *flags: str) -> list[str]:
    common = ["--data", str(corpus), "--out", str(out), "--steps", "4", "--batch-seconds", "4"]
    return ["--model", "w2v2-demo", "--sparsity", "0.5", *common, "--log-every", "1", *flags]


def _change_labels(corpus: Path) -> None:
    for path in (corpus / "TRAIN").rglob("*.PHN"):
        path.write_text(path.read_text().replace(" iy", " uw"))


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_resume_on_other_labels_is_refused_and_changes_nothing(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    log_step = train.log_step

    def interrupt(run: train.Run, *values: object) -> None:
        log_step(run, *values)  # type: ignore[arg-type]
        if run.step == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(train, "log_step", interrupt)
    argv = _argv(corpus, tmp_path / "run")
    assert train.main(argv) == 130
    monkeypatch.undo()
    before = _files(tmp_path / "run")
    _change_labels(corpus)
    assert train.main([*argv, "--resume", "auto"]) == 2
    assert "with another label in train" in capsys.readouterr().err
    assert _files(tmp_path / "run") == before


def test_a_finished_run_does_not_pass_for_one_on_the_changed_corpus(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = _argv(corpus, tmp_path / "run", "--steps", "1")
    assert train.main(argv) == 0
    assert train.main([*argv, "--resume", "auto"]) == 0
    text = next((corpus / "TEST").rglob("S[XI]*.PHN"))
    text.write_text(text.read_text().replace(" h#", " pau", 1))
    assert train.main([*argv, "--resume", "auto"]) == 2
    assert "1 with another label in test" in capsys.readouterr().err


def test_stages_of_a_run_on_another_corpus_are_not_reused(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense = _argv(corpus, tmp_path / "dense", "--method", "dense", "--steps", "1")
    assert train.main([*dense, "--sparsity", "0"]) == 0
    _change_labels(corpus)
    flags = ("--method", "omp", "--steps", "1", "--reuse", str(tmp_path / "dense"))
    assert train.main(_argv(corpus, tmp_path / "omp", *flags)) == 2
    assert "give a run on the same data to --reuse" in capsys.readouterr().err
    assert not (tmp_path / "omp").exists()


def test_paths_of_a_manifest_corpus_are_relative_to_its_folder(
    splits: Splits, tmp_path: Path
) -> None:
    (tmp_path / "corpus.tsv").write_text("path\n")
    write_manifest(splits, tmp_path / "corpus.tsv", tmp_path / "m.tsv")
    header, first, *_ = (line.split("\t") for line in (tmp_path / "m.tsv").read_text().splitlines())
    path = first[header.index("path")]
    assert not path.startswith("..")
    assert (tmp_path / path).is_file()
