"""Random numbers of a batch: the generator, what they depend on, and the law of training masks."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from models.draw import Draw
from models.masking import draw_spans

MODULUS = 1 << 64


def split_mix(seed: int, count: int) -> list[float]:
    """The first numbers of SplitMix64, one after another, as its paper has it."""
    numbers = []
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) % MODULUS
        mixed = seed
        mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % MODULUS
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % MODULUS
        mixed = mixed ^ (mixed >> 31)
        numbers.append((mixed >> 11) / (1 << 53))
    return numbers


def test_numbers_are_those_of_split_mix_taken_in_order() -> None:
    seed = int(np.random.SeedSequence((11, 2)).generate_state(1, np.uint64)[0])
    assert Draw(11, range(3)).of_batch(2, 50).tolist() == split_mix(seed, 50)
    assert Draw(11, [0]).of_rows(2, 50).tolist() == [split_mix(seed, 50)]


def test_split_mix_gives_the_published_first_number_of_seed_zero() -> None:
    assert split_mix(0, 1) == [(0xE220A8397B1DCDAF >> 11) / (1 << 53)]


def test_a_row_has_the_same_numbers_whatever_rows_and_counts_are_asked_for() -> None:
    whole = Draw(5, range(40)).of_rows(1, 300)
    assert np.array_equal(Draw(5, [39, 7]).of_rows(1, 20), whole[[39, 7], :20])


@pytest.mark.parametrize("other", [(6, 1), (5, 2)])
def test_other_seeds_and_streams_have_other_numbers(other: tuple[int, int]) -> None:
    seed, stream = other
    numbers = Draw(5, range(40)).of_rows(1, 300).ravel()
    others = Draw(seed, range(40)).of_rows(stream, 300).ravel()
    assert not np.isin(numbers, others).any()
    assert abs(np.corrcoef(numbers, others)[0, 1]) < 4 / np.sqrt(len(numbers))


def test_numbers_are_uniform_and_rows_do_not_go_together() -> None:
    numbers = Draw(0, range(200)).of_rows(0, 1000)
    counts = np.histogram(numbers, bins=100, range=(0.0, 1.0))[0]
    chi_squared = ((counts - 2000) ** 2 / 2000).sum()
    assert chi_squared < 99 + 4 * np.sqrt(2 * 99)
    between = np.corrcoef(numbers)[np.triu_indices(200, 1)]
    assert abs(between.mean()) < 4 / np.sqrt(1000 * len(between))
    assert between.std() == pytest.approx(1 / np.sqrt(1000), rel=0.05)


def test_every_set_of_starts_is_as_likely() -> None:
    rows, width, length = 20_000, 6, 2
    drawn = Draw(3, range(rows)).of_rows(0, 1 + width)
    masked = draw_spans([width] * rows, width, 0.0, length, 2, drawn)
    found = Counter(tuple(row) for row in masked.tolist())

    expected: Counter[tuple[bool, ...]] = Counter()
    sets = list(combinations(range(width - length + 1), 2))
    for starts in sets:
        row = [any(start <= place < start + length for start in starts) for place in range(width)]
        expected[tuple(row)] += 1
    assert found.keys() == expected.keys()
    for row, count in expected.items():
        share = count / len(sets)
        deviation = np.sqrt(share * (1 - share) / rows)
        assert abs(found[row] / rows - share) < 4 * deviation
