"""Whisper at each utterance's own length, rounded up to a second."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data.front_ends import check_context
from data.inputs import batch_sampler, model_input
from data.log_mel import AudioContext, context_of, read_context
from data.timit import Utterance, load_timit
from models import build_model, build_task
from models.draw import Draw
from models.spec_augment import SpecAugment
from models.training.tasks import Task

OWN = {"kind": "log_mel", "num_mels": 80, "audio_ctx": "own"}
SEQ2SEQ = {
    "start_ids": [1, 3],
    "eos_id": 2,
    "max_tokens": 20,
    "suppress_ids": [],
    "begin_suppress_ids": [],
}


@pytest.fixture(scope="module")
def utterances(uneven_corpus: Path) -> list[Utterance]:
    return load_timit(uneven_corpus, "train")


@pytest.fixture
def task(randomise: Any) -> Task:
    model = randomise(build_model("whisper-demo", text_positions=32), 0.05).double().train()
    return build_task(model, SEQ2SEQ, spec_augment=SpecAugment(0.2, 0.3), label_smoothing=0.1)


@pytest.mark.parametrize(
    ("num_samples", "audio_ctx", "seconds"),
    [
        (1, "own", 1.0),
        (16_000, "own", 1.0),
        (16_001, "own", 2.0),
        (480_000, "own", 30.0),
        (16_001, None, 30.0),
        (16_001, 7.5, 7.5),
    ],
)
def test_context_of_so_many_samples(
    num_samples: int, audio_ctx: AudioContext, seconds: float
) -> None:
    assert context_of(num_samples, audio_ctx) == seconds


@pytest.mark.parametrize(
    ("option", "longest", "recorded"),
    [
        ("own", 31.0, "own"),
        ("full", 3.2, None),
        ("auto", 3.2, 4.0),
        ("auto", 3.0, 3.0),
        ("auto", 31.0, 30.0),
        ("7.509", 3.2, 7.5),
        ("30", 3.2, 30.0),
    ],
)
def test_option_is_read_as_what_a_checkpoint_records(
    option: str, longest: float, recorded: AudioContext
) -> None:
    assert read_context(option, longest) == recorded


@pytest.mark.parametrize("option", ["Own", "30.1", "0", "nan", "-1"])
def test_option_that_is_no_context_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match="give own, auto, full, or seconds up to 30"):
        read_context(option, 3.2)


def test_log_mel_has_as_many_whole_seconds_as_its_utterance(utterances: list[Utterance]) -> None:
    seconds = [-(-utterance.num_samples // 16_000) for utterance in utterances]
    assert len(set(seconds)) > 1
    assert [model_input(u, OWN).shape[1] for u in utterances] == [100 * s for s in seconds]


def test_training_batches_give_the_losses_and_gradients_of_their_utterances_alone(
    task: Task, utterances: list[Utterance]
) -> None:
    """Masks included, which depend on seed and row."""
    inputs = [model_input(utterance, OWN).double() for utterance in utterances]
    targets = [[4 + i % 9] * (1 + i % 5) for i in range(len(utterances))]
    batches = batch_sampler(utterances, OWN, 12.0).epoch_batches(0)
    assert max(map(len, batches)) > 2

    def loss_of(batch: list[int], rows: list[int]) -> Tensor:
        chosen = [batch[row] for row in rows]
        draw = Draw(5, rows)
        return task.loss([inputs[i] for i in chosen], [targets[i] for i in chosen], draw)

    for batch in batches:
        found = []
        for parts in ([list(range(len(batch)))], [[row] for row in range(len(batch))]):
            task.model.zero_grad()
            loss = torch.stack([loss_of(batch, rows) for rows in parts]).sum()
            loss.backward()
            gradients = [p.grad.clone() for p in task.model.parameters() if p.grad is not None]
            found.append((loss.detach(), gradients))
        torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-10)  # observed 4e-13


def _of_seconds(utterance: Utterance, seconds: float, utt_id: str) -> Utterance:
    return dataclasses.replace(utterance, num_samples=round(16_000 * seconds), utt_id=utt_id)


@pytest.mark.parametrize("audio_ctx", ["own", None, 30.0])
def test_utterance_of_more_than_thirty_seconds_is_named_with_a_remedy_that_works(
    utterances: list[Utterance], audio_ctx: AudioContext
) -> None:
    longer = [_of_seconds(utterances[0], s, f"long{s}") for s in (30.0, 31.5, 30.001)]
    check_context([*utterances, longer[0]], audio_ctx)
    said = r"^long31\.5 .* lasts 31\.50 s .* so are long30\.001 \(30\.00 s\): .*cut them$"
    with pytest.raises(ValueError, match=said):
        check_context([*utterances, *longer], audio_ctx)


def test_utterance_longer_than_a_given_context_is_named_with_a_remedy_that_works(
    utterances: list[Utterance],
) -> None:
    longer = _of_seconds(utterances[0], 7.9, "long")
    with pytest.raises(ValueError, match=r"^long .* 5 s: train with --audio-ctx own, or 8 second"):
        check_context([longer], 5.0)
    for audio_ctx in ("own", 8.0):
        check_context([longer], audio_ctx)
