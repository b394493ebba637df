"""Each corpus format, by a tree of it built from the made-up corpus in TIMIT's layout."""

import csv
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

import eval as evaluation
import train
from data.audio import read_audio
from data.corpus import Corpus
from data.sphere import write_sphere
from data.timit import load_timit
from data.utterance import Utterance, Wanted
from models import build_model
from models.checkpoint import Checkpoint, save_checkpoint
from models.tokenizers.symbols import SymbolTokenizer

SPLITS = ("train", "dev", "test")
Splits = Mapping[str, Sequence[Utterance]]
Row = dict[str, Any]


@pytest.fixture(scope="module")
def splits(small_corpus: Path) -> Splits:
    """The corpus as TIMIT's layout gives it."""
    return {split: load_timit(small_corpus, split) for split in SPLITS}


def rows_of(splits: Splits, folder: Path) -> list[Row]:
    """Put the recordings into ``folder``; return a row for each, with every column there is."""
    (folder / "audio").mkdir(parents=True)
    rows = []
    for split, utterances in splits.items():
        for utterance in utterances:
            name = f"audio/{utterance.utt_id}.wav"
            shutil.copy(utterance.path, folder / name)
            row = {"utt_id": utterance.utt_id, "path": name, "speaker": utterance.speaker}
            row |= {"sex": utterance.sex, "split": split, "text": utterance.text}
            rows.append(row | {"phones": utterance.label("phones")})
    return rows


def write_columns(path: Path, rows: Sequence[Row]) -> Path:
    """Write rows as a TSV or a CSV with a header."""
    with path.open("w", encoding="utf-8", newline="") as file:
        delimiter = "," if path.suffix == ".csv" else "\t"
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def build_tsv(splits: Splits, folder: Path) -> Path:
    return write_columns(folder / "all.tsv", rows_of(splits, folder))


def build_csv(splits: Splits, folder: Path) -> Path:
    return write_columns(folder / "all.csv", rows_of(splits, folder))


def build_json_lines(splits: Splits, folder: Path) -> Path:
    """Phones as a list, as JSON has it."""
    rows = [row | {"phones": row["phones"].split()} for row in rows_of(splits, folder)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "all.jsonl").write_text(text, encoding="utf-8")
    return folder / "all.jsonl"


def build_one_long_recording(splits: Splits, folder: Path) -> Path:
    """All utterances one after another in a file, named by their times."""
    rows, pieces, begin = rows_of(splits, folder), [], 0
    utterances = [each for split in splits.values() for each in split]
    for row, utterance in zip(rows, utterances, strict=True):
        pieces.append((32768 * read_audio(utterance.path)).short())
        end = begin + utterance.num_samples
        row |= {"path": "audio/long.wav", "start": begin / 16000, "end": end / 16000}
        begin = end
    write_sphere(folder / "audio" / "long.wav", torch.cat(pieces))
    return write_columns(folder / "all.tsv", rows)


def build_kaldi(splits: Splits, folder: Path) -> Path:
    rows = rows_of(splits, folder)
    for split in SPLITS:
        part = folder / split
        part.mkdir()
        mine = [row for row in rows if row["split"] == split]
        for name, column in (("text", "text"), ("phones", "phones"), ("utt2spk", "speaker")):
            (part / name).write_text("".join(f"{r['utt_id']} {r[column]}\n" for r in mine))
        scp = "".join(f"{row['utt_id']} {folder / row['path']}\n" for row in mine)
        (part / "wav.scp").write_text(scp)
        speakers = {row["speaker"]: row["sex"] for row in mine}
        (part / "spk2gender").write_text("".join(f"{k} {v}\n" for k, v in speakers.items()))
    return folder


BUILDERS = {
    "tsv": build_tsv,
    "csv": build_csv,
    "json lines": build_json_lines,
    "one long recording": build_one_long_recording,
    "kaldi": build_kaldi,
}


