"""The worked examples of docs/extending.md, followed to the letter in a copy of the program."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from data.timit import load_timit
from models import build_model
from models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from models.tokenizers.symbols import SymbolTokenizer

pytestmark = pytest.mark.long

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


def _blocks(section: str) -> list[str]:
    """Return the Python of a section of the page."""
    text = PAGE.split(f"## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def _insert(path: Path, before: str, code: str) -> None:
    """Put ``code`` before a text that the file holds once."""
    content = path.read_text(encoding="utf-8")
    assert content.count(before) == 1, (path, before)
    path.write_text(content.replace(before, code + before), encoding="utf-8")


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the program with every example put where the page says."""
    copy = tmp_path_factory.mktemp("copy")
    for name in ("models", "data", "pruning"):
        ignore = shutil.ignore_patterns("__pycache__", "demo", "TIMIT")
        shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    for name in ("train.py", "eval.py"):
        shutil.copy(ROOT / name, copy / name)

    file, line = _blocks("A corpus format")
    (copy / "data" / "ljspeech.py").write_text(file, encoding="utf-8")
    formats = copy / "data" / "formats.py"
    _insert(formats, "from data.manifest import", "from data.ljspeech import LJSpeechFormat\n")
    _insert(formats, '    "manifest": ManifestFormat,\n', line)

    function, line = _blocks("A metric")
    metrics = copy / "data" / "metrics.py"
    _insert(metrics, "METRICS: dict[str, Metric] = {\n", f"{function}\n\n")
    _insert(metrics, '}\n"""Every error rate', line)

    (field,) = _blocks("An option of decoding")
    _insert(copy / "models" / "search.py", "\n    @classmethod\n", field)

    (file,) = _blocks("A family of models")
    (copy / "models" / "unispeech").mkdir()
    (copy / "models" / "unispeech" / "__init__.py").write_text(file, encoding="utf-8")
    families = copy / "models" / "__init__.py"
    _insert(families, "from models.family import Family", "from models import unispeech\n")
    assert "add `unispeech.FAMILY,` to the records" in PAGE
    _insert(families, "        hubert.FAMILY,\n", "        unispeech.FAMILY,\n")
    return copy


def _python(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *args]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def ljspeech(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The made-up corpus' training sentences as LJSpeech has its own."""
    root = tmp_path_factory.mktemp("LJSpeech")
    (root / "wavs").mkdir()
    lines = []
    for utterance in load_timit(small_corpus, "train"):
        shutil.copy(utterance.path, root / "wavs" / f"{utterance.utt_id}.wav")
        lines.append(f"{utterance.utt_id}|{utterance.text}|{utterance.text}\n")
    (root / "metadata.csv").write_text("".join(lines), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def trained(extended: Path, ljspeech: Path) -> dict[str, Any]:
    """Results of a run of the family, on the corpus, with the metric, that were added."""
    flags = "--model unispeech-demo --target char --sparsity 0.6 --steps 2 --device cpu".split()
    data = ["--data", str(ljspeech), "--batch-seconds", "8", "--out", "run"]
    done = _python(extended, "train.py", *flags, *data)
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = json.loads((extended / "run" / "results.json").read_text())
    return results


def test_example_format_is_recognised_and_trained_on(trained: dict[str, Any]) -> None:
    assert (trained["utterances"], trained["dev"]["utterances"]) == (2, 2)
    assert "a tenth of the utterances, drawn with seed 0" in trained["protocol"]
    assert "unknown speakers" in trained["protocol"]


def test_example_metric_is_counted_beside_the_others(trained: dict[str, Any]) -> None:
    assert trained["ser"]["reference_tokens"] == trained["utterances"] == 2
    assert trained["ser"]["substitutions"] == 2  # after two steps no sentence is right
    assert trained["protocol"].startswith("WER on test")


def test_example_family_is_pruned_and_read_by_hugging_face(
    extended: Path, trained: dict[str, Any]
) -> None:
    from transformers import UniSpeechForCTC

    assert trained["model"] == "unispeech-demo"
    assert trained["sparsity"]["in_scope"] == pytest.approx(0.6, abs=1e-4)
    done = _python(extended, "-m", "models.convert", "--to", "hf", "run/best.pt", "folder")
    assert done.returncode == 0, done.stderr

    content = torch.load(extended / "run" / "best.pt", weights_only=True)
    content["family"] = "wav2vec2"  # the same network, known outside the copy
    torch.save(content, extended / "known.pt")
    model = load_checkpoint(extended / "known.pt").model.eval()
    theirs = UniSpeechForCTC.from_pretrained(extended / "folder").eval()
    waveform = torch.randn(1, 8000)
    with torch.no_grad():
        difference = theirs(waveform).logits - model.logits(waveform)
    assert difference.abs().max() < 1e-4  # observed 2e-7


@pytest.fixture(scope="module")
def checkpoints(extended: Path) -> dict[str, Path]:
    """A random model of each kind."""
    torch.manual_seed(0)
    seq2seq = SymbolTokenizer.for_seq2seq("phone", ["aa", "sil"])
    decoding = {"start_ids": list(seq2seq.start_ids or ()), "eos_id": seq2seq.eos_id}
    decoding |= {"max_tokens": 8, "suppress_ids": [], "begin_suppress_ids": []}
    kinds = {
        "whisper-demo": (seq2seq, {"kind": "log_mel", "num_mels": 80, "audio_ctx": 2.0}, decoding),
        "w2v2-demo": (
            SymbolTokenizer.for_ctc("phone", ["aa", "sil"]),
            {"kind": "waveform", "normalize": True},
            {"blank_id": 0},
        ),
    }
    for name, (tokenizer, frontend, settings) in kinds.items():
        model = build_model(name, vocab_size=tokenizer.vocab_size)
        checkpoint = Checkpoint(model, tokenizer, frontend=frontend, decoding=settings)
        save_checkpoint(extended / f"{name}.pt", checkpoint)
    return {name: extended / f"{name}.pt" for name in kinds}


def _evaluate(
    extended: Path, checkpoint: Path, corpus: Path, *flags: str
) -> subprocess.CompletedProcess[str]:
    where = ["--ckpt", str(checkpoint), "--data", str(corpus), "--device", "cpu"]
    return _python(extended, "eval.py", *where, "--length-penalty", "0.6", *flags)


def test_example_option_reaches_the_search_and_the_protocol(
    extended: Path, checkpoints: dict[str, Path], small_corpus: Path
) -> None:
    done = _evaluate(extended, checkpoints["whisper-demo"], small_corpus, "--decode", "beam")
    assert done.returncode == 0, done.stderr
    assert "beam 5, length penalty 0.6, no language model" in done.stdout


def test_example_option_is_refused_where_it_has_no_effect(
    extended: Path, checkpoints: dict[str, Path], small_corpus: Path
) -> None:
    done = _evaluate(extended, checkpoints["w2v2-demo"], small_corpus, "--decode", "beam")
    assert done.returncode == 2
    assert "--length-penalty is not for wav2vec2" in done.stderr
    done = _evaluate(extended, checkpoints["whisper-demo"], small_corpus)
    assert done.returncode == 2
    assert "--length-penalty is for beam search" in done.stderr
