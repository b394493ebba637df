"""Nothing that a file holds is executed, wherever a command reads a file."""

import ast
import pickle
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import eval as evaluation
import train
from models.convert import __main__ as convert
from pruning.report import __main__ as report
from pruning.sweep import __main__ as sweep
from tests.run_folders import omp_argv, write_run
from tests.test_convert_ctranslate2 import GOLDEN
from tests.test_foreign_fields import ctc_folder, slow_whisper_folder, whisper_folder

ROOT = Path(__file__).parent.parent
Main = Callable[[list[str]], int]
Command = tuple[Path, Main, list[str]]
"""The file that is replaced, the program, and its arguments."""


class _RunsCode:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.code = f"open({str(marker)!r}, 'w').close()"

    def __reduce__(self) -> Any:
        return exec, (self.code,)


def _zipped(marker: Path, path: Path) -> None:
    """Write what calls itself a checkpoint, a mask file and a stage, in turn."""
    names = {"masks.pt": "parp-masks", "stage-dense.pt": "parp-stage"}
    name = names.get(path.name, "parp-checkpoint")
    torch.save({"format": name, "version": 1, "run": _RunsCode(marker)}, path)


def _legacy(marker: Path, path: Path) -> None:
    torch.save({"model": _RunsCode(marker)}, path, _use_new_zipfile_serialization=False)


def _plain(protocol: int) -> Callable[[Path, Path], None]:
    return lambda marker, path: path.write_bytes(pickle.dumps(_RunsCode(marker), protocol)) and None