def build_common_voice(splits: Splits, folder: Path) -> Path:
    """Its columns, one TSV a split, and recordings in clips."""
    rows = rows_of(splits, folder)
    (folder / "audio").rename(folder / "clips")
    for split in SPLITS:
        mine = [
            {
                "client_id": row["speaker"],
                "path": row["path"].removeprefix("audio/"),
                "sentence": row["text"],
                "up_votes": "2",
                "gender": {"m": "male_masculine", "f": "female_feminine"}[row["sex"]],
            }
            for row in rows
            if row["split"] == split
        ]
        write_columns(folder / f"{split}.tsv", mine)
    return folder


def build_librispeech(splits: Splits, folder: Path) -> Path:
    """FLAC, ids made of numbers, and sex in SPEAKERS.TXT; upper case as LibriSpeech has it."""
    numbers: dict[str, int] = {}
    for split, utterances in splits.items():
        for index, utterance in enumerate(utterances):
            number = numbers.setdefault(utterance.speaker, 100 + len(numbers))
            chapter = folder / f"{split}-clean" / str(number) / "7"
            chapter.mkdir(parents=True, exist_ok=True)
            utt_id = f"{number}-7-{index:04d}"
            samples = (32768 * read_audio(utterance.path)).short().numpy()
            soundfile.write(chapter / f"{utt_id}.flac", samples, 16000)
            words = utterance.text.upper().strip(".")
            with (chapter / f"{number}-7.trans.txt").open("a") as file:
                file.write(f"{utt_id} {words}\n")
    lines = [f"{number} | {name[0].upper()} | x | 1 | {name}" for name, number in numbers.items()]
    (folder / "SPEAKERS.TXT").write_text("\n".join(["; a comment", *lines]))
    return folder


WORD_BUILDERS = {"common voice": build_common_voice, "librispeech": build_librispeech}
Build = Callable[[Splits, Path], Path]


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_a_corpus_gives_the_utterances_of_timits_layout(
    splits: Splits, tmp_path: Path, build: Build
) -> None:
    corpus = Corpus(build(splits, tmp_path / "corpus"))
    for split, expected in splits.items():
        found = corpus.read(split).utterances
        for one, other in zip(found, expected, strict=True):
            for name in ("utt_id", "speaker", "sex", "text", "num_samples"):
                assert getattr(one, name) == getattr(other, name)
            assert one.label("phones") == other.label("phones")
            waveform = read_audio(one.path, one.start, one.num_samples)
            assert torch.equal(waveform, read_audio(other.path))


@pytest.mark.parametrize("build", WORD_BUILDERS.values(), ids=WORD_BUILDERS)
def test_a_corpus_of_words_gives_the_words_and_recordings_of_timits_layout(
    splits: Splits, tmp_path: Path, build: Build
) -> None:
    corpus = Corpus(build(splits, tmp_path / "corpus"), wanted=Wanted(labels={"text"}))
    for split, utterances in splits.items():
        found = {each.text.lower().strip("."): each for each in corpus.read(split).utterances}
        assert found.keys() == {each.text.lower().strip(".") for each in utterances}
        speakers = {}
        for expected in utterances:
            utterance = found[expected.text.lower().strip(".")]
            assert (utterance.sex, utterance.seconds) == (expected.sex, expected.seconds)
            assert speakers.setdefault(expected.speaker, utterance.speaker) == utterance.speaker
            assert torch.equal(read_audio(utterance.path), read_audio(expected.path))
        assert len(set(speakers.values())) == len(speakers)


