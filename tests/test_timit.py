"""TIMIT's layout, splits and labels, on small made-up trees."""

import shutil
import warnings
import wave
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data.sphere import write_sphere
from data.timit import SPLITS, check_counts, load_timit
from data.timit_speakers import CORE_TEST_SPEAKERS, DEV_SPEAKERS
from data.utterance import Phone, Utterance, Wanted

LENGTH = 1600
PHN = "0 300 h#\n300 700 hv\n700 1100 q\n1100 1300 ae\n1300 1600 h#\n"
OTHERS = [f"{sex}zz{letter}0" for letter in "abcdefghijkl" for sex in "fm"]  # 24 sorted by letter


def write_riff(path: Path) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(bytes(2 * LENGTH))


def add(folder: Path, name: str = "SX1", case: Callable[[str], str] = str.upper) -> Path:
    """Write one sentence of 0.1 s with all its labels; return its recording."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / case(f"{name}.wav")
    write_sphere(path, np.zeros(LENGTH, np.int16))
    (folder / case(f"{name}.phn")).write_text(PHN)
    (folder / case(f"{name}.wrd")).write_text("300 1300 ha\n1200 1300 a\n")
    (folder / case(f"{name}.txt")).write_text(f"0 {LENGTH} Ha, a!  \n")
    return path


def make_corpus(
    root: Path,
    train: list[str],
    test: list[str],
    sentences: tuple[str, ...] = ("SX1", "SI2", "SA1"),
    case: Callable[[str], str] = str.upper,
) -> Path:
    for part, speakers in (("train", train), ("test", test)):
        for index, speaker in enumerate(speakers):
            folder = root / case(part) / case(f"dr{index % 8 + 1}") / case(speaker)
            for sentence in sentences:
                add(folder, sentence, case)
    return root


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return make_corpus(tmp_path / "corpus", OTHERS[:2], OTHERS[2:4])


@pytest.fixture
def recording(small: Path) -> Path:
    return small / "TEST" / "DR1" / "FZZB0" / "SX1.WAV"


@pytest.fixture(scope="module")
def timit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TIMIT's 74 listed speakers, two more in TEST, 12 in TRAIN, one sentence each."""
    listed = sorted(CORE_TEST_SPEAKERS | DEV_SPEAKERS)
    root = tmp_path_factory.mktemp("timit") / "TIMIT"
    return make_corpus(root, OTHERS[:12], [*listed, *OTHERS[12:14]], ("SX1",))


def speakers(utterances: list[Utterance]) -> set[str]:
    return {utterance.speaker for utterance in utterances}


def test_speaker_lists_have_their_sizes_and_share_nobody() -> None:
    assert len(CORE_TEST_SPEAKERS) == 24
    assert len(DEV_SPEAKERS) == 50
    assert not CORE_TEST_SPEAKERS & DEV_SPEAKERS
    assert Counter(name[0] for name in CORE_TEST_SPEAKERS) == {"m": 16, "f": 8}
    assert Counter(name[0] for name in DEV_SPEAKERS) == {"m": 32, "f": 18}


def test_load_timit_reads_every_field(small: Path, recording: Path) -> None:
    utterance = load_timit(small, "test")[1]
    assert utterance == Utterance(
        utt_id="fzzb0_sx1",
        speaker="fzzb0",
        sex="f",
        dialect=1,
        sentence="sx1",
        path=recording,
        num_samples=LENGTH,
        text="Ha, a!",
        words=("ha", "a"),
        phones=(
            Phone(0, 300, "h#"),
            Phone(300, 700, "hv"),
            Phone(700, 1100, "q"),
            Phone(1100, 1300, "ae"),
            Phone(1300, 1600, "h#"),
        ),
        is_timit=False,
    )
    assert utterance.seconds == 0.1


def test_load_timit_is_sorted_and_repeats(small: Path) -> None:
    first = load_timit(small, "test")
    ids = [utterance.utt_id for utterance in first]
    assert ids == ["fzzb0_si2", "fzzb0_sx1", "mzzb0_si2", "mzzb0_sx1"]
    assert load_timit(str(small), "test") == first


@pytest.mark.parametrize("split", ["train", "test", "full-test"])
def test_load_timit_leaves_sa_out_of_every_split(small: Path, split: str) -> None:
    assert {u.sentence for u in load_timit(small, split)} == {"sx1", "si2"}


