"""Batches under a padded budget: each utterance once, resumable, little padding."""

import json
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.batching import BatchSampler, common_lengths

length_lists = st.lists(st.floats(0.1, 20), min_size=1, max_size=60)
second_lists = st.lists(st.integers(1, 4), min_size=1, max_size=60)
budgets = st.floats(0.5, 60)


def timit_like_lengths() -> np.ndarray:
    return np.random.default_rng(0).normal(3.07, 0.86, 3696).clip(0.92, 7.8)


@given(length_lists, budgets, st.booleans(), st.integers(0, 3))
def test_epoch_batches_hold_each_index_once(
    lengths: list, budget: float, shuffle: bool, epoch: int
) -> None:
    batches = BatchSampler(lengths, budget, seed=1, shuffle=shuffle).epoch_batches(epoch)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))


@given(length_lists, budgets, st.booleans())
def test_epoch_batches_keep_the_padded_budget(lengths: list, budget: float, shuffle: bool) -> None:
    for batch in BatchSampler(lengths, budget, seed=1, shuffle=shuffle).epoch_batches(0):
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget


@given(second_lists, budgets, st.booleans(), st.integers(0, 3))
def test_batches_of_same_length_hold_each_index_once_and_one_length_each(
    lengths: list, budget: float, shuffle: bool, epoch: int
) -> None:
    sampler = BatchSampler(lengths, budget, seed=1, shuffle=shuffle, same_length=True)
    batches = sampler.epoch_batches(epoch)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len({lengths[i] for i in batch}) == 1
        assert len(batch) == 1 or len(batch) * lengths[batch[0]] <= budget
    assert sampler.padding_share(epoch) == pytest.approx(0)


