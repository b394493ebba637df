"""Greedy steps with a static cache, as CUDA graphs replay them, against plain ones."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from models import cuda_graphs
from models.whisper import Whisper, graphed_decoding
from models.whisper.decoding import DecodingOptions, generate
from models.whisper.graphed_decoding import GreedyGraphs
from tests.whisper_hf import SMALL, hf_model, ours_from

CONFIG = replace(SMALL, text_positions=24, vocab_size=24)
OPTIONS = DecodingOptions(start_ids=(22, 23), eos_id=21, max_tokens=20)


@pytest.fixture
def model(randomise) -> Whisper:
    # Weights that give texts of many lengths, as in test_decoding.py.
    return ours_from(randomise(hf_model(CONFIG).double(), scale=0.5, seed=17), CONFIG)


@pytest.fixture
def log_mel() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return 2 * torch.randn(11, CONFIG.num_mels, 40, generator=generator, dtype=torch.float64)


@pytest.fixture(autouse=True)
def captures(monkeypatch: pytest.MonkeyPatch) -> list[Callable]:
    """What was captured, by a stand-in whose replay is the captured function."""
    captured: list[Callable] = []

    def capture(function: Callable[[], None]) -> Callable[[], None]:
        captured.append(function)
        return function

    monkeypatch.setattr(cuda_graphs, "warm_up", lambda function: function())
    monkeypatch.setattr(cuda_graphs, "capture", capture)
    return captured


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"max_tokens": 3},
        {"max_tokens": 24},
        {"start_ids": (22,)},
        {"start_ids": (22, 20, 19, 23)},
        {"suppress_ids": (1, 2, 3, 4, 5, 6), "begin_suppress_ids": (21, 7, 8)},
    ],
)
def test_static_steps_find_the_ids_of_plain_ones(
    model: Whisper, log_mel: Tensor, change: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    options = replace(OPTIONS, **change)
    expected = generate(model, log_mel, options)
    assert len({len(ids) for ids in expected}) > 1 or options.max_tokens == 3
    assert generate(model, log_mel, options, graphs=GreedyGraphs()) == expected
    assert not capsys.readouterr().err


def test_one_capture_serves_batches_of_a_few_rows_more_or_less(
    model: Whisper, log_mel: Tensor, captures: list
) -> None:
    graphs = GreedyGraphs()
    for batch in (log_mel[:8], log_mel[3:8], log_mel[6:], log_mel[:1]):
        assert generate(model, batch, OPTIONS, graphs=graphs) == generate(model, batch, OPTIONS)
    assert len(captures) == 1
    assert generate(model, log_mel, OPTIONS, graphs=graphs) == generate(model, log_mel, OPTIONS)
    assert len(captures) == 2


def test_captured_step_follows_the_weights(model: Whisper, log_mel: Tensor, captures: list) -> None:
    graphs = GreedyGraphs()
    before = generate(model, log_mel, OPTIONS, graphs=graphs)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.3)
    after = generate(model, log_mel, OPTIONS, graphs=graphs)
    assert after == generate(model, log_mel, OPTIONS)
    assert after != before
    assert len(captures) == 1


def test_another_vocabulary_is_captured_anew(
    model: Whisper, log_mel: Tensor, captures: list
) -> None:
    graphs = GreedyGraphs()
    generate(model, log_mel, OPTIONS, graphs=graphs)
    model.reset_vocabulary(torch.randn(30, CONFIG.d_model, dtype=torch.float64))
    assert generate(model, log_mel, OPTIONS, graphs=graphs) == generate(model, log_mel, OPTIONS)
    assert len(captures) == 2


def test_shapes_kept_hold_so_many_positions(
    model: Whisper, log_mel: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphed_decoding, "MOST_POSITIONS", 3 * 16 * (20 + 16))
    graphs = GreedyGraphs()
    for max_tokens in range(10, 17):
        options = replace(OPTIONS, max_tokens=max_tokens)
        assert generate(model, log_mel, options, graphs=graphs) == generate(model, log_mel, options)
    assert [step.positions for step in graphs._steps.values()] == [
        16 * (20 + max_tokens) for max_tokens in (14, 15, 16)
    ]


def test_batches_of_several_contexts_are_captured_once_each(
    model: Whisper, log_mel: Tensor, captures: list
) -> None:
    graphs = GreedyGraphs()
    for num_frames in (40, 26, 40, 26):
        batch = log_mel[:, :, :num_frames]
        assert generate(model, batch, OPTIONS, graphs=graphs) == generate(model, batch, OPTIONS)
    assert len(captures) == 2


def test_capture_that_fails_leaves_plain_steps_and_a_line(
    model: Whisper,
    log_mel: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(function: Callable) -> None:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(cuda_graphs, "capture", fail)
    ids = generate(model, log_mel, OPTIONS, graphs=GreedyGraphs())
    assert ids == generate(model, log_mel, OPTIONS)
    assert "goes step by step: operation not permitted\n" in capsys.readouterr().err


def test_replay_that_finds_other_ids_is_not_used(
    model: Whisper,
    log_mel: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cuda_graphs, "capture", lambda function: lambda: None)
    ids = generate(model, log_mel, OPTIONS, graphs=GreedyGraphs())
    assert ids == generate(model, log_mel, OPTIONS)
    assert "a replay finds other ids than plain steps" in capsys.readouterr().err


@pytest.mark.gpu
def test_replayed_steps_on_cuda_find_the_ids_of_plain_ones(
    model: Whisper,
    log_mel: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    monkeypatch.undo()
    model, log_mel = model.cuda(), log_mel.cuda()
    graphs = GreedyGraphs()
    for batch in (log_mel[:8], log_mel[3:]):
        assert generate(model, batch, OPTIONS, graphs=graphs) == generate(model, batch, OPTIONS)
    assert not capsys.readouterr().err