def test_load_timit_of_timit_uses_its_speaker_lists(timit: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        splits = {split: load_timit(timit, split) for split in SPLITS}
    assert speakers(splits["test"]) == CORE_TEST_SPEAKERS
    assert speakers(splits["dev"]) == DEV_SPEAKERS
    assert speakers(splits["train"]) == set(OTHERS[:12])
    assert len(splits["full-test"]) == 76
    assert all(u.is_timit for utterances in splits.values() for u in utterances)


def test_load_timit_of_another_corpus_takes_every_tenth_train_speaker(tmp_path: Path) -> None:
    root = make_corpus(tmp_path, OTHERS[:22], OTHERS[22:], ("SX1",))
    held_out = {sorted(OTHERS[:22])[9], sorted(OTHERS[:22])[19]}
    assert speakers(load_timit(root, "dev")) == held_out
    assert speakers(load_timit(root, "train")) == set(OTHERS[:22]) - held_out
    assert speakers(load_timit(root, "test")) == set(OTHERS[22:])
    assert load_timit(root, "full-test") == load_timit(root, "test")


def test_load_timit_dev_of_fewer_than_ten_speakers_raises(small: Path) -> None:
    with pytest.raises(ValueError, match="dev is empty.* there are 2"):
        load_timit(small, "dev")


@pytest.mark.parametrize(("split", "lost"), [("test", "mdab0"), ("dev", "faks0")])
def test_load_timit_of_a_damaged_timit_warns_by_name(
    timit: Path, tmp_path: Path, split: str, lost: str
) -> None:
    shutil.copytree(timit, tmp_path / "copy")
    for folder in (tmp_path / "copy").glob(f"TEST/*/{lost.upper()}"):
        shutil.rmtree(folder)
    with pytest.warns(UserWarning, match=f"TIMIT {split} lacks 1 of .*: {lost}$"):
        utterances = load_timit(tmp_path / "copy", split)
    assert len(utterances) == {"test": 23, "dev": 49}[split]


@pytest.mark.filterwarnings("ignore:TIMIT dev lacks 50")
def test_load_timit_of_timit_without_dev_speakers_raises(tmp_path: Path) -> None:
    root = make_corpus(tmp_path, OTHERS[:12], sorted(CORE_TEST_SPEAKERS), ("SX1",))
    with pytest.raises(ValueError, match="nothing is in split 'dev'"):
        load_timit(root, "dev")


@pytest.mark.parametrize("above", [".", "timit", "data/TIMIT", "a/b/c"])
@pytest.mark.parametrize("case", [str.upper, str.lower, str.title])
def test_load_timit_finds_any_case_and_nesting(
    tmp_path: Path, above: str, case: Callable[[str], str]
) -> None:
    make_corpus(tmp_path / above, OTHERS[:2], OTHERS[2:4], case=case)
    (tmp_path / above / "DOC").mkdir()
    utterances = load_timit(tmp_path, "test")
    assert [u.utt_id for u in utterances] == ["fzzb0_si2", "fzzb0_sx1", "mzzb0_si2", "mzzb0_sx1"]
    assert [u.dialect for u in utterances] == [1, 1, 2, 2]


def test_load_timit_ignores_hidden_and_foreign_files(small: Path, recording: Path) -> None:
    before = load_timit(small, "test")
    for name in ("._SX1.WAV", ".DS_Store", "SX1.PHN.bak", "notes.md"):
        recording.with_name(name).write_text("x")
    (small / "TEST" / "README.TXT").write_text("x")
    assert load_timit(small, "test") == before


@pytest.mark.parametrize("copy", ["SX1.WAV.wav", "SX1.wav.WAV", "SX1.wav"])
def test_load_timit_counts_copies_once_and_prefers_sphere(
    small: Path, recording: Path, copy: str
) -> None:
    before = load_timit(small, "test")
    write_riff(recording.with_name(copy))
    assert load_timit(small, "test") == before
    sphere = recording.read_bytes()
    recording.write_bytes(recording.with_name(copy).read_bytes())
    recording.with_name(copy).write_bytes(sphere)
    swapped = load_timit(small, "test")
    assert len(swapped) == len(before)
    assert swapped[1].path.name == copy


def test_load_timit_reads_riff_under_timit_names(small: Path, recording: Path) -> None:
    write_riff(recording)
    recording.rename(recording.with_name("SX1.WAV.wav"))
    assert load_timit(small, "test")[1].num_samples == LENGTH


def test_load_timit_merges_folders_that_differ_in_case_only(small: Path) -> None:
    add(small / "test" / "dr3" / "mzzq0")
    add(small / "test" / "dr1" / "fzzb0")
    assert len(load_timit(small, "test")) == 5


def test_load_timit_without_word_labels_has_no_words(small: Path, recording: Path) -> None:
    recording.with_suffix(".WRD").unlink()
    assert load_timit(small, "test")[1].words == ()


def test_load_timit_allows_a_last_end_off_the_recording(small: Path, recording: Path) -> None:
    for end in (LENGTH - 40, LENGTH + 40):
        recording.with_suffix(".PHN").write_text(f"0 300 h#\n300 {end} aa\n")
        assert load_timit(small, "test")[1].phones[-1].end == end


def test_load_timit_allows_crlf_and_a_blank_last_line(small: Path, recording: Path) -> None:
    recording.with_suffix(".PHN").write_bytes(b"0 300 h#\r\n300 900 aa\r\n\r\n")
    assert [p.label for p in load_timit(small, "test")[1].phones] == ["h#", "aa"]


BAD_LABELS = {
    "unknown phone": (".PHN", "0 300 h#\n300 700 zz\n", "line 2: unknown phone 'zz'"),
    "overlap": (".PHN", "0 300 h#\n299 700 aa\n", "line 2: phone aa starts at 299, before the end"),
    "backward": (".PHN", "0 300 h#\n400 350 aa\n", "line 2: phone aa ends at 350, not after"),
    "no length": (".PHN", "0 300 h#\n300 300 aa\n", "line 2: phone aa ends at 300, not after"),
    "beyond": (".PHN", "0 300 h#\n1600 1700 aa\n", "line 2: phone aa starts at 1600, after"),
    "two fields": (".PHN", "0 300 h#\n300 aa\n", "line 2: '300 aa' is not `start end label`"),
    "negative": (".PHN", "-5 300 h#\n", "line 1: '-5 300 h#' is not"),
    "no phones": (".PHN", "\n", "no phones"),
    "bad words": (".WRD", "0 300\n", "line 1: '0 300' is not"),
    "no sentence": (".TXT", "0 300\n", "line 1: not `start end sentence`"),
    "not text": (".TXT", b"\xff\xfc0", "not text"),
    "UTF-16": (".TXT", b"\xff\xfe0\x00", "UTF-16 text: save it as UTF-8"),
}


@pytest.mark.parametrize(("suffix", "content", "message"), BAD_LABELS.values(), ids=BAD_LABELS)
def test_load_timit_of_bad_labels_names_file_and_line(
    small: Path, recording: Path, suffix: str, content: str | bytes, message: str
) -> None:
    path = recording.with_suffix(suffix)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as caught:
        load_timit(small, "test")
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".PHN", ".TXT"])
def test_load_timit_with_a_missing_label_file_names_it(
    small: Path, recording: Path, suffix: str
) -> None:
    recording.with_suffix(suffix).unlink()
    with pytest.raises(ValueError, match=f"FZZB0/SX1.WAV: no SX1{suffix} beside it"):
        load_timit(small, "test")