@pytest.fixture(scope="module")
def checkpoints(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random models of phones and of characters, whose hypotheses are long and differ."""
    torch.manual_seed(0)
    paths = {}
    for kind, symbols in (("phone", ["aa", "sil", "t"]), ("char", list(" abcdehiorst"))):
        tokenizer = SymbolTokenizer.for_ctc(kind, symbols)
        model = build_model("w2v2-demo", vocab_size=tokenizer.vocab_size)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        paths[kind] = tmp_path_factory.mktemp("checkpoints") / f"{kind}.pt"
        frontend = {"kind": "waveform", "normalize": True}
        checkpoint = Checkpoint(model, tokenizer, frontend=frontend, decoding={"blank_id": 0})
        save_checkpoint(paths[kind], checkpoint)
    return paths


def _score(checkpoint: Path, data: Path, *flags: str) -> dict[str, Any]:
    out = checkpoint.with_suffix(".json")
    argv = ["--ckpt", str(checkpoint), "--data", str(data), "--json", str(out), "--device", "cpu"]
    assert evaluation.main([*argv, *flags]) == 0
    report: dict[str, Any] = json.loads(out.read_text())
    return report


def _counts(report: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return what does not depend on the speakers' names."""
    rates = {name: report[name] for name in ("per", "wer", "cer") if name in report}
    return {
        name: {key: value for key, value in rate.items() if key != "ci95"}
        for name, rate in rates.items()
    }


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_error_rates_are_those_of_timits_layout(
    splits: Splits, small_corpus: Path, tmp_path: Path, checkpoints: dict[str, Path], build: Build
) -> None:
    root = build(splits, tmp_path / "corpus")
    for checkpoint in checkpoints.values():
        expected, report = _score(checkpoint, small_corpus), _score(checkpoint, root)
        assert _counts(report) == _counts(expected)
        assert report["audio_seconds"] == expected["audio_seconds"]
    assert expected["wer"]["insertions"] + expected["wer"]["substitutions"] > 0


@pytest.mark.parametrize("build", WORD_BUILDERS.values(), ids=WORD_BUILDERS)
def test_error_rates_of_words_are_those_of_timits_layout(
    splits: Splits, small_corpus: Path, tmp_path: Path, checkpoints: dict[str, Path], build: Build
) -> None:
    root = build(splits, tmp_path / "corpus")
    report = _score(checkpoints["char"], root)
    assert _counts(report) == _counts(_score(checkpoints["char"], small_corpus))
    assert "on test:" in report["protocol"]


def test_phones_of_a_corpus_of_words_are_missed_by_name(
    splits: Splits,
    tmp_path: Path,
    checkpoints: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = build_librispeech(splits, tmp_path / "corpus")
    assert evaluation.main(["--ckpt", str(checkpoints["phone"]), "--data", str(root)]) == 2
    assert "no phones for 1" in capsys.readouterr().err


def test_librispeech_splits_have_their_folders_names(splits: Splits, tmp_path: Path) -> None:
    root = build_librispeech(splits, tmp_path / "above" / "LibriSpeech")
    (root / "test-clean" / "110").rename(tmp_path / "110")
    (root / "test-other").mkdir()
    (tmp_path / "110").rename(root / "test-other" / "110")
    corpus = Corpus(tmp_path / "above", wanted=Wanted(labels={"text"}))
    assert corpus.root == root
    sizes = [len(corpus.read(name).utterances) for name in ("test-clean", "test-other", "test")]
    assert sizes == [3, 3, 6]


def test_libri_light_stands_in_for_train_and_lists_ten_minutes(
    splits: Splits, tmp_path: Path
) -> None:
    root = build_librispeech(splits, tmp_path / "corpus")
    light = root / "librispeech_finetuning"
    speakers = sorted((root / "train-clean").iterdir())
    for number, speaker in enumerate(speakers):
        part = light / ("1h/0/clean" if number < 2 else "9h/other") / speaker.name
        part.parent.mkdir(parents=True, exist_ok=True)
        speaker.rename(part)
    (root / "train-clean").rmdir()
    corpus = Corpus(root, wanted=Wanted(labels={"text"}))
    assert len(corpus.read("train").utterances) == 27

    flags = ["--model", "w2v2-demo", "--target", "char", "--data", str(root), "--device", "cpu"]
    flags += ["--steps", "1", "--out", str(tmp_path / "run"), "--subset", str(light / "1h" / "0")]
    assert train.main(flags) == 0
    lines = (tmp_path / "run" / "manifest.tsv").read_text().splitlines()
    assert sum("\ttrain\t" in line for line in lines) == 6


@pytest.mark.parametrize(
    "name", ["10min", *(pytest.param(each, marks=pytest.mark.long) for each in ("1h", "10h"))]
)
def test_librispeech_recipes_train_as_they_are_written(
    splits: Splits, tmp_path: Path, name: str
) -> None:
    root = build_librispeech(splits, tmp_path / "corpus")
    recipe = Path(__file__).parent.parent / "configs" / f"w2v2-librispeech-{name}.toml"
    flags = ["--config", str(recipe), "--data", str(root), "--out", str(tmp_path / "run")]
    # All as written, but for the size of the model, and two steps.
    flags += ["--model", "w2v2-demo", "--init", "random", "--steps", "2", "--device", "cpu"]
    assert train.main([*flags, "--sparsity", "0.5", "--eval-every", "2"]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["protocol"].startswith("WER on test: 6 utterances, 2 speakers")


def test_common_voice_names_what_it_does_not_use_and_trains(
    splits: Splits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = build_common_voice(splits, tmp_path / "corpus")
    Corpus(root, wanted=Wanted(labels={"text"})).read("dev")
    assert capsys.readouterr().err == f"{root / 'dev.tsv'}: columns not used: up_votes\n"


def test_intervals_are_over_utterances_where_no_speaker_is_named(
    splits: Splits, tmp_path: Path, checkpoints: dict[str, Path]
) -> None:
    rows = [
        {key: value for key, value in row.items() if key not in ("speaker", "split")}
        for row in rows_of(splits, tmp_path)
    ]
    report = _score(checkpoints["phone"], write_columns(tmp_path / "all.csv", rows))
    assert (
        "test (a tenth of the utterances, drawn with seed 0): 3 utterances, unknown speakers"
        in (report["protocol"])
    )
    assert report["protocol"].endswith("no interval, which takes 10 utterances")
    rows = [row | {"split": "test"} for row in rows]
    report = _score(checkpoints["phone"], write_columns(tmp_path / "test.csv", rows))
    assert report["protocol"].endswith("95 % interval by bootstrap over utterances")
    assert report["per"]["ci_unit"] == "utterance"
    low, high = report["per"]["ci95"]
    assert low < report["per"]["rate"] < high


def test_a_corpus_at_another_rate_is_resampled_where_asked_to(
    splits: Splits, tmp_path: Path, checkpoints: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = write_columns(tmp_path / "all.tsv", rows_of(splits, tmp_path))
    for path in (tmp_path / "audio").iterdir():
        samples, _ = soundfile.read(path, dtype="int16")
        soundfile.write(path, samples.repeat(3), 48000)
    argv = ["--ckpt", str(checkpoints["phone"]), "--data", str(manifest)]
    assert evaluation.main(argv) == 2
    assert "48000 Hz, wanted 16000: give --resample" in capsys.readouterr().err
    report = _score(checkpoints["phone"], manifest, "--resample")
    assert "resampled to 16 kHz from 48000 Hz" in report["protocol"]
    assert report["audio_seconds"] == sum(each.seconds for each in splits["test"])


BAD_MANIFESTS = {
    "no path": ("a.csv", "name,text\na,b\n", "line 1: no column path among name, text"),
    "lines in names": ("a.csv", '"a\rb",c\n', "no column path among a b, c: name"),
    "long path": ("a.csv", f"path,text\n{'y' * 5000},b\n", "cannot read .*yyy: File name too long"),
    "NUL in path": ("a.csv", "path,text\ny\0,b\n", "cannot read .*a.csv|cannot read .*y|NUL"),
    "empty": ("a.csv", "", "no column path among none"),
    "no rows": ("a.csv", "path,text\n", "no rows"),
    "columns": ("a.tsv", "path\ttext\na.wav\tb\tc\n", "line 2: 3 columns where line 1 has 2"),
    "path empty": ("a.tsv", "path\ttext\n\tb\n", "line 2: no path"),
    "half split": ("a.tsv", "path\tsplit\na\ttrain\na\t\n", "line 3: no split"),
    "json": ("a.jsonl", '{"path": "a"}\n{"path"\n', "line 2: no JSON"),
    "json list": ("a.jsonl", "[1]\n", "line 1: no JSON object"),
    "times": ("a.csv", "path,text,start\nx.wav,b,one\n", "line 2: start is 'one': give seconds"),
    "phones": ("a.csv", "path,text,phones\nx.wav,b,aa qq\n", "line 2: unknown phone 'qq'"),
    "end NaN": ("a.csv", "path,text,end\nx.wav,b,nan\n", "x.wav: 0 s to nan s are no|a.csv: line"),
    "start huge": ("a.csv", "path,text,start\nx.wav,b,1e308\n", "x.wav: 1e.308 s to None s are no"),
    "end infinite": ("a.csv", "path,text,end\nx.wav,b,inf\n", "line 2: end is .inf.: give seconds"),
    "beyond": ("a.csv", "path,text,end\nx.wav,b,9\n", "x.wav: 0 s to 9 s are no part of its 0.1 s"),
    "missing": ("a.csv", "path,text\ny.wav,b\n", "cannot read .*y.wav"),
    "no text": ("a.csv", "path,text\nx.wav,\n", "no text for x"),
    "no bytes": ("a.csv", b"path\n\xff\xfe", "not text"),
    "UTF-16": ("a.tsv", "path\ttext\nx.wav\tb\n".encode("utf-16"), "UTF-16 text: save it as UTF-8"),
    "two texts": ("a.csv", "path,text,sentence\nx.wav,b,c\n", "columns text and sentence are both"),
    "text twice": ("a.csv", "path,text,Text\nx.wav,b,c\n", "columns text and Text are both text"),
    "two ids": (
        "a.jsonl",
        '{"path": "x.wav", "id": "a", "utt_id": "b"}\n',
        "id and utt_id are both",
    ),
    "key twice": ("a.jsonl", '{"path": "x.wav", "text": "a", "text": "b"}\n', "text and text are"),
}


@pytest.mark.parametrize(("name", "content", "message"), BAD_MANIFESTS.values(), ids=BAD_MANIFESTS)
def test_a_bad_manifest_is_refused_with_its_line(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    write_sphere(tmp_path / "x.wav", torch.zeros(1600).short())
    with pytest.raises(ValueError, match=message) as caught:
        Corpus(tmp_path / name, wanted=Wanted(labels={"text"})).read("all")
    assert "\n" not in str(caught.value)


BAD_KALDI = {
    "command": ({"wav.scp": "a sox x.wav - |\n"}, "a is a command, and none is run"),
    "no path": ({"wav.scp": "a\n"}, "wav.scp: a has no path: mend it"),
    "long path": ({"wav.scp": f"a {'y' * 5000}\n"}, "cannot read y.*: File name too long"),
    "NUL in path": ({"wav.scp": "a y\0\n"}, "cannot read y.*: embedded null byte"),
    "twice": ({"wav.scp": "a x.wav\na x.wav\n"}, "wav.scp: line 2: a second line for a"),
    "segment": ({"segments": "u a 0\n"}, "segments: u: 'a 0' is not `recording start end`"),
    "time NaN": ({"segments": "u a 0 nan\n"}, "x.wav: 0 s to nan s are no part"),
    "recording": ({"segments": "u b 0 1\n"}, "segments: u: 'b 0 1' is not"),
    "text": ({"text": "b hello\n"}, "no text for a"),
}


@pytest.mark.parametrize(("files", "message"), BAD_KALDI.values(), ids=BAD_KALDI)
def test_a_bad_kaldi_folder_is_refused(tmp_path: Path, files: dict[str, str], message: str) -> None:
    write_sphere(tmp_path / "x.wav", torch.zeros(1600).short())
    for name, content in ({"wav.scp": "a x.wav\n", "text": "a hello\n"} | files).items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        Corpus(tmp_path, wanted=Wanted(labels={"text"})).read("all")


def test_kaldi_segments_cut_recordings_and_text_may_hold_phones(tmp_path: Path) -> None:
    write_sphere(tmp_path / "x.wav", torch.arange(1600).short())
    (tmp_path / "wav.scp").write_text("rec x.wav\n")
    (tmp_path / "segments").write_text("rec-a rec 0.01 0.05\nrec-b rec 0.05 -1\n")
    (tmp_path / "text").write_text("rec-a sil aa\nrec-b cl sil\n")
    corpus = Corpus(tmp_path, wanted=Wanted(labels={"phones"}))
    first, second = corpus.read("all").utterances
    assert (first.start, first.num_samples, first.label("phones")) == (160, 640, "sil aa")
    assert (second.start, second.num_samples, second.label("phones")) == (800, 800, "cl sil")


BAD_CHAPTERS = {
    "no words": ("1-2-0 A\n", "no words for 1-2-1"),
    "no recording": ("1-2-0 A\n1-2-1 B\n1-2-2 C\n", "words of 1-2-2 but no recording"),
    "twice": ("1-2-0 A\n1-2-0 B\n", "line 2: a second line for '1-2-0'"),
    "empty": ("1-2-0\n1-2-1 B\n", "line 1: no words for '1-2-0'"),
}


@pytest.mark.parametrize(("content", "message"), BAD_CHAPTERS.values(), ids=BAD_CHAPTERS)
def test_a_bad_chapter_is_refused(tmp_path: Path, content: str, message: str) -> None:
    chapter = tmp_path / "dev-clean" / "1" / "2"
    chapter.mkdir(parents=True)
    for number in range(2):
        soundfile.write(chapter / f"1-2-{number}.flac", torch.zeros(1600).numpy(), 16000)
    (chapter / "1-2.trans.txt").write_text(content)
    with pytest.raises(ValueError, match=message):
        Corpus(tmp_path, wanted=Wanted(labels={"text"})).read("dev")


def test_splits_may_be_named_for_a_run(splits: Splits, tmp_path: Path) -> None:
    named = {"train": "small", "dev": "held-out", "test": "final"}
    rows = [row | {"split": named[row["split"]]} for row in rows_of(splits, tmp_path)]
    manifest = write_columns(tmp_path / "all.tsv", rows)
    flags = ["--model", "w2v2-demo", "--data", str(manifest), "--steps", "1", "--device", "cpu"]
    flags += ["--out", str(tmp_path / "run")]
    assert train.main([*flags, "--splits", "small,held-out,final"]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["split"], results["dev"]["split"]) == ("final", "held-out")


def test_an_utterance_is_named_by_recording_and_times(tmp_path: Path) -> None:
    write_sphere(tmp_path / "a b.wav", torch.zeros(1600).short())
    rows = [{"path": "a b.wav", "text": "x", "start": start, "end": 0.1} for start in (0.01, 0.02)]
    manifest = write_columns(tmp_path / "m.csv", rows)
    utterances = Corpus(manifest, wanted=Wanted(labels={"text"})).read("all").utterances
    assert [each.utt_id for each in utterances] == ["a-b-0.01-0.1", "a-b-0.02-0.1"]
    assert replace(utterances[0], utt_id="", start=0).num_samples == 1440


def test_columns_and_splits_of_a_manifest_may_be_spelled_in_any_case(tmp_path: Path) -> None:
    write_sphere(tmp_path / "x.wav", torch.zeros(1600).short())
    rows = ["Path\tTEXT\tSplit", "x.wav\ta\tTRAIN", "x.wav\tb\tValidation", "x.wav\tc\tTest"]
    (tmp_path / "a.tsv").write_text("\n".join(rows) + "\n")
    corpus = Corpus(tmp_path / "a.tsv", wanted=Wanted(labels={"text"}))
    texts = {name: corpus.read(name).utterances[0].text for name in ("train", "dev", "test")}
    assert texts == {"train": "a", "dev": "b", "test": "c"}