@given(second_lists, st.floats(0.5, 20))
def test_batches_of_same_length_are_as_few_as_the_budget_allows_and_of_even_size(
    lengths: list, budget: float
) -> None:
    batches = BatchSampler(lengths, budget, same_length=True).epoch_batches(0)
    for length in set(lengths):
        sizes = [len(batch) for batch in batches if lengths[batch[0]] == length]
        assert max(sizes) - min(sizes) <= 1
        assert len(sizes) == -(-sum(sizes) // max(1, int(budget // length)))


def test_batches_of_same_length_mix_anew_in_every_epoch() -> None:
    lengths = np.ceil(timit_like_lengths())
    sampler = BatchSampler(lengths, 98, same_length=True)
    first, second = (set(map(frozenset, sampler.epoch_batches(epoch))) for epoch in (0, 1))
    assert len(first & second) < 5  # 2 observed: lengths of few utterances


def test_epoch_batches_keep_the_budget_where_jitter_puts_a_longer_one_first() -> None:
    lengths = timit_like_lengths()
    for batch in BatchSampler(lengths, 98).epoch_batches(0):
        assert len(batch) * lengths[batch].max() <= 98


def test_epoch_batches_put_utterance_over_budget_alone() -> None:
    batches = BatchSampler([1.0, 9.0, 1.0], 4.0).epoch_batches(0)
    assert sorted(map(sorted, batches)) == [[0, 2], [1]]


def test_epoch_batches_depend_on_seed_and_epoch_only() -> None:
    lengths = timit_like_lengths()[:200]
    sampler, other = BatchSampler(lengths, 20, seed=5), BatchSampler(lengths, 20, seed=5)
    for _ in range(100):
        sampler.next_batch()
    assert sampler.epoch_batches(7) == other.epoch_batches(7)
    assert sampler.epoch_batches(7) != other.epoch_batches(8)
    assert sampler.epoch_batches(7) != BatchSampler(lengths, 20, seed=6).epoch_batches(7)


def test_epoch_batches_with_shuffle_differ_as_sets_between_epochs() -> None:
    sampler = BatchSampler(timit_like_lengths(), 98)
    first, second = (set(map(frozenset, sampler.epoch_batches(epoch))) for epoch in (0, 1))
    assert len(first & second) < 5  # 0 observed


def test_epoch_batches_without_shuffle_are_sorted_and_equal() -> None:
    sampler = BatchSampler([3.0, 1.0, 2.0, 1.0], 4.0, shuffle=False)
    assert sampler.epoch_batches(0) == sampler.epoch_batches(1) == [[1, 3], [2], [0]]


def test_padding_share_of_timit_like_lengths_is_under_5_percent() -> None:
    sampler = BatchSampler(timit_like_lengths(), 98, seed=0)
    assert max(sampler.padding_share(epoch) for epoch in range(5)) < 0.05  # 0.0184 observed


def test_padding_share_on_hand_example_matches() -> None:
    assert BatchSampler([1.0, 3.0], 100.0).padding_share() == pytest.approx(2 / 6)


def test_next_batch_runs_through_the_epochs_in_order() -> None:
    sampler = BatchSampler(timit_like_lengths()[:50], 20, seed=2)
    expected = [batch for epoch in range(3) for batch in sampler.epoch_batches(epoch)]
    assert [sampler.next_batch() for _ in expected] == expected
    assert sampler.count_batches(3) == len(expected)


@pytest.mark.parametrize("steps", [0, 1, 9, 10, 25])
def test_state_dict_through_json_resumes_exactly(steps: int) -> None:
    lengths = timit_like_lengths()[:50]
    sampler = BatchSampler(lengths, 20, seed=2)
    for _ in range(steps):
        sampler.next_batch()
    resumed = BatchSampler(lengths, 20, seed=2)
    resumed.load_state_dict(json.loads(json.dumps(sampler.state_dict())))
    assert [resumed.next_batch() for _ in range(30)] == [sampler.next_batch() for _ in range(30)]


def test_load_state_dict_past_the_epoch_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot resume at batch 5 of an epoch with 2"):
        BatchSampler([1.0, 2.0], 2.0).load_state_dict({"epoch": 0, "position": 5})


@pytest.mark.parametrize(
    ("lengths", "budget", "match"),
    [
        ([], 10, "no utterances to batch"),
        ([1.0, 0.0], 10, "utterance 1 lasts 0.0 s"),
        ([float("nan")], 10, "utterance 0 lasts nan s"),
        ([1.0], 0, "batch seconds are 0"),
    ],
)
def test_batch_sampler_without_positive_values_is_refused(
    lengths: list, budget: float, match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        BatchSampler(lengths, budget)


lengths_of_speech = st.lists(st.floats(0.3, 12.0), min_size=1, max_size=60)


@given(lengths_of_speech, st.integers(1, 8))
def test_common_lengths_are_those_with_the_least_padding(lengths: list, most: int) -> None:
    seconds = np.array(lengths)
    chosen = common_lengths(seconds, most)
    assert len(chosen) <= most
    assert chosen[-1] + 1e-6 >= seconds.max()

    def padded(tops: np.ndarray) -> float:
        return float(tops[np.searchsorted(tops, seconds - 1e-6)].sum())

    grid = np.unique(np.ceil(seconds / 0.32)) * 0.32
    if len(grid) <= 12:
        sizes = range(min(most, len(grid)))
        others = [
            np.array([*some, grid[-1]]) for size in sizes for some in combinations(grid[:-1], size)
        ]
        assert padded(chosen) == pytest.approx(min(map(padded, others)))


@given(lengths_of_speech, st.floats(1.0, 60.0), st.integers(1, 8))
def test_batches_of_few_lengths_hold_each_index_once_and_keep_the_padded_budget(
    lengths: list, budget: float, most: int
) -> None:
    sampler = BatchSampler(lengths, budget, seed=3, num_lengths=most)
    batches = sampler.epoch_batches(1)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget + 1e-6


def test_first_batches_are_those_that_the_sampler_hands_out() -> None:
    sampler = BatchSampler([1.0, 2.0, 3.0, 4.0, 5.0], 6.0, seed=2)
    sampler.next_batch()
    ahead = list(sampler.first_batches(9))
    again = BatchSampler([1.0, 2.0, 3.0, 4.0, 5.0], 6.0, seed=2)
    assert ahead == [again.next_batch() for _ in range(9)]
    assert sampler.position == 1