def _importing(marker: Path, path: Path) -> None:
    """Write settings of a class whose module, imported, makes a file."""
    folder = marker.parent / "importable"
    (folder / "fairseq").mkdir(parents=True, exist_ok=True)
    (folder / "fairseq" / "__init__.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    named = b"cfairseq.data\nDictionary\n"  # of the pickle's first protocol
    path.write_bytes(b"(dS'args'\n" + named + b"(tRs.")


PAYLOADS: dict[str, Callable[[Path, Path], None]] = {
    "archive": _zipped,
    "before torch 1.6": _legacy,
    "protocol 2": _plain(2),
    "protocol 5": _plain(5),
    "a module to import": _importing,
}


@dataclass
class Scene:
    """Whole files to put another in place of, each under a folder of the test's own."""

    folder: Path
    small_corpus: Path
    interrupted_omp: Path
    finished_omp: Path

    def copy(self, source: Path) -> Path:
        target = self.folder / source.name
        return target if target.exists() else Path(shutil.copytree(source, target))

    @property
    def corpus(self) -> Path:
        return self.copy(self.small_corpus)

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def train(self, *flags: str) -> list[str]:
        return omp_argv(self.small_corpus, self.out, *flags)

    def weights(self) -> Path:
        return self.copy(self.finished_omp) / "best.pt"


def _recording(suffix: str) -> Callable[[Scene], Command]:
    def place(scene: Scene) -> Command:
        path = sorted(scene.corpus.glob(f"TRAIN/*/*/S[XI]*{suffix}"))[0]
        return path, train.main, omp_argv(scene.corpus, scene.out, "--target", "char")

    return place


def _flag(flag: str, name: str, *others: str) -> Callable[[Scene], Command]:
    def place(scene: Scene) -> Command:
        path = scene.folder / name
        return path, train.main, scene.train(flag, str(path), *others)

    return place


def _resumed(name: str) -> Callable[[Scene], Command]:
    def place(scene: Scene) -> Command:
        out = scene.copy(scene.interrupted_omp)
        argv = omp_argv(scene.small_corpus, out, "--resume", "auto")
        return out / name, train.main, argv

    return place


def _finished(name: str) -> Callable[[Scene], Command]:
    def place(scene: Scene) -> Command:
        out = scene.copy(scene.finished_omp)
        return out / name, train.main, omp_argv(scene.small_corpus, out, "--resume", "auto")

    return place


def _reused(name: str) -> Callable[[Scene], Command]:
    def place(scene: Scene) -> Command:
        other = scene.copy(scene.finished_omp)
        return other / name, train.main, scene.train("--reuse", str(other))

    return place


def _taught(name: str) -> Callable[[Scene], Command]:
    def place(scene: Scene) -> Command:
        other = scene.copy(scene.finished_omp)
        return other / name, train.main, scene.train("--teacher", str(other))

    return place


def _scored(*flags: str, name: str = "evil") -> Callable[[Scene], Command]:
    def place(scene: Scene) -> Command:
        path = scene.folder / name
        return path, evaluation.main, ["--ckpt", str(scene.weights()), *flags, str(path)]

    return place


def _converted(make: Callable[[Path], Path], name: str) -> Callable[[Scene], Command]:
    def place(scene: Scene) -> Command:
        folder = make(scene.folder / "weights")
        return folder / name, convert.main, [str(folder), str(scene.out)]

    return place


def _golden(folder: Path) -> Path:
    return Path(shutil.copytree(GOLDEN, folder))


def _source(name: str) -> Callable[[Scene], Command]:
    def place(scene: Scene) -> Command:
        path = scene.folder / name
        return path, convert.main, [str(path), str(scene.out)]

    return place


def _scored_before(scene: Scene) -> Command:
    best = scene.weights()
    return best.parent / "results.json", convert.main, ["--to", "hf", str(best), str(scene.out)]


def _reported(name: str) -> Callable[[Scene], Command]:
    def place(scene: Scene) -> Command:
        runs = scene.folder / "runs"
        for method in ("mpi", "parp"):
            write_run(runs / method, method, operations=["=S="] * 10, layers=1)
        argv = [str(runs), "--out", str(scene.out), "--no-plots"]
        return runs / "parp" / name, report.main, argv

    return place


def _report_again(*flags: str) -> Callable[[Scene], Command]:
    def place(scene: Scene) -> Command:
        path = scene.folder / "runs.json"
        return path, report.main, [*flags, str(path), "--out", str(scene.out), "--no-plots"]

    return place


def _study(scene: Scene, line: str = "") -> Path:
    config = scene.folder / "study.toml"
    text = f'out = "{scene.folder / "study"}"\n{line}\n[train]\nmodel = "w2v2-demo"\n'
    config.write_text(text + '[grid]\nmethod = ["dense"]\n')
    return config


def _sweep_config(scene: Scene) -> Command:
    return _study(scene), sweep.main, ["--config", str(scene.folder / "study.toml")]


def _sweep_finished(scene: Scene) -> Command:
    path = scene.folder / "runs.json"
    config = _study(scene, f'finished = "{path}"')
    return path, sweep.main, ["--config", str(config), "--dry-run"]


def _sweep_options(scene: Scene) -> Command:
    (scene.folder / "study" / "dense").mkdir(parents=True)
    (scene.folder / "study" / "dense" / "config.json").write_text("{}")
    config = _study(scene)
    return scene.folder / "study" / ".sweep.json", sweep.main, ["--config", str(config)]


def _sweep_results(scene: Scene) -> Command:
    config = _study(scene)
    (scene.folder / "study" / "dense").mkdir(parents=True)
    path = scene.folder / "study" / "dense" / "results.json"
    return path, sweep.main, ["--config", str(config)]


def _cached(suffix: str) -> Callable[[Scene], Command]:
    def place(scene: Scene) -> Command:
        cache = scene.folder / "cache"
        argv = scene.train("--cache", str(cache), "--steps", "1")
        assert train.main(argv) == 0
        shutil.rmtree(scene.out)
        return sorted(cache.glob(f"*{suffix}"))[0], train.main, argv

    return place


def _dictionary(scene: Scene) -> Command:
    path = scene.folder / "list.txt"
    return path, train.main, scene.train("--subset", str(path))


def _kaldi(name: str) -> Callable[[Scene], Command]:
    def place(scene: Scene) -> Command:
        folder = scene.folder / "kaldi"
        folder.mkdir()
        recordings = sorted(scene.small_corpus.glob("TRAIN/*/*/SX*.WAV"))[:6]
        rows = [(f"u{i}", path) for i, path in enumerate(recordings)]
        (folder / "wav.scp").write_text("".join(f"{key} {path}\n" for key, path in rows))
        (folder / "text").write_text("".join(f"{key} words\n" for key, _ in rows))
        return folder / name, train.main, omp_argv(folder, scene.out, "--target", "char")

    return place


def _libri(name: str) -> Callable[[Scene], Command]:
    def place(scene: Scene) -> Command:
        folder = scene.folder / "libri"
        for part in ("train", "dev", "test"):
            chapter = folder / f"{part}-x" / "1" / "2"
            chapter.mkdir(parents=True)
            shutil.copy(next(scene.small_corpus.rglob("*.WAV")), chapter / "1-2-0.wav")
            (chapter / "1-2.trans.txt").write_text("1-2-0 WORDS\n")
        argv = omp_argv(folder, scene.out, "--target", "char")
        return folder / name, train.main, argv

    return place


PLACES: dict[str, Callable[[Scene], Command]] = {
    **{f"corpus: {suffix}": _recording(suffix) for suffix in (".WAV", ".TXT")},
    **{f"--data of {name}": _flag("--data", name) for name in ("a.tsv", "a.csv", "a.jsonl")},
    **{f"kaldi: {name}": _kaldi(name) for name in ("wav.scp", "text", "utt2spk", "segments")},
    "kaldi: spk2gender": _kaldi("spk2gender"),
    "libri: transcript": _libri("train-x/1/2/1-2.trans.txt"),
    "libri: speakers": _libri("SPEAKERS.TXT"),
    "libri: recording": _libri("train-x/1/2/1-2-0.wav"),
    "train --config": _flag("--config", "a.toml"),
    "train --init": _flag("--init", "a.pt"),
    "train --model": _flag("--model", "a.pt"),
    "train --teacher": _flag("--teacher", "a.pt"),
    "train --init-mask": _flag("--init-mask", "masks.pt", "--method", "mpi"),
    "train --subset": _dictionary,
    **{f"resumed: {name}": _resumed(name) for name in ("config.json", "manifest.tsv", "last.pt")},
    **{f"resumed: {name}": _resumed(name) for name in ("best.pt", "initial.pt", "metrics.jsonl")},
    "finished: results.json": _finished("results.json"),
    **{f"--reuse: {name}": _reused(name) for name in ("config.json", "stage-dense.pt")},
    **{f"--teacher: {name}": _taught(name) for name in ("best.pt", "results.json")},
    "cache: index": _cached(".json"),
    "cache: values": _cached(".bin"),
    "eval --data": _scored("--data", name="a.tsv"),
    "eval --audio": _scored("--audio", name="a.wav"),
    "eval --config": _scored("--config", name="a.toml"),
    "eval --ckpt": _scored("--data", "demo", "--ckpt", name="a.pt"),
    **{f"convert {name}": _source(name) for name in ("a.pt", "a.bin", "a.ckpt", "a.safetensors")},
    "convert best.pt: results.json": _scored_before,
    **{
        f"convert {make.__name__}: {name}": _converted(make, name)
        for make, names in {
            ctc_folder: (
                "config.json",
                "vocab.json",
                "tokenizer_config.json",
                "model.safetensors",
                "pytorch_model.bin",
            ),
            whisper_folder: ("generation_config.json", "tokenizer.json", "processor_config.json"),
            slow_whisper_folder: ("merges.txt", "added_tokens.json"),
            _golden: ("model.bin", "config.json", "tokenizer.json"),
        }.items()
        for name in names
    },
    "convert ctc_folder: shards": _converted(ctc_folder, "model.safetensors.index.json"),
    "convert ctc_folder: preprocessor": _converted(ctc_folder, "preprocessor_config.json"),
    **{
        f"report: {name}": _reported(name)
        for name in ("config.json", "results.json", "metrics.jsonl", "test.jsonl", "masks.pt")
    },
    "report of a report": _report_again(),
    "report --compare": _report_again("--compare", "a", "b"),
    "sweep --config": _sweep_config,
    "sweep: finished": _sweep_finished,
    "sweep: options": _sweep_options,
    "sweep: results.json": _sweep_results,
}
NOT_ALONE = {  # what is read in place of the file, or beside it, is taken away
    "pytorch_model.bin": "model.safetensors",
    "model.safetensors.index.json": "model.safetensors",
    "preprocessor_config.json": "processor_config.json",
}


@pytest.fixture
def scene(tmp_path: Path, small_corpus: Path, interrupted_omp: Path, finished_omp: Path) -> Scene:
    return Scene(tmp_path, small_corpus, interrupted_omp, finished_omp)


def _check(
    scene: Scene, place: str, payload: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, main, argv = PLACES[place](scene)
    marker = scene.folder / "ran"
    PAYLOADS[payload](marker, path)
    if path.name in NOT_ALONE:
        (path.parent / NOT_ALONE[path.name]).unlink()
    monkeypatch.syspath_prepend(str(scene.folder / "importable"))
    capsys.readouterr()
    try:
        status = main(argv)
    except SystemExit as stop:
        status = int(stop.code or 0)
    errors = capsys.readouterr().err
    assert not marker.exists()
    assert status in (0, 1, 2)
    assert "Traceback" not in errors
    # The last is text, which a file of texts may hold.
    may_be_read = payload == "a module to import" and path.suffix not in (".pt", ".bin", ".ckpt")
    assert may_be_read or path.name in errors, errors


def _suited(place: str) -> str:
    """Return the payload that gets furthest: into what unpickles, where there is such."""
    return "archive" if place.endswith((".pt", ".bin", ".ckpt", "--init-mask")) else "protocol 2"


@pytest.mark.parametrize("place", [place for place in PLACES if not place.startswith("cache")])
def test_a_pickle_in_place_of_any_file_is_not_run_and_the_file_is_named(
    scene: Scene, place: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _check(scene, place, _suited(place), capsys, monkeypatch)


@pytest.mark.long
@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("place", PLACES)
def test_no_kind_of_pickle_is_run_in_place_of_any_file(
    scene: Scene, place: str, payload: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _check(scene, place, payload, capsys, monkeypatch)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_what_is_put_there_runs_where_it_is_unpickled(
    tmp_path: Path, payload: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    PAYLOADS[payload](tmp_path / "ran", tmp_path / "a.pt")
    monkeypatch.syspath_prepend(str(tmp_path / "importable"))
    monkeypatch.delitem(sys.modules, "fairseq", raising=False)
    is_plain = payload in ("protocol 2", "protocol 5", "a module to import")
    try:
        if is_plain:
            pickle.loads((tmp_path / "a.pt").read_bytes())
        else:
            torch.load(tmp_path / "a.pt", weights_only=False)
    except ModuleNotFoundError:  # fairseq.data, after fairseq
        pass
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["rewind.pt", "teacher.pt"])
def test_a_pickle_in_place_of_what_a_run_reads_again_is_not_run(
    scene: Scene, name: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = scene.folder / "ran"
    module = train if name == "rewind.pt" else sys.modules["pruning.run.teacher"]
    written = "save" if name == "rewind.pt" else "save_checkpoint"
    plain = getattr(module, written)

    def replace(*args: Any) -> None:
        plain(*args)
        if (scene.out / name).is_file():
            _zipped(marker, scene.out / name)

    monkeypatch.setattr(module, written, replace)
    flags = {
        "rewind.pt": ("--rewind-step", "1"),
        "teacher.pt": ("--teacher", "self", "--dense-share", "0.5"),
    }[name]
    method = ("--method", "omp" if name == "rewind.pt" else "gmp", "--prune-every", "1")
    assert train.main(scene.train(*flags, *method, "--steps", "4")) == 2
    assert name in capsys.readouterr().err
    assert not marker.exists()


# What could run code is nowhere called

FORBIDDEN = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "marshal.loads"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "shelve.open"),
    *("yaml.load", "joblib.load", "numpy.load", "np.load", "torch.hub.load", "runpy.run_path"),
}


def _called(node: ast.Call) -> str:
    return ast.unparse(node.func)


@pytest.mark.parametrize("package", ["models", "data", "pruning", "train.py", "eval.py"])
def test_no_module_calls_what_runs_the_code_of_a_file(package: str) -> None:
    root = ROOT / package
    files = [root] if root.is_file() else sorted(root.rglob("*.py"))
    loads = 0
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = _called(node)
            assert called not in FORBIDDEN, f"{path}:{node.lineno}"
            settings = {each.arg: ast.unparse(each.value) for each in node.keywords}
            assert settings.get("shell", "False") == "False", f"{path}:{node.lineno}"
            if called == "torch.load":
                loads += 1
                assert settings.get("weights_only") == "True", f"{path}:{node.lineno}"
    assert loads == (package == "data")  # in one place, data.files.read_archive
