"""Every reader and parser on seeded, damaged inputs: an answer, or a ValueError of one line."""

import base64
import contextlib
import io
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from data import inputs, run_folder
from data.audio import measure, read_audio
from data.kaldi import KaldiFormat
from data.librispeech import LibriSpeechFormat
from data.manifest import ManifestFormat
from data.options import parse_options
from data.run_manifest import _read_rows
from data.sphere import write_sphere
from data.subsets import select_subset
from data.timit import _read_phones, _read_segments, _read_sentence
from data.utterance import Utterance, Wanted
from eval import EvalOptions
from models.checkpoint import load_checkpoint, save_checkpoint, save_packed
from models.convert import __main__ as convert
from models.convert import load_weights
from models.convert.hf import read_weight_file
from models.tensor_file import read_metadata, read_tensors, write_tensors
from models.tokenizers import ByteBPETokenizer, SubwordTokenizer
from models.whisper.ctranslate2 import read_model_bin
from pruning.mask_file import load_masks, save_masks
from pruning.report import __main__ as report
from pruning.report.records import dump_runs, load_runs
from pruning.run.options import TrainOptions
from pruning.run.stages import Stage, load_stage, save_stage
from pruning.sweep import __main__ as sweep
from pruning.sweep.config import load_config
from pruning.sweep.plan import first_runs
from tests import fuzzing
from tests.fuzzing import Reader, either, probe
from tests.run_folders import write_run
from tests.test_convert_ctranslate2 import GOLDEN
from tests.test_damage import RATE, _riff, _speech_like
from tests.test_flipped_bytes import ABOUT, MASKS, _dense, _write_last
from tests.test_foreign_fields import (
    ctc_folder,
    phone_folder,
    sharded_folder,
    slow_whisper_folder,
    whisper_folder,
)

BYTES = fuzzing.damage_bytes
WORDS = either(fuzzing.damage_bytes, fuzzing.damage_words)
JSON = either(fuzzing.damage_bytes, fuzzing.damage_json, fuzzing.damage_json)
CONTENT = either(fuzzing.damage_content, fuzzing.damage_content, fuzzing.damage_pickle, BYTES)
SAMPLES = _speech_like(0.2)
Read = Callable[[Path], object]


def _hear(path: Path) -> None:
    measure(path, resample=True)
    read_audio(path, resample=True)


