import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.ctc import align, beam_decode, greedy_decode


def random_log_probs(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scores = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    return scores.log_softmax(-1)


def collapse(path: tuple[int, ...], blank_id: int) -> tuple[int, ...]:
    return tuple(symbol for symbol, _ in itertools.groupby(path) if symbol != blank_id)


def exhaustive_best(log_probs: np.ndarray, blank_id: int) -> list[int]:
    """The most probable ids by summing over every alignment."""
    num_frames, vocab_size = log_probs.shape
    totals: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(vocab_size), repeat=num_frames):
        probability = math.exp(sum(log_probs[t, symbol] for t, symbol in enumerate(path)))
        ids = collapse(path, blank_id)
        totals[ids] = totals.get(ids, 0.0) + probability
    return list(max(totals, key=totals.__getitem__))


def one_hot_path(path: list[int], vocab_size: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor([path]), vocab_size).double().log()


@settings(max_examples=60, deadline=None)
@given(
    num_frames=st.integers(1, 5),
    vocab_size=st.integers(1, 4),
    blank=st.integers(0, 3),
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([0.3, 1.0, 3.0]),
)
def test_beam_decode_with_a_wide_beam_equals_the_exhaustive_sum(
    num_frames, vocab_size, blank, seed, scale
):
    blank_id = blank % vocab_size
    log_probs = random_log_probs(1, num_frames, vocab_size, seed=seed, scale=scale)
    expected = exhaustive_best(log_probs[0].numpy(), blank_id)
    assert beam_decode(log_probs, None, blank_id, beam_size=10_000) == [expected]


def test_beam_decode_adds_alignments_where_greedy_takes_the_best_path():
    # blank-blank has 0.36, but "1" has 0.24 + 0.24 + 0.16
    log_probs = torch.tensor([[[0.6, 0.4], [0.6, 0.4]]]).log()
    assert greedy_decode(log_probs) == [[]]
    assert beam_decode(log_probs, beam_size=2) == [[1]]


@pytest.mark.parametrize("decode", [greedy_decode, beam_decode])
def test_decode_merges_repeats_and_keeps_those_with_a_blank_between(decode):
    log_probs = one_hot_path([0, 1, 1, 0, 1, 2, 2, 0, 0, 2], vocab_size=3)
    assert decode(log_probs) == [[1, 1, 2, 2]]


@pytest.mark.parametrize("decode", [greedy_decode, beam_decode])
def test_decode_stops_at_each_utterances_last_frame(decode):
    log_probs = random_log_probs(3, 20, 6)
    decoded = decode(log_probs, torch.tensor([20, 7, 0]), 2)
    assert decoded[:2] == [
        decode(log_probs[:1], None, 2)[0],
        decode(log_probs[1:2, :7], None, 2)[0],
    ]
    assert decoded[2] == []


@pytest.mark.parametrize("decode", [greedy_decode, beam_decode])
def test_decode_of_equal_scores_takes_the_lowest_id(decode):
    frames = torch.full((1, 1, 4), 0.1).log()
    frames[0, 0, [1, 3]] = math.log(0.4)
    assert decode(frames) == [[1]]


@pytest.mark.parametrize("decode", [greedy_decode, beam_decode])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decode_takes_any_floating_dtype_and_a_graph(decode, dtype):
    log_probs = one_hot_path([1, 0, 2], vocab_size=3).to(dtype).requires_grad_()
    assert decode(log_probs) == [[1, 2]]


@pytest.mark.parametrize("beam_size", [1, 2, 8])
def test_beam_decode_of_confident_frames_equals_greedy(beam_size):
    log_probs = random_log_probs(2, 60, 12, scale=50.0)
    assert beam_decode(log_probs, beam_size=beam_size) == greedy_decode(log_probs)


def test_beam_decode_survives_a_long_utterance_without_underflow():
    log_probs = random_log_probs(1, 2000, 5, scale=0.1)
    assert len(beam_decode(log_probs, beam_size=4)[0]) > 100


@pytest.mark.parametrize("decode", [greedy_decode, beam_decode])
@pytest.mark.parametrize(
    ("num_frames", "blank_id", "message"),
    [
        (None, 5, "blank_id 5 is not in the vocabulary of 5 symbols"),
        (None, -1, "blank_id -1 is not in the vocabulary"),
        ([4, 8], 0, r"num_frames is \[4, 8\]; give 2 numbers within \[0, 7\]"),
        ([4], 0, r"num_frames is \[4\]; give 2 numbers"),
    ],
)
def test_decode_of_arguments_that_do_not_fit_raises(decode, num_frames, blank_id, message):
    lengths = None if num_frames is None else torch.tensor(num_frames)
    with pytest.raises(ValueError, match=message):
        decode(random_log_probs(2, 7, 5), lengths, blank_id)


@pytest.mark.parametrize("decode", [greedy_decode, beam_decode])
def test_decode_of_nan_raises_where_it_is_valid(decode):
    log_probs = random_log_probs(1, 7, 5)
    log_probs[0, 4, 2] = math.nan
    with pytest.raises(ValueError, match="log_probs has NaN"):
        decode(log_probs)
    assert decode(log_probs, torch.tensor([4])) == decode(log_probs[:, :4])


def test_beam_decode_with_no_beam_raises():
    with pytest.raises(ValueError, match="beam_size is 0; use at least 1"):
        beam_decode(random_log_probs(1, 3, 4), beam_size=0)


@pytest.mark.parametrize("seed", range(20))
def test_align_equals_torchaudios_forced_alignment(seed):
    torchaudio = pytest.importorskip("torchaudio")
    generator = torch.Generator().manual_seed(seed)
    log_probs = (2 * torch.randn(1, 30, 5, generator=generator)).log_softmax(-1)
    ids = torch.randint(1, 5, (1, 2 + seed % 9), generator=generator, dtype=torch.int32)
    path, _ = torchaudio.functional.forced_align(log_probs, ids, blank=0)
    expected, previous = [], 0
    for frame, label in enumerate(path[0].tolist()):
        if label and label == previous:
            expected[-1] = (expected[-1][0], frame + 1)
        elif label:
            expected.append((frame, frame + 1))
        previous = label
    assert align(log_probs[0].double().numpy(), ids[0].tolist()) == expected


@pytest.mark.parametrize("seed", range(20))
def test_align_of_the_greedy_hypothesis_is_the_best_path(seed):
    log_probs = torch.randn(1, 25, 4, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)
    (ids,) = greedy_decode(log_probs)
    best = log_probs[0].argmax(-1).tolist()
    spans = align(log_probs[0].double().numpy(), ids)
    assert [best[start:stop] for start, stop in spans] == [
        [token] * (stop - start) for token, (start, stop) in zip(ids, spans, strict=True)
    ]
    inside = {frame for start, stop in spans for frame in range(start, stop)}
    assert all(best[frame] == 0 for frame in range(25) if frame not in inside)


def test_align_of_nothing_is_nothing_and_of_too_much_is_refused():
    log_probs = torch.randn(3, 4).log_softmax(-1).double().numpy()
    assert align(log_probs, []) == []
    assert align(log_probs, [1, 2, 1]) == [(0, 1), (1, 2), (2, 3)]
    with pytest.raises(ValueError, match="3 frames can't align 3 tokens"):
        align(log_probs, [1, 1, 2])