@pytest.mark.parametrize(("suffix", "wanted"), [(".PHN", "text"), (".TXT", "phones")])
def test_load_timit_does_without_labels_that_are_not_wanted(
    small: Path, recording: Path, suffix: str, wanted: str
) -> None:
    before = load_timit(small, "test")[1]
    recording.with_suffix(suffix).unlink()
    utterance = load_timit(small, "test", Wanted(labels={wanted}))[1]
    assert utterance.label(wanted) == before.label(wanted) != ""
    assert utterance.label("text" if wanted == "phones" else "phones") == ""


def test_load_timit_with_a_missing_recording_names_it(small: Path, recording: Path) -> None:
    recording.unlink()
    with pytest.raises(ValueError, match="FZZB0: labels of sx1 but no .WAV: restore it"):
        load_timit(small, "test")


def test_load_timit_with_a_truncated_recording_names_it(small: Path, recording: Path) -> None:
    recording.write_bytes(recording.read_bytes()[:-2])
    with pytest.raises(ValueError, match="FZZB0/SX1.WAV: truncated"):
        load_timit(small, "test")


@pytest.mark.parametrize("depth", ["missing", "empty", "no TEST", "too deep"])
def test_load_timit_without_a_corpus_says_what_was_looked_for(tmp_path: Path, depth: str) -> None:
    root = tmp_path / "root"
    if depth != "missing":
        root.mkdir()
    if depth == "no TEST":
        add(root / "TRAIN" / "DR1" / "MZZA0")
    if depth == "too deep":
        make_corpus(root / "a" / "b" / "c" / "d", OTHERS[:1], OTHERS[1:2])
    with pytest.raises(ValueError, match="no TIMIT at .*TRAIN and TEST.*LDC93S1.*--data demo") as e:
        load_timit(root, "test")
    assert "\n" not in str(e.value)


