"""The shapes that batches are padded to, and what is padded for it."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.training import timit_like_seconds
from data.batching import BatchSampler
from models.training.shapes import MOST_SHAPES, Shape, choose_shapes, smallest_that_holds

batches = st.lists(
    st.builds(Shape, st.integers(1, 40), st.integers(1, 200), st.sampled_from([0, 100, 300])),
    min_size=1,
    max_size=60,
)


@given(batches, st.integers(3, 8))
def test_shapes_hold_every_batch_and_are_few(given: list[Shape], most: int) -> None:
    shapes = choose_shapes(given, 8, most)
    assert len(shapes) <= most
    assert [s.places for s in shapes] == sorted((s.places for s in shapes), reverse=True)
    assert {s.width % 8 for s in shapes} == {0}
    for batch in given:
        found = smallest_that_holds(shapes, batch)
        assert found is not None
        assert found.holds(batch)


def test_each_context_has_a_shape_where_there_are_more_than_asked_for() -> None:
    shapes = choose_shapes([Shape(2, 5, context) for context in (100, 200, 300)], 8, most=2)
    assert shapes == [Shape(2, 8, context) for context in (300, 200, 100)]


def test_neighbours_whose_padding_costs_least_share_a_shape() -> None:
    given = [Shape(4, 8), *[Shape(4, 16)] * 9, Shape(4, 24), Shape(4, 64)]
    assert choose_shapes(given, 8, most=3) == [Shape(4, 64), Shape(4, 24), Shape(4, 16)]


def test_batch_that_is_too_large_is_held_by_no_shape() -> None:
    shapes = [Shape(4, 16), Shape(8, 8), Shape(99, 99, 7)]
    assert smallest_that_holds(shapes, Shape(4, 8)) == Shape(4, 16)
    assert smallest_that_holds(shapes, Shape(5, 9)) is None


def test_a_corpus_of_timits_size_has_eight_shapes_and_a_tenth_of_padding() -> None:
    seconds = timit_like_seconds(3696)
    frames = (np.round(np.array(seconds) * 16000).astype(int) - 400) // 320 + 1
    sampler = BatchSampler(seconds, 100.0, num_lengths=MOST_SHAPES)
    run = list(sampler.first_batches(2500))
    sizes = [Shape(len(batch), int(frames[batch].max())) for batch in run]
    shapes = choose_shapes(sizes, 16)
    padded = sum(smallest_that_holds(shapes, size).places for size in sizes)
    assert len(shapes) <= 8
    assert sum(frames[batch].sum() for batch in run) / padded > 0.89  # 0.903