def _put(name: str, content: bytes | str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def _sphere(folder: Path) -> Path:
    write_sphere(folder / "a.WAV", SAMPLES)
    return folder / "a.WAV"


def _compressed(kind: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        soundfile = pytest.importorskip("soundfile")
        soundfile.write(str(folder / f"a.{kind}"), SAMPLES, RATE)
        return folder / f"a.{kind}"

    return write


def _beside(write: Callable[[Path], Path], name: str, content: str) -> Callable[[Path], Path]:
    """Write a recording and beside it the file that is damaged."""

    def both(folder: Path) -> Path:
        write(folder)
        return _put(name, content)(folder)

    return both


WANTED = Wanted(resample=True)
MANIFEST = [["path", "text", "phones", "speaker", "sex", "split", "start", "end", "utt_id"]]
MANIFEST += [
    ["a.WAV", "two words", "sil aa", f"s{i}", "m", "dev", "0", "0.1", f"u{i}"] for i in "ab"
]


def _table(separator: str) -> str:
    return "".join(separator.join(row) + "\n" for row in MANIFEST)


def _read_manifest(path: Path) -> None:
    manifest = ManifestFormat()
    assert manifest.find(path) == path
    for part in manifest.parts(path):
        manifest.read(path, part, WANTED)


KALDI = {
    "wav.scp": "a a.WAV\nb a.WAV\n",
    "text": "u1 two words\nu2 one\n",
    "utt2spk": "u1 s1\nu2 s2\n",
    "segments": "u1 a 0.0 0.1\nu2 b 0.05 0.2\n",
    "spk2gender": "s1 m\ns2 f\n",
}


def _kaldi(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        _sphere(folder)
        for each, content in KALDI.items():
            (folder / each).write_text(content)
        return folder / name

    return write


def _read_kaldi(path: Path) -> None:
    KaldiFormat().read(path.parent, "", WANTED)


def _libri(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        chapter = folder / "train-x" / "1" / "2"
        chapter.mkdir(parents=True)
        _sphere(chapter).rename(chapter / "1-2-0.wav")
        shutil.copy(chapter / "1-2-0.wav", chapter / "1-2-1.wav")
        (chapter / "1-2.trans.txt").write_text("1-2-0 TWO WORDS\n1-2-1 ONE\n")
        (folder / "SPEAKERS.TXT").write_text("; comment\n1 | F | train-x | 25.03 | Name\n")
        return folder / name

    return write


def _read_libri(path: Path) -> None:
    root = next(each for each in path.parents if (each / "train-x").is_dir())
    LibriSpeechFormat().read(root, "train-x", WANTED)


UTTERANCES = [
    Utterance(
        utt_id=f"u{i}", path=Path(f"r{i}.WAV"), num_samples=16_000, sex="mf"[i % 2], dialect=1
    )
    for i in range(9)
]


def _listed(path: Path) -> None:
    select_subset(UTTERANCES, str(path))


TRAIN_TOML = """# A run
model = "w2v2-demo"
sparsity = 0.6
method = "parp"
prune-every = 50
lr = 1e-4
biases = true
steps = 200
"""
SWEEP_TOML = """out = "study"
devices = ["cpu"]
threads = 2
[train]
model = "w2v2-demo"
steps = 20
[[grid]]
method = ["parp", "omp"]
sparsity = [0.5, 0.7]
seed = [0, 1]
[[grid]]
method = ["dense"]
[tune]
lr = [1e-4, 1e-3]
"""


def _train_config(path: Path) -> None:
    with contextlib.suppress(SystemExit):  # a required option may be gone
        parse_options(TrainOptions, ["--config", str(path)], "")


def _sweep_config(path: Path) -> None:
    first_runs(load_config(path))


def _file_of(make: Callable[[Path], Path], name: str) -> Callable[[Path], Path]:
    return lambda folder: make(folder / "weights") / name


def _load_beside(path: Path) -> None:
    load_weights(path.parent)


def _golden(folder: Path) -> Path:
    return Path(shutil.copytree(GOLDEN, folder))


def _safetensors(folder: Path) -> Path:
    with (folder / "a.safetensors").open("wb") as file:
        write_tensors(file, {"a": torch.ones(3, 4), "b": torch.zeros(5)}, {"format": "pt"})
    return folder / "a.safetensors"


def _read_safetensors(path: Path) -> None:
    read_metadata(path)
    read_tensors(path)


def _packed(folder: Path) -> Path:
    """A packed file of the first kind, whose checksum does not hide the rest."""
    save_packed(folder / "a.packed", _dense(), "int8")
    tensors, metadata = read_tensors(folder / "a.packed"), read_metadata(folder / "a.packed")
    del metadata["checksum"]
    with (folder / "a.packed").open("wb") as file:
        write_tensors(file, tensors, metadata)
    return folder / "a.packed"


def _checkpoint(folder: Path) -> Path:
    save_checkpoint(folder / "a.pt", _dense())
    return folder / "a.pt"


def _last(folder: Path) -> Path:
    _write_last(folder / "last.pt")
    return folder / "last.pt"


def _masks(folder: Path) -> Path:
    save_masks(folder / "masks.pt", MASKS, ABOUT)
    return folder / "masks.pt"


def _stage(folder: Path) -> Path:
    save_stage(folder, "dense", Stage({"a": torch.randn(30)}, 3, 1.5))
    return folder / "stage-dense.pt"


def _weights(folder: Path) -> Path:
    torch.save({"a": torch.randn(3, 4), "b": torch.randn(3)}, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


def _openai(folder: Path) -> Path:
    sizes = dict.fromkeys(("n_mels", "n_audio_ctx", "n_text_ctx", "n_vocab"), 4)
    sizes |= {"n_audio_state": 4, "n_audio_layer": 1, "n_text_layer": 1, "n_audio_head": 1}
    content = {"dims": sizes | {"n_text_head": 1}, "model_state_dict": {"encoder.x": torch.ones(3)}}
    torch.save(content, folder / "a.pt")
    return folder / "a.pt"


def _fairseq(folder: Path) -> Path:
    settings = {"model": {"w2v_args": {"model": {"encoder_attention_heads": 2}}}}
    tensors = {
        "w2v_encoder.w2v_model.feature_extractor.conv_layers.0.0.weight": torch.ones(4, 1, 3)
    }
    tensors |= {"w2v_encoder.w2v_model.post_extract_proj.weight": torch.ones(4, 4)}
    torch.save({"args": None, "cfg": settings, "model": tensors}, folder / "a.pt")
    return folder / "a.pt"


def _torchaudio(folder: Path) -> Path:
    name = "encoder.feature_projection.projection.weight"
    torch.save({name: torch.ones(4, 4), "feature_extractor.x": torch.ones(2)}, folder / "a.pt")
    return folder / "a.pt"


def _run_file(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        return write_run(folder / "runs" / "a", operations=["=S="] * 10, layers=1) / name

    return write


def _load_run(path: Path) -> None:
    load_runs([path.parent])


def _runs_file(folder: Path) -> Path:
    run = write_run(folder / "runs" / "a", operations=["=S="] * 10, layers=1)
    (folder / "runs.json").write_text(dump_runs(load_runs([run])))
    return folder / "runs.json"


def _sweep_options(folder: Path) -> Path:
    (folder / "dense").mkdir()
    (folder / "dense" / "config.json").write_text("{}")
    (folder / ".sweep.json").write_text(json.dumps({"model": "w2v2-demo", "steps": 3}))
    return folder / ".sweep.json"


def _read_sweep_options(path: Path) -> None:
    with sweep.hold(path.parent, {"model": "w2v2-demo", "steps": 3}):
        pass


RUN_MANIFEST = (
    "utt_id\tsplit\tlabels_sha256\tspeaker\nu1\ttrain\tabc\ts1\nu2\tdev-left-out\tabd\ts2\n"
)


def _cache(folder: Path) -> Path:
    values = [torch.randn(3, 4), torch.randn(5)]
    inputs._write_cache(folder / "a.json", folder / "a.bin", values)
    return folder / "a.json"


def _read_cache(path: Path) -> None:
    found, problem = inputs._read_cache(path, path.with_suffix(".bin"), 2)
    assert (found is None) == bool(problem)


def _subword(folder: Path) -> Path:
    tokenizer = SubwordTokenizer.train(["two words", "some more words"] * 9, 14)
    (folder / "a.model").write_bytes(base64.b64decode(tokenizer.spec()["model"]))
    return folder / "a.model"


def _read_subword(path: Path) -> None:
    tokenizer = SubwordTokenizer(base64.b64encode(path.read_bytes()).decode())
    tokenizer.decode(range(tokenizer.vocab_size))


def _slow(path: Path) -> None:
    folder = path.parent
    names = ("vocab.json", "merges.txt", "added_tokens.json")
    ByteBPETokenizer.from_slow_files(*(folder / name for name in names))


READERS: dict[str, Reader] = {
    "sphere": Reader(_sphere, _hear, BYTES, 7000),
    "riff": Reader(_put("a.WAV", _riff(SAMPLES)), _hear, BYTES, 7000),
    "flac": Reader(_compressed("flac"), _hear, BYTES, 2000),
    "ogg": Reader(_compressed("ogg"), _hear, BYTES, 1000),
    "mp3": Reader(_compressed("mp3"), _hear, BYTES, 1000),
    "phn": Reader(
        _put("a.PHN", "0 100 h#\n100 200 aa\n200 400 h#\n"),
        lambda p: _read_phones(p, 400),
        WORDS,
        5000,
    ),
    "wrd": Reader(_put("a.WRD", "0 100 two\n100 200 words\n"), _read_segments, WORDS, 4000),
    "txt": Reader(_put("a.TXT", "0 100 Two words.\n"), _read_sentence, WORDS, 4000),
    "tsv": Reader(_beside(_sphere, "a.tsv", _table("\t")), _read_manifest, WORDS, 4000),
    "csv": Reader(_beside(_sphere, "a.csv", _table(",")), _read_manifest, WORDS, 4000),
    "jsonl": Reader(
        _beside(
            _sphere,
            "a.jsonl",
            "".join(
                json.dumps(dict(zip(MANIFEST[0], row, strict=True))) + "\n" for row in MANIFEST[1:]
            ),
        ),
        _read_manifest,
        JSON,
        4000,
    ),
    **{
        f"kaldi {name}": Reader(
            _kaldi(name), _read_kaldi, WORDS, 1500, ("cannot read", "a.WAV", *KALDI)
        )
        for name in KALDI
    },
    "transcript": Reader(_libri("train-x/1/2/1-2.trans.txt"), _read_libri, WORDS, 2000),
    "speakers": Reader(_libri("SPEAKERS.TXT"), _read_libri, WORDS, 1000),
    "subset list": Reader(
        _put("list.tsv", "folder\nu1.wav\t16000\nu2.wav\t16000\n"), _listed, WORDS, 3000
    ),
    "run options": Reader(_put("a.toml", TRAIN_TOML), _train_config, WORDS, 1500),
    "sweep options": Reader(_put("a.toml", SWEEP_TOML), _sweep_config, WORDS, 500),
    **{
        f"{make.__name__} {name}": Reader(
            _file_of(make, name),
            _load_beside,
            JSON if name.endswith("json") else WORDS,
            150,
        )
        for make, names in {
            ctc_folder: (
                "config.json",
                "vocab.json",
                "tokenizer_config.json",
                "processor_config.json",
            ),
            whisper_folder: ("generation_config.json", "tokenizer.json", "config.json"),
            slow_whisper_folder: ("vocab.json", "merges.txt", "added_tokens.json"),
            sharded_folder: ("model.safetensors.index.json",),
            phone_folder: ("tokenizer.json", "generation_config.json"),
            _golden: ("config.json",),
        }.items()
        for name in names
    },
    "model.bin": Reader(_file_of(_golden, "model.bin"), read_model_bin, BYTES, 4000),
    "model.bin, whole": Reader(_file_of(_golden, "model.bin"), _load_beside, BYTES, 300),
    "tokenizer.json": Reader(
        _file_of(whisper_folder, "tokenizer.json"), ByteBPETokenizer.from_json, JSON, 2000
    ),
    **{
        f"slow tokenizer {name}": Reader(_file_of(slow_whisper_folder, name), _slow, damage, 1000)
        for name, damage in {"vocab.json": JSON, "merges.txt": WORDS}.items()
    },
    "safetensors": Reader(_safetensors, _read_safetensors, BYTES, 7000),
    "packed": Reader(_packed, load_checkpoint, BYTES, 800),
    "checkpoint": Reader(_checkpoint, load_checkpoint, CONTENT, 800),
    "last.pt": Reader(_last, load_checkpoint, CONTENT, 500),
    "any weights": Reader(_checkpoint, load_weights, CONTENT, 500),
    # Told by what they hold; the rest is lacking.
    "openai": Reader(_openai, load_weights, CONTENT, 800, is_whole=False),
    "fairseq": Reader(_fairseq, load_weights, CONTENT, 800, is_whole=False),
    "torchaudio": Reader(_torchaudio, load_weights, CONTENT, 800, is_whole=False),
    "masks.pt": Reader(_masks, load_masks, CONTENT, 2500),
    "stage": Reader(_stage, lambda p: load_stage(p.parent, "dense"), CONTENT, 2500),
    "pytorch_model.bin": Reader(_weights, read_weight_file, CONTENT, 2500),
    "config.json of a run": Reader(_run_file("config.json"), run_folder.read_config, JSON, 3000),
    "results.json of a run": Reader(_run_file("results.json"), run_folder.read_results, JSON, 2000),
    "metrics.jsonl of a run": Reader(
        _run_file("metrics.jsonl"), run_folder._read_events, JSON, 500, is_mended=True
    ),
    **{
        f"report of {name}": Reader(_run_file(name), _load_run, JSON, 400)
        for name in ("config.json", "results.json", "metrics.jsonl", "test.jsonl")
    },
    "runs.json": Reader(_runs_file, lambda p: load_runs([p]), JSON, 800),
    ".sweep.json": Reader(
        _sweep_options, _read_sweep_options, JSON, 300, ("holds runs with other",)
    ),
    "manifest.tsv of a run": Reader(_put("manifest.tsv", RUN_MANIFEST), _read_rows, WORDS, 5000),
    "cache index": Reader(_cache, _read_cache, JSON, 4000, is_mended=True),
    "subwords": Reader(_subword, _read_subword, BYTES, 1000, ("subword", "SentencePiece")),
}


@pytest.mark.parametrize("name", READERS)
def test_some_damaged_inputs_are_read_or_refused_in_one_line(tmp_path: Path, name: str) -> None:
    reader = READERS[name]
    probe(name, reader, tmp_path, 12 if reader.count > 200 else 4, seed=0)


@pytest.mark.long
@pytest.mark.parametrize("name", READERS)
def test_thousands_of_damaged_inputs_are_read_or_refused_in_one_line(
    tmp_path: Path, name: str
) -> None:
    reader = READERS[name]
    refused = probe(name, reader, tmp_path, reader.count, seed=1)
    assert refused == 0 if reader.is_mended else refused > reader.count // 100


# Command lines


@dataclass(frozen=True)
class Program:
    """What parses arguments, and some that it takes."""

    parse: Callable[[list[str]], object]
    flags: str
    count: int


PROGRAMS = {
    "train": Program(
        lambda argv: parse_options(TrainOptions, ["--model", "w2v2-demo", *argv], ""),
        "--model w2v2-demo --sparsity 0.5 --method parp --lr 1e-4 --steps 9 --no-biases --seed 1 "
        "--target char --pattern 2:4 --warmup 3 --round-steps 4 --precision bf16 --freeze none",
        3000,
    ),
    "eval": Program(
        lambda argv: parse_options(EvalOptions, argv, ""),
        "--ckpt a.pt --data demo --split test --decode beam --beam-size 4 --audio a b --merge-sil",
        3000,
    ),
    "convert": Program(
        convert._parser().parse_args, "a.pt b.pt --to packed --values int8 --force", 2000
    ),
    "sweep": Program(sweep.main, "--config nowhere.toml --ray --dry-run", 500),
    "report": Program(
        report.main, "nowhere --out x --compare a b --margin 0.01 --format png,pdf --no-plots", 500
    ),
}
WORDS_OF_ARGUMENTS = [
    "",
    "-",
    "--",
    "=",
    "nan",
    "inf",
    "-1",
    "1e999",
    "9" * 5000,
    "\n",
    "\0",
    "a\nb",
]
WORDS_OF_ARGUMENTS += [
    "--x",
    "--no-",
    "--help",
    "-h",
    "'",
    "%s",
    "\ud800",
    "é",
    "none",
    "x" * 5000,
    "@a",
]


def _arguments(flags: str, numbers: random.Random) -> list[str]:
    words = flags.split()
    for _ in range(numbers.choice([1, 1, 2, 3])):
        place = numbers.randrange(len(words) + 1)
        new = numbers.choice([*WORDS_OF_ARGUMENTS, *words])
        kind = numbers.randrange(4)
        if kind == 0:
            words.insert(place, new)
        elif kind == 1 and words:
            del words[place % len(words)]
        elif kind == 2 and words:
            words[place % len(words)] = new
        elif words:
            words[place % len(words)] += "=" + new
    return words


def _give(program: Program, count: int, seed: int) -> int:
    numbers = random.Random(f"{program.flags} {seed}")
    refused = 0
    for _ in range(count):
        argv = _arguments(program.flags, numbers)
        said, nowhere = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(nowhere):
                program.parse(argv)
        except SystemExit as stop:
            refused += stop.code == 2
        except ValueError:
            refused += 1
        except BaseException as error:
            raise AssertionError(f"{argv!r:.500}") from error
        errors = [line for line in said.getvalue().splitlines() if "left out" not in line]
        assert len(errors) <= 1, (argv, errors)
    return refused


@pytest.mark.parametrize("name", PROGRAMS)
def test_some_command_lines_are_taken_or_refused_in_one_line(name: str) -> None:
    _give(PROGRAMS[name], 15, seed=0)


@pytest.mark.long
@pytest.mark.parametrize("name", PROGRAMS)
def test_thousands_of_command_lines_are_taken_or_refused_in_one_line(name: str) -> None:
    program = PROGRAMS[name]
    assert _give(program, program.count, seed=1) > program.count // 10


@pytest.mark.long
def test_a_hundred_thousand_inputs_are_tried() -> None:
    counts = [each.count for each in (*READERS.values(), *PROGRAMS.values())]
    assert sum(counts) >= 100_000
