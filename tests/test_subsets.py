from dataclasses import replace
from pathlib import Path

import pytest

from data import files
from data.subsets import select_subset
from data.timit import load_timit
from data.utterance import Utterance


@pytest.fixture(scope="module")
def utterances(small_corpus: Path) -> list[Utterance]:
    return load_timit(small_corpus, "train")


def test_sex_and_dialect_choose_the_speakers(utterances: list[Utterance]) -> None:
    chosen = select_subset(utterances, "sex=f,dialect=1+2")
    assert chosen == [u for u in utterances if u.sex == "f" and u.dialect in (1, 2)]
    assert 0 < len(chosen) < len(utterances)


def test_minutes_are_filled_and_smaller_amounts_are_part_of_larger(
    utterances: list[Utterance],
) -> None:
    some, more = (select_subset(utterances, f"minutes={m}") for m in (0.2, 0.4))
    assert 6 < sum(u.seconds for u in some) <= 12
    assert 18 < sum(u.seconds for u in more) <= 24
    assert {u.utt_id for u in some} < {u.utt_id for u in more}


def test_minutes_depend_on_neither_order_nor_the_rest_of_the_corpus(
    utterances: list[Utterance],
) -> None:
    chosen = select_subset(utterances, "minutes=0.3")
    backwards = select_subset(utterances[::-1], "minutes=0.3")
    assert backwards == chosen[::-1]


def test_more_minutes_than_there_are_take_all_and_say_so(
    utterances: list[Utterance],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(files, "_SAID", set())
    assert select_subset(utterances, "minutes=100") == utterances
    assert "--subset minutes=100: all there is are" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("subset", "named"),
    [
        ("age=3", "has no meaning at 'age=3'"),
        ("sex", "has no meaning at 'sex'"),
        ("sex=f,sex=m", "has no meaning at 'sex=m'"),
        ("sex=x", "sex is m or f"),
        ("dialect=9", "dialects are 1 to 8"),
        ("minutes=-1", "minutes are a positive number"),
        ("minutes=ten", "minutes are a positive number"),
        ("minutes=0.001", "leaves no utterance"),
    ],
)
def test_subset_without_meaning_is_refused(
    utterances: list[Utterance], subset: str, named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        select_subset(utterances, subset)


@pytest.mark.parametrize(
    "line", ["{0.utt_id}", "{0.utt_id}\t123", "x/{0.utt_id}.flac"], ids=["id", "columns", "path"]
)
def test_a_list_chooses_its_utterances(
    utterances: list[Utterance], tmp_path: Path, line: str
) -> None:
    wanted = utterances[3:7]
    (tmp_path / "some.txt").write_text("".join(line.format(each) + "\n" for each in wanted))
    assert select_subset(utterances, str(tmp_path / "some.txt")) == wanted
    both = select_subset(utterances, f"sex=f,{tmp_path / 'some.txt'}")
    assert both == [each for each in wanted if each.sex == "f"]


def test_a_list_of_fairseq_begins_with_the_folder_of_its_recordings(
    utterances: list[Utterance], tmp_path: Path
) -> None:
    names = [f"a/{each.utt_id}.flac\t{each.num_samples}" for each in utterances[:2]]
    (tmp_path / "train.tsv").write_text("\n".join(["/corpora/LibriSpeech", *names]))
    assert select_subset(utterances, str(tmp_path / "train.tsv")) == utterances[:2]


def test_a_folder_chooses_the_utterances_of_its_recordings(
    utterances: list[Utterance], tmp_path: Path
) -> None:
    (tmp_path / "clean" / "84").mkdir(parents=True)
    (tmp_path / "clean" / "84" / f"{utterances[5].utt_id}.flac").touch()
    assert select_subset(utterances, str(tmp_path)) == [utterances[5]]


@pytest.mark.parametrize(
    ("name", "problem"), [("nobody", "is not in train"), ("SX1", "several utterances have")]
)
def test_a_list_that_does_not_fit_is_refused(
    utterances: list[Utterance], tmp_path: Path, name: str, problem: str
) -> None:
    alike = [replace(each, path=Path(f"{each.speaker}/SX1.WAV")) for each in utterances]
    (tmp_path / "some.txt").write_text(f"{name}\n")
    with pytest.raises(ValueError, match=f"names '{name}', which {problem}"):
        select_subset(alike, str(tmp_path / "some.txt"))


def test_sex_of_a_corpus_that_does_not_say_it_is_refused(utterances: list[Utterance]) -> None:
    with pytest.raises(ValueError, match="does not say who is of which sex"):
        select_subset([replace(each, sex="") for each in utterances], "sex=f")