def test_load_timit_of_empty_parts_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "TRAIN").mkdir()
    (tmp_path / "TEST").mkdir()
    with pytest.raises(ValueError, match="no recordings in TRAIN/DR1..8/SPEAKER"):
        load_timit(tmp_path, "test")


def test_load_timit_of_two_corpora_raises(tmp_path: Path) -> None:
    for name in "ab":
        make_corpus(tmp_path / name, OTHERS[:1], OTHERS[1:2])
    with pytest.raises(ValueError, match="2 corpora below .*/a and .*/b"):
        load_timit(tmp_path, "test")


def test_load_timit_of_a_speaker_in_both_parts_raises(small: Path) -> None:
    add(small / "TRAIN" / "DR1" / "FZZB0")
    with pytest.raises(ValueError, match="fzzb0 is in TRAIN and in TEST"):
        load_timit(small, "test")


@pytest.mark.parametrize(
    ("folder", "name", "message"),
    [("XZZA0", "SX1", "begins with F or M"), ("MZZA0", "SZ1", "named SA, SI or SX")],
)
def test_load_timit_of_foreign_names_raises(
    small: Path, folder: str, name: str, message: str
) -> None:
    add(small / "TEST" / "DR1" / folder, name)
    with pytest.raises(ValueError, match=message):
        load_timit(small, "test")


def test_load_timit_of_an_unknown_split_lists_the_splits(small: Path) -> None:
    with pytest.raises(ValueError, match="'val': choose one of train, dev, test, full-test"):
        load_timit(small, "val")


@pytest.mark.parametrize(
    ("split", "found"),
    [
        ("train", ["train has 12 utterances where 3696"]),
        ("dev", ["dev has 50 utterances where 400", "dev has 200 reference phones where 15057"]),
        ("test", ["test has 24 utterances where 192", "test has 96 reference phones where 7215"]),
        ("full-test", ["full-test has 76 utterances where 1344"]),
    ],
)
def test_check_counts_of_an_incomplete_timit_names_each_difference(
    timit: Path, split: str, found: list[str]
) -> None:
    lines = check_counts(split, load_timit(timit, split))
    assert [line.removeprefix("TIMIT ").partition(" are")[0] for line in lines] == found


def test_check_counts_of_another_corpus_has_nothing_to_say(small: Path) -> None:
    assert check_counts("test", load_timit(small, "test")) == []


def test_check_counts_of_the_full_core_test_has_nothing_to_say(timit: Path) -> None:
    one = load_timit(timit, "test")[0]
    counts = [38] * 111 + [37] * 81  # 192 utterances with 7,215 phones that count; q does not
    phones = [(Phone(0, 1, "q"), *[Phone(0, 1, "h#")] * count) for count in counts]
    utterances = [Utterance(**{**vars(one), "phones": p}) for p in phones]
    assert check_counts("test", utterances) == []


@pytest.mark.speech
def test_load_timit_of_real_speech_has_the_published_counts(speech_root: Path) -> None:
    splits = {split: load_timit(speech_root, split) for split in SPLITS}
    assert len(splits["train"]) + len(splits["dev"]) == 877
    assert len(speakers(splits["dev"])) == 8
    assert len(splits["test"]) == len(splits["full-test"]) == 292
    count = {split: sum(len(u.phones) for u in utts) for split, utts in splits.items()}
    assert count["train"] + count["dev"] == 22693
    assert count["test"] == 7586
    assert sum(u.seconds for u in splits["test"]) / 60 == pytest.approx(20.1, abs=0.05)
