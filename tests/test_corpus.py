"""The seam between corpus formats and the programs, by a format made up for it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from data import formats
from data.corpus import Corpus, Split, load_corpus
from data.phones import fold_phones
from data.run_manifest import probe_recording, write_manifest
from data.splits import draw_splits
from data.timit import load_timit
from data.utterance import CorpusFormat, Phone, Utterance, Wanted

Parts = dict[str, list[Utterance]]


def _utterances(speakers: str, count: int = 2, prefix: str = "") -> list[Utterance]:
    """Make ``count`` utterances of each speaker; a speaker is a letter."""
    return [
        Utterance(
            utt_id=f"{prefix}{speaker}{number}",
            path=Path(f"/corpus/{speaker}/{number}.wav"),
            num_samples=1600 * (1 + number),
            speaker=speaker.strip(),
            text="a word",
        )
        for speaker in speakers
        for number in range(count)
    ]


@pytest.fixture
def open_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Parts], Corpus]:
    """Return a function that opens a corpus of the given parts."""

    def open_corpus(parts: Parts) -> Corpus:
        class MadeUp(CorpusFormat):
            looks_for = "nothing"

            def find(self, data: Path) -> Path:
                return data

            def parts(self, root: Path) -> list[str]:
                return list(parts)

            def read(self, root: Path, part: str, wanted: Wanted) -> list[Utterance]:
                return parts[part]

        monkeypatch.setitem(formats.FORMATS, "made-up", MadeUp)
        return Corpus(tmp_path, "made-up", Wanted(labels={"text"}))

    return open_corpus


OpenParts = Callable[[Parts], Corpus]


def _ids(split: Split) -> set[str]:
    return {utterance.utt_id for utterance in split.utterances}


def test_timit_is_recognised_and_read_as_load_timit_reads_it(small_corpus: Path) -> None:
    corpus = Corpus(small_corpus)
    for name in ("train", "dev", "test", "full-test"):
        split = corpus.read(name)
        assert split.utterances == load_timit(small_corpus, name)
        assert split.described == f"{name} without SA"


def test_a_split_is_the_part_of_its_name_or_the_parts_that_begin_with_it(
    open_parts: OpenParts,
) -> None:
    corpus = open_parts(
        {
            "test-clean": _utterances("a", prefix="clean"),
            "test-other": _utterances("a", prefix="other"),
            "train-clean-100": _utterances("bcd"),
            "testing": _utterances("e"),
        }
    )
    assert _ids(corpus.read("test-clean")) == {"cleana0", "cleana1"}
    assert _ids(corpus.read("test")) == {"cleana0", "cleana1", "othera0", "othera1"}


def test_splits_of_a_corpus_without_any_share_no_speaker_and_lose_nothing(
    open_parts: OpenParts,
) -> None:
    everything = _utterances("abcdefghijklmnopqrstuvw", count=3)
    corpus = open_parts({"": everything})
    splits = [corpus.read(name) for name in ("train", "dev", "test")]
    speakers = [{each.speaker for each in split.utterances} for split in splits]
    assert [len(names) for names in speakers] == [19, 2, 2]
    assert len(set.union(*speakers)) == 23
    assert set.union(*map(_ids, splits)) == {each.utt_id for each in everything}
    assert "drawn with seed 0" in splits[1].described
    assert _ids(corpus.read("all")) == {each.utt_id for each in everything}


def test_missing_dev_is_drawn_from_train_and_leaves_test_alone(open_parts: OpenParts) -> None:
    train, test = _utterances("abcdefghij"), _utterances("xyz")
    corpus = open_parts({"train": train, "test": test})
    dev = corpus.read("dev")
    assert len({each.speaker for each in dev.utterances}) == 1
    assert _ids(corpus.read("train")) == {each.utt_id for each in train} - _ids(dev)
    assert _ids(corpus.read("test")) == {each.utt_id for each in test}
    assert corpus.read("test").described == "test"


def test_a_part_of_train_holds_nothing_of_a_dev_that_is_drawn(open_parts: OpenParts) -> None:
    parts = {"train-a": _utterances("abcdef"), "train-b": _utterances("ghijklmnopqrst")}
    corpus = open_parts(parts | {"test": _utterances("z")})
    dev = _ids(corpus.read("dev"))
    for name, utterances in parts.items():
        everything = {each.utt_id for each in utterances}
        assert everything & dev or name == "train-a"
        assert _ids(corpus.read(name)) == everything - dev


def test_a_label_that_is_wanted_and_missing_is_named(open_parts: OpenParts) -> None:
    first, second = _utterances("a")
    corpus = open_parts({"dev": [first, replace(second, text="")]})
    with pytest.raises(ValueError, match="no text for a1: add them or leave it out, or give"):
        corpus.read("dev")


def test_utterances_are_drawn_where_speakers_are_unknown(open_parts: OpenParts) -> None:
    corpus = open_parts({"": _utterances(" ", count=20)})
    dev = corpus.read("dev")
    assert len(dev.utterances) == 2
    assert dev.described == "dev (a tenth of the utterances, drawn with seed 0)"


def test_draw_depends_on_names_alone() -> None:
    utterances = _utterances("abcdefghijkl")
    forwards = draw_splits(utterances, ["dev", "test"])
    assert draw_splits(utterances[::-1], ["dev", "test"]) == forwards


def test_too_few_utterances_to_draw_from_are_refused(open_parts: OpenParts) -> None:
    with pytest.raises(ValueError, match="2 utterances are too few to draw dev and test"):
        open_parts({"": _utterances("a")}).read("dev")


def test_an_unknown_split_lists_those_that_there_are(open_parts: OpenParts) -> None:
    corpus = open_parts({"train-a": _utterances("abc"), "test-b": _utterances("d")})
    with pytest.raises(ValueError, match="no split 'val': choose train-a, test-b, dev"):
        corpus.read("val")


def test_two_utterances_of_one_name_are_refused(open_parts: OpenParts) -> None:
    corpus = open_parts({"dev": _utterances("a"), "dev-too": _utterances("a")})
    corpus.read("dev")
    corpus = open_parts({"dev-a": _utterances("a"), "dev-b": _utterances("a")})
    with pytest.raises(ValueError, match="two utterances a0"):
        corpus.read("dev")


def test_an_empty_split_is_refused(open_parts: OpenParts) -> None:
    with pytest.raises(ValueError, match="split 'dev' is empty"):
        open_parts({"dev": []}).read("dev")


def test_a_format_that_is_not_there_is_named_with_what_it_looks_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no corpus at .*; timit: folders TRAIN and.*LDC93S1"):
        Corpus(tmp_path)
    with pytest.raises(
        ValueError,
        match="--corpus kaldy is unknown: choose auto, manifest,",
    ):
        Corpus(tmp_path, "kaldy")


def test_load_corpus_takes_a_subset_of_train_and_the_longest_of_all(
    open_parts: OpenParts,
) -> None:
    train, dev, test = (
        _utterances(names, count) for names, count in (("ab", 3), ("c", 4), ("d", 5))
    )
    corpus = open_parts({"train": train, "dev": dev, "test": test})
    data = load_corpus(corpus, "minutes=0.005")
    assert _ids(data.train) < {each.utt_id for each in train}
    assert data.train.described == "train, subset minutes=0.005"
    assert (data.test.name, data.longest) == ("test", test[-1])


def test_manifest_lists_every_utterance(small_corpus: Path, tmp_path: Path) -> None:
    corpus = Corpus(small_corpus)
    write_manifest([corpus.read("dev"), corpus.read("test")], corpus.root, tmp_path / "m.tsv")
    header, *rows = [line.split("\t") for line in (tmp_path / "m.tsv").read_text().splitlines()]
    assert len(rows) == 9
    row = dict(zip(header, rows[-1], strict=True))
    last = corpus.read("test").utterances[-1]
    assert len(row.pop("labels_sha256")) == 64
    assert row == {
        "utt_id": last.utt_id,
        "speaker": last.speaker,
        "sex": last.sex,
        "dialect": str(last.dialect),
        "path": last.path.relative_to(small_corpus).as_posix(),
        "num_samples": str(last.num_samples),
        "seconds": f"{last.seconds:.4f}",
        "phones39": " ".join(fold_phones(last.label("phones").split())),
        "text": last.text,
        "first_sample": "0",
        "split": "test",
        "described": "test without SA",
        "probe_crc32": probe_recording(last.path),
    }


def test_manifest_hash_changes_with_a_label_and_with_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    first, *rest = (replace(each, path=tmp_path / "a.wav") for each in _utterances("ab"))
    label = Phone(0, 300, "aa")
    for name, phones in (("before", label), ("again", label), ("after", Phone(0, 301, "aa"))):
        changed = replace(first, phones=(phones,))
        write_manifest([Split("dev", [changed, *rest], "dev")], tmp_path, tmp_path / name)
    before, again, after = (
        (tmp_path / name).read_text().splitlines() for name in ("before", "again", "after")
    )
    assert again == before
    same = [one == two for one, two in zip(before, after, strict=True)]
    assert same == [True, False, True, True, True]


def test_a_recording_in_two_splits_is_refused(open_parts: OpenParts) -> None:
    train, dev, test = _utterances("a"), _utterances("b"), _utterances("c")
    again = replace(train[0], utt_id="again")
    corpus = open_parts({"train": train, "dev": [*dev, again], "test": test})
    with pytest.raises(ValueError, match="a0 of train and again of dev are the same recording"):
        load_corpus(corpus)


def test_speakers_in_two_splits_are_said(
    open_parts: OpenParts, capsys: pytest.CaptureFixture[str]
) -> None:
    train, dev, test = _utterances("a"), _utterances("b"), _utterances("c")
    known = [replace(each, speaker=train[0].speaker or "x") for each in test]
    named = [replace(each, speaker=train[0].speaker or "x") for each in train]
    load_corpus(open_parts({"train": named, "dev": dev, "test": known}))
    assert "1 speakers are in both train and test" in capsys.readouterr().err
