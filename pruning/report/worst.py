"""The utterances of a test set that a model gets most wrong, with what was said and heard."""

import io
import wave
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from data.audio import SAMPLE_RATE, read_audio
from data.corpus import Corpus
from data.files import JsonObject, read_json_lines
from data.inputs import DEMO_FOLDER, resolve_data
from data.utterance import Utterance, Wanted
from pruning.report.groups import Cell, Group
from pruning.report.records import Record, Runs, error_rate

COUNT = 5


@dataclass(frozen=True)
class WorstUtterance:
    """One utterance.

    Attributes:
        utt_id: Its name.
        errors: Errors of the pruned model, or of the dense one where none is pruned.
        tokens: Reference tokens.
        lines: What was said, and what each model recognised, by who says so; empty where the run
            folders are not at hand.
        audio: The recording as 16-bit WAV; None where the corpus is not at hand.
    """

    utt_id: str
    errors: int
    tokens: int
    lines: dict[str, str]
    audio: bytes | None


def worst_utterances(group: Group, runs: Runs, count: int = COUNT) -> list[WorstUtterance]:
    """Return what the pruned model with the lowest dev error at the middle sparsity gets wrong.

    Beside it stands what the dense model recognised, both at their first seed.

    Args:
        group: Where to look.
        runs: With the folders of the runs, as far as they are at hand.
        count: How many utterances.
    """
    shown = [_best(cells) for cells in (group.dense, group.middle) if cells]
    if not shown:
        return []
    record = shown[-1].runs[0]
    counted = sorted(record["utterances"], key=_errors, reverse=True)[:count]
    heard = {cell.label: _alignments(cell.runs[0], runs) for cell in shown}
    test_set = _test_set(record) if record["name"] in runs.folders else {}
    worst = []

    for utterance in counted:
        name = str(utterance["utt_id"])
        lines = {}
        for label, known in heard.items():
            if name in known:
                lines["said"] = " ".join(map(str, known[name]["reference"]))
                lines[label] = " ".join(map(str, known[name]["hypothesis"]))
        operations = utterance["operations"]
        tokens = len(operations) - operations.count("I")
        audio = _recording(test_set.get(name))
        worst.append(WorstUtterance(name, _errors(utterance), tokens, lines, audio))

    return [each for each in worst if each.errors]


def _best(cells: Sequence[Cell]) -> Cell:
    return min(cells, key=lambda cell: cell.mean(lambda record: error_rate(record, "dev")))


def _errors(utterance: JsonObject) -> int:
    operations = utterance["operations"]
    return len(operations) - operations.count("=")


def _alignments(record: Record, runs: Runs) -> dict[str, JsonObject]:
    """Return reference and hypothesis of each utterance, where the run's folder is at hand."""
    folder = runs.folders.get(record["name"])
    if folder is None:
        return {}
    lines = read_json_lines(folder / "test.jsonl")
    return {
        str(line["utt_id"]): line
        for line in lines
        if isinstance(line.get("reference"), list) and isinstance(line.get("hypothesis"), list)
    }


def _test_set(record: Record) -> dict[str, Utterance]:
    """Return the utterances that a run was scored on, by name, where its corpus is at hand."""
    options = record["options"]
    data = options.get("data")
    if data == "demo" and not DEMO_FOLDER.is_dir():
        return {}  # it would be made
    wanted = Wanted(resample=bool(options.get("resample")))
    split = str(options.get("splits") or "test").split(",")[-1]
    try:
        corpus = Corpus(resolve_data(data), options.get("corpus") or "auto", wanted)
        return {utterance.utt_id: utterance for utterance in corpus.utterances(split)}
    except ValueError:
        return {}


def _recording(utterance: Utterance | None) -> bytes | None:
    """Return an utterance as WAV; None where it is unknown or can't be read."""
    if utterance is None:
        return None
    resample = utterance.sample_rate != SAMPLE_RATE
    try:
        samples = read_audio(utterance.path, utterance.start, utterance.num_samples, resample)
    except ValueError:
        return None
    return _wav(samples)


def _wav(waveform: torch.Tensor) -> bytes:
    samples = (waveform.clamp(-1.0, 1.0) * 32767.0).round().to(torch.int16)
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(SAMPLE_RATE)
        writer.writeframes(samples.numpy().astype("<i2").tobytes())
    return file.getvalue()
