"""Greedy steps with a static cache, as CUDA graphs replay them, against plain ones."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from models import cuda_graphs
from models.device import use_device
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

    def capture(function: Callable[[], None], stream: None) -> Callable[[], None]:
        captured.append(function)
        return function

    monkeypatch.setattr(cuda_graphs, "warm_up", lambda function, stream: function())
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
    model: Whisper, log_mel: Tensor, change: dict[str, Any]
) -> None:
    options = replace(OPTIONS, **change)
    expected = generate(model, log_mel, options)
    assert len({len(ids) for ids in expected}) > 1 or options.max_tokens == 3
    assert generate(model, log_mel, options, graphs=GreedyGraphs()) == expected


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


def test_all_steps_are_dropped_where_there_is_no_room_for_another(
    model: Whisper, log_mel: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphed_decoding, "MOST_POSITIONS", 3 * 16 * (20 + 16))
    graphs = GreedyGraphs()
    held = []
    for max_tokens in range(12, 17):
        options = replace(OPTIONS, max_tokens=max_tokens)
        assert generate(model, log_mel, options, graphs=graphs) == generate(model, log_mel, options)
        held.append([step.positions for step in graphs._steps.values()])
    sizes = [16 * (20 + max_tokens) for max_tokens in range(12, 17)]
    assert held == [sizes[:1], sizes[:2], sizes[:3], sizes[3:4], sizes[3:]]


def test_batches_of_several_contexts_are_captured_once_each(
    model: Whisper, log_mel: Tensor, captures: list
) -> None:
    graphs = GreedyGraphs()
    for num_frames in (40, 26, 40, 26):
        batch = log_mel[:, :, :num_frames]
        assert generate(model, batch, OPTIONS, graphs=graphs) == generate(model, batch, OPTIONS)
    assert len(captures) == 2


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            RuntimeError("operation not permitted\nwhen stream is capturing"),
            r"CUDA graph \(operation not permitted\): give --no-fast",
        ),
        (torch.OutOfMemoryError("CUDA"), "out of memory .*: lower --batch-seconds, or give"),
    ],
)
def test_capture_that_fails_is_an_error_with_a_remedy(
    model: Whisper,
    log_mel: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    error: RuntimeError,
    message: str,
) -> None:
    def fail(function: Callable, stream: None) -> None:
        raise error

    monkeypatch.setattr(cuda_graphs, "capture", fail)
    graphs = GreedyGraphs()
    for _ in range(2):  # what has failed is not kept
        with pytest.raises(ValueError, match=message):
            generate(model, log_mel, OPTIONS, graphs=graphs)


class _Uncast:
    """A decoder whose weights autocast casts in every step."""

    def __init__(self, model: Whisper) -> None:
        self.decoder, self.head = model.decoder, model.decoder.token_embedding.weight

    def refresh(self) -> None:
        pass


def test_steps_with_weights_cast_once_score_as_autocast_does(
    model: Whisper, log_mel: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, log_mel = model.float().eval(), log_mel[:8].float()
    ids = torch.randint(24, (8, 5), generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        cross = model.decoder.cross_keys_values(model.encode(log_mel))
        cast = graphed_decoding.GraphedSteps(model, cross, 20, 8)
        monkeypatch.setattr(graphed_decoding, "_CastWeights", _Uncast)
        uncast = graphed_decoding.GraphedSteps(model, cross, 20, 8)
        for factor in (1.0, 1.1):  # the second batch sees the weights as they are then
            for parameter in model.parameters():
                parameter.data.mul_(factor)
            cast.refill(cross)
            uncast.refill(cross)
            scores = cast.append(ids)
            assert torch.equal(scores, uncast.append(ids))
    assert scores.std() > 0.1
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    held = cast._weights.decoder
    assert held.layers[0].ffn.fc1.weight.dtype == torch.bfloat16
    assert held.token_embedding.weight is model.decoder.token_embedding.weight


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_replayed_steps_on_cuda_find_the_ids_of_plain_ones(
    model: Whisper, log_mel: Tensor, monkeypatch: pytest.MonkeyPatch, precision: torch.dtype
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    monkeypatch.undo()
    model, log_mel = model.cuda().float(), log_mel.cuda().float()
    graphs = GreedyGraphs()
    same = total = 0
    for batch in (log_mel[:8], log_mel[3:], log_mel[:8]):
        with torch.autocast("cuda", precision, enabled=precision != torch.float32):
            found = generate(model, batch, OPTIONS, graphs=graphs)
            plain = generate(model, batch, OPTIONS)
        same += sum(a == b for a, b in zip(found, plain, strict=True))
        total += len(plain)
    assert same == total


@pytest.mark.gpu
def test_steps_on_cuda_go_on_after_all_others_were_dropped(
    model: Whisper, log_mel: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    monkeypatch.undo()
    monkeypatch.setattr(graphed_decoding, "MOST_POSITIONS", 3 * 16 * (20 + 16))
    model, log_mel = model.cuda(), log_mel.cuda()
    graphs = GreedyGraphs()
    for max_tokens in (12, 13, 14, 15, 16, 12, 16):
        options = replace(OPTIONS, max_tokens=max_tokens)
        assert generate(model, log_mel, options, graphs=graphs) == generate(model, log_mel, options)


@pytest.mark.gpu
def test_steps_on_a_second_device_are_those_of_the_first(
    model: Whisper, log_mel: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    monkeypatch.undo()
    expected = generate(model, log_mel, OPTIONS)
    device = torch.device("cuda:1")
    use_device(device)
    try:
        moved = model.to(device)
        assert generate(moved, log_mel.to(device), OPTIONS, graphs=GreedyGraphs()) == expected
    finally:
        use_device(torch.device("cuda:0"))
