"""Items that run train.py as a user does, on a made-up corpus of TIMIT's size."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Report, Row, Settings
from benchmarks.training import TOKENS_PER_SECOND, timit_like_seconds
from data.phones import PHONES_61
from data.sphere import SAMPLE_RATE, write_sphere
from data.timit_speakers import CORE_TEST_SPEAKERS, DEV_SPEAKERS

ROOT = Path(__file__).parent.parent
TRAIN_SPEAKERS, SENTENCES = 462, 8
SPARSITY = 0.6
FLAGS = {
    "w2v2": ["--freeze", "feature_encoder", "--batch-seconds", "98"],
    "whisper-tiny": ["--batch-seconds", "256"],  # 32 utterances padded to 8 s
    "w2v2-demo": ["--freeze", "feature_encoder"],
}
TIMIT_STEPS = ["--steps", "2500", "--eval-every", "500"]


def write_corpus(root: Path, train_speakers: int, sentences: int) -> float:
    """Write noise of TIMIT-like lengths with random phones; return the minutes of TRAIN.

    TEST has the speakers of TIMIT's core test and development set, so dev and test are TIMIT's.
    """
    letters = product("fm", "qxz", "aeiou", "klmnp", "0123456789")  # no speaker of TIMIT
    names = ["".join(name) for name in letters][:train_speakers]
    parts = [("TRAIN", name) for name in names]
    parts += [("TEST", name) for name in sorted(CORE_TEST_SPEAKERS | DEV_SPEAKERS)]
    lengths = iter(timit_like_seconds(len(parts) * sentences))
    generator = np.random.default_rng(0)
    noise = generator.normal(0, 1000, 10 * SAMPLE_RATE).astype(np.int16)
    minutes = 0.0
    for index, (part, speaker) in enumerate(parts):
        folder = root / part / f"DR{1 + index % 8}" / speaker.upper()
        folder.mkdir(parents=True)
        for number in range(1, sentences + 1):
            seconds = next(lengths)
            minutes += seconds / 60 if part == "TRAIN" else 0
            _write_utterance(folder / f"SX{number}", round(seconds * SAMPLE_RATE), noise, generator)
    return minutes


def _write_utterance(
    stem: Path, num_samples: int, noise: np.ndarray, generator: np.random.Generator
) -> None:
    count = max(1, round(TOKENS_PER_SECOND * num_samples / SAMPLE_RATE))
    ends = np.linspace(0, num_samples, count + 1).astype(int)
    labels = [sorted(PHONES_61)[i] for i in generator.integers(len(PHONES_61), size=count)]
    lines = [f"{a} {b} {label}\n" for a, b, label in zip(ends[:-1], ends[1:], labels, strict=True)]
    first = int(generator.integers(len(noise) - num_samples))
    write_sphere(stem.with_suffix(".WAV"), noise[first : first + num_samples])
    stem.with_suffix(".PHN").write_text("".join(lines), encoding="ascii")
    stem.with_suffix(".TXT").write_text(f"0 {num_samples} some words\n", encoding="ascii")


@dataclass(frozen=True)
class _Corpus:
    root: Path
    utterances: int
    minutes: float


def _corpus(settings: Settings, folder: str) -> _Corpus:
    speakers, sentences = (10, 1) if settings.smoke else (TRAIN_SPEAKERS, SENTENCES)
    root = Path(folder) / "corpus"
    return _Corpus(root, speakers * sentences, write_corpus(root, speakers, sentences))


def _train(settings: Settings, model: str, corpus: _Corpus, out: Path, flags: Sequence[str]) -> Row:
    """Run train.py; the time is that of the whole process."""
    threads = {"OMP_NUM_THREADS": str(settings.threads)}
    command = [sys.executable, "train.py", "--model", model, "--init", "random"]
    command += ["--sparsity", str(SPARSITY), "--data", str(corpus.root), "--out", str(out)]
    command += ["--device", str(settings.device), *FLAGS[model], *flags]
    started, began = time.time(), time.perf_counter()
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | threads
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"train.py --model {model} failed: {last}")
    first = (out / "config.json").stat().st_mtime - started  # written last before the loop
    scoring = sum(event["wall_seconds"] for event in _events(out, "dev"))
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    figures = {"first step after s": first, "dev scoring s": scoring}
    figures |= {"training s": results["cost"]["training_seconds"]}
    return Row(model, [seconds], figures, results)


def _events(out: Path, kind: str) -> Iterator[dict[str, Any]]:
    for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if event["event"] == kind:
            yield event


def run_item(settings: Settings, model: str) -> list[Report]:
    """Time a whole run: every file read, 2,500 steps, PARP, dev scored every 500, TEST at last."""
    model = "w2v2-demo" if settings.smoke else model
    flags = ["--steps", "4"] if settings.smoke else TIMIT_STEPS
    with tempfile.TemporaryDirectory() as folder:
        corpus = _corpus(settings, folder)
        rows = [
            _train(settings, model, corpus, Path(folder) / method, [*flags, "--method", method])
            for method in (["parp"] if settings.smoke else ["parp", "dense"])
        ]
    for row in rows:
        row.name = f"{model}, {row.result['method']}"
    report = Report(
        f"train.py --model {model} {' '.join(flags)}: {corpus.utterances} utterances, "
        f"{corpus.minutes:.1f} minutes",
        rows,
        has_ratios=False,
    )
    _check_sparsity(report, rows[0])
    return [report]


def growth_item(settings: Settings) -> list[Report]:
    """Time one epoch of w2v2-demo over an eighth, a quarter, a half and all of TRAIN."""
    shares = [0.5, 1.0] if settings.smoke else [0.125, 0.25, 0.5, 1.0]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        corpus = _corpus(settings, folder)
        for share in shares:
            # An epoch holds what fits; the last utterance may not, so all is a little more.
            subset = ["--subset", f"minutes={share * corpus.minutes + 0.01:.4f}"]
            flags = ["--epochs", "1", "--eval-every", "1000000", *subset]
            row = _train(settings, "w2v2-demo", corpus, Path(folder) / str(share), flags)
            row.name = f"{share:g} of {corpus.utterances} utterances"
            row.seconds = [row.figures.pop("training s")]
            rows.append(row)
    report = Report("one epoch of w2v2-demo, features computed in it", rows, has_ratios=False)
    report.note_growth(shares)
    _check_sparsity(report, rows[-1])
    return [report]


def _check_sparsity(report: Report, row: Row) -> None:
    found = row.result["sparsity"]["in_scope"]
    report.check(f"sparsity {found:.6f}", abs(found - SPARSITY) < 1e-5)
