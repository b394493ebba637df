"""The made-up corpus."""

import hashlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from data.audio import read_audio
from data.phones import PHONES_61, fold_phones
from data.synthetic import ensure_demo_corpus, main, write_demo_corpus
from data.timit import load_timit
from data.timit_speakers import CORE_TEST_SPEAKERS, DEV_SPEAKERS
from data.utterance import Utterance

SMALL = {"train_speakers": 3, "test_speakers": 1, "sx_per_speaker": 1, "si_per_speaker": 1}


def digest(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_demo_corpus(tmp_path_factory.mktemp("demo") / "corpus")


@pytest.fixture(scope="module")
def train(demo: Path) -> list[Utterance]:
    return load_timit(demo, "train")


@pytest.mark.long
def test_demo_corpus_has_the_promised_splits(demo: Path) -> None:
    counts = {split: len(load_timit(demo, split)) for split in ("train", "dev", "test")}
    assert counts == {"train": 220, "dev": 20, "test": 80}


def test_demo_corpus_train_has_each_of_the_61_phones_often(train: list[Utterance]) -> None:
    labels = [phone.label for utterance in train for phone in utterance.phones]
    assert min(labels.count(phone) for phone in PHONES_61) >= 10


def test_demo_corpus_utterances_are_short_and_contiguous(train: list[Utterance]) -> None:
    for utterance in train:
        assert 0.8 < utterance.seconds < 2.2
        assert 8 <= len(utterance.phones) <= 20
        assert utterance.phones[0].start == 0
        assert utterance.phones[-1].end == utterance.num_samples
        assert all(left.end == right.start for left, right in pairwise(utterance.phones))
        assert utterance.phones[0].label == utterance.phones[-1].label == "h#"


def test_demo_corpus_text_is_its_words(train: list[Utterance]) -> None:
    for utterance in train:
        assert utterance.text == " ".join(utterance.words).capitalize() + "."


def test_demo_corpus_words_have_one_pronunciation(train: list[Utterance]) -> None:
    pronunciations: dict[str, set[tuple[str, ...]]] = {}
    for utterance in train:
        lines = utterance.path.with_suffix(".WRD").read_text().splitlines()
        for start, end, word in (line.split() for line in lines):
            inside = [p for p in utterance.phones if int(start) <= p.start < int(end)]
            assert (inside[0].start, inside[-1].end) == (int(start), int(end))
            pronunciations.setdefault(word, set()).add(tuple(p.label for p in inside))
    assert all(len(variants) == 1 for variants in pronunciations.values())
    assert len({variants.pop() for variants in pronunciations.values()}) > 60


def test_demo_corpus_shares_no_speaker_and_no_sentence_between_parts(
    demo: Path, train: list[Utterance]
) -> None:
    test = load_timit(demo, "test")
    assert not {u.text for u in test} & {u.text for u in train}
    assert not {u.speaker for u in test} & {u.speaker for u in train}
    speakers = {u.speaker for u in [*train, *test, *load_timit(demo, "dev")]}
    assert not speakers & (CORE_TEST_SPEAKERS | DEV_SPEAKERS)


def test_demo_corpus_closures_are_quiet_and_vowels_loud(train: list[Utterance]) -> None:
    levels: dict[str, list[float]] = {"tcl": [], "iy": []}
    for utterance in train:
        waveform = read_audio(utterance.path)
        assert waveform.abs().max() < 0.95
        for phone in utterance.phones:
            if phone.label in levels:
                middle = waveform[phone.start + 160 : phone.end - 160]
                levels[phone.label].append(float(middle.std()))
    assert 5 * np.median(levels["tcl"]) < np.median(levels["iy"])


def phone_spectra(utterances: list[Utterance]) -> dict[str, list[np.ndarray]]:
    """Spectrum of the first and last 30 ms of every phone, (2 * 33,) each, by folded class."""
    spectra: dict[str, list[np.ndarray]] = {}
    for utterance in utterances:
        waveform = read_audio(utterance.path).numpy()
        for phone in utterance.phones:
            name = "".join(fold_phones([phone.label]))
            if name in ("", "sil") or phone.end - phone.start < 480:
                continue
            ends = waveform[phone.start :][:480], waveform[phone.end - 480 :][:480]
            power = [np.square(np.abs(np.fft.rfft(end * np.hanning(480)))) for end in ends]
            bands = np.log([[b.mean() for b in np.array_split(p, 33)] for p in power]).ravel()
            spectra.setdefault(name, []).append(bands - bands.mean())
    return spectra


@pytest.mark.long
def test_demo_corpus_classes_can_be_told_apart_across_speakers(
    demo: Path, train: list[Utterance]
) -> None:
    centres = {name: np.mean(rows, axis=0) for name, rows in phone_spectra(train).items()}
    names = list(centres)
    right = total = 0
    for name, rows in phone_spectra(load_timit(demo, "test")).items():
        for row in rows:
            distances = [np.square(row - centres[other]).sum() for other in names]
            right += names[int(np.argmin(distances))] == name
            total += 1
    assert len(names) == 38
    assert right / total > 0.95  # observed 1.0


def test_write_demo_corpus_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        write_demo_corpus(tmp_path / name, seed=3, **SMALL)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_write_demo_corpus_with_another_seed_gives_other_sounds(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_demo_corpus(tmp_path / str(seed), seed=seed, **SMALL)
    first, second = digest(tmp_path / "0"), digest(tmp_path / "1")
    assert first.keys() == second.keys()
    assert all(first[name] != second[name] for name in first)


def test_write_demo_corpus_gives_all_speakers_the_same_sa_text(tmp_path: Path) -> None:
    write_demo_corpus(tmp_path, **SMALL)
    for name in ("SA1.TXT", "SA2.TXT"):
        texts = {path.read_text().split(" ", 2)[2] for path in tmp_path.rglob(name)}
        assert len(texts) == 1
        assert len(list(tmp_path.rglob(name))) == 4


def test_write_demo_corpus_over_files_raises(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not an empty folder"):
        write_demo_corpus(tmp_path, **SMALL)


def quick_write(root: Path, seed: int = 0) -> None:
    write_demo_corpus(root, seed, **SMALL)


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.synthetic.write_demo_corpus", quick_write)


@pytest.mark.usefixtures("_small")
def test_ensure_demo_corpus_reuses_a_complete_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = ensure_demo_corpus(tmp_path / "new" / "demo")
    monkeypatch.setattr("data.synthetic.write_demo_corpus", None)
    assert ensure_demo_corpus(root) == root


@pytest.mark.usefixtures("_small")
def test_ensure_demo_corpus_restores_a_missing_file(tmp_path: Path) -> None:
    root = ensure_demo_corpus(tmp_path / "demo")
    before = digest(root)
    next(root.rglob("*.PHN")).unlink()
    assert digest(ensure_demo_corpus(root)) == before
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("change", ["seed", "version"])
def test_ensure_demo_corpus_replaces_another_seed_or_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    root = ensure_demo_corpus(tmp_path / "demo")
    before = digest(root)
    if change == "version":
        monkeypatch.setattr("data.synthetic._VERSION", 1000)
    after = digest(ensure_demo_corpus(root, seed=int(change == "seed")))
    assert before["demo_corpus.json"] != after["demo_corpus.json"]


@pytest.mark.usefixtures("_small")
def test_ensure_demo_corpus_interrupted_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(root: Path, seed: int) -> None:
        quick_write(root, seed)
        raise KeyboardInterrupt

    monkeypatch.setattr("data.synthetic.write_demo_corpus", fail)
    with pytest.raises(KeyboardInterrupt):
        ensure_demo_corpus(tmp_path / "demo")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_small")
def test_ensure_demo_corpus_beaten_by_another_process_uses_its_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "demo"

    def write_both(new: Path, seed: int) -> None:
        quick_write(new, seed)
        quick_write(root, seed)

    monkeypatch.setattr("data.synthetic.write_demo_corpus", write_both)
    assert ensure_demo_corpus(root) == root
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


@pytest.mark.usefixtures("_small")
def test_main_prints_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "demo"), "--seed", "5"]) == 0
    output = capsys.readouterr().out
    assert "TRAIN: 6 recordings" in output
    assert "TEST: 2 recordings" in output


@pytest.mark.parametrize("seed", ["0", "-1"])
def test_main_over_foreign_files_or_with_a_bad_seed_exits_2_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: str
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert main([str(tmp_path), "--seed", seed]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert ("not a demo corpus" if seed == "0" else "is negative") in error
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_ensure_demo_corpus_below_a_file_raises(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for root in (tmp_path / "file", tmp_path / "file" / "demo"):
        with pytest.raises(ValueError, match="not a demo corpus|cannot write the demo corpus"):
            ensure_demo_corpus(root)
