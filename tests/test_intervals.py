import math

import numpy as np
import pytest

from data.intervals import Estimate, _t_quantile, choose_unit, estimate


def _one(edits: list[int], tokens: list[int], speakers: list[str], **options: float) -> Estimate:
    names = [f"u{i}" for i in range(len(tokens))]
    return estimate(np.array(edits), np.array(tokens), names, speakers, **options)


def _speakers(units: int, each: int = 1) -> list[str]:
    return [f"s{i:03}" for i in range(units) for _ in range(each)]


@pytest.mark.parametrize(
    ("speakers", "utterances", "unit"),
    [(10, 1, "speaker"), (9, 2, "utterance"), (1, 10, "utterance"), (3, 3, None), (1, 1, None)],
)
def test_speakers_are_drawn_from_ten_on_and_utterances_from_ten_on(
    speakers: int, utterances: int, unit: str | None
) -> None:
    names = _speakers(speakers, utterances)
    assert choose_unit([f"u{i}" for i in range(len(names))], names)[0] == unit


def test_utterances_are_drawn_where_the_corpus_names_no_speaker() -> None:
    names = [f"u{i}" for i in range(20)]
    for speakers in ([""] * 20, names, [*_speakers(19), ""]):
        assert choose_unit(names, speakers)[0] == "utterance"


def test_fewer_than_ten_utterances_have_a_rate_and_no_interval() -> None:
    assert _one([1] * 9, [10] * 9, _speakers(9)) == Estimate(0.1, None, None, None)


def test_a_test_set_without_reference_tokens_has_no_interval() -> None:
    assert _one([0] * 10, [0] * 10, _speakers(10)) == Estimate(0.0, None, None, None)
    assert _one([1] * 10, [0] * 10, _speakers(10)).rate == math.inf


def test_many_speakers_have_the_interval_of_the_normal_distribution() -> None:
    edits = np.random.default_rng(0).binomial(100, 0.2, 400)
    found = _one(edits.tolist(), [100] * 400, _speakers(400)).interval
    wanted = edits.mean() / 100 + np.array([-1.96, 1.96]) * edits.std(ddof=1) / 100 / 20
    assert found == pytest.approx(wanted, abs=6e-4)


def test_speakers_weigh_as_many_tokens_as_they_have() -> None:
    edits, tokens = [0] * 9 + [10], [90] * 9 + [10]
    assert _one(edits, tokens, _speakers(10)).rate == 10 / 820


def test_interval_does_not_depend_on_the_order_of_the_utterances() -> None:
    edits, tokens, speakers = list(range(24)), [30] * 24, _speakers(12, 2)
    names = [f"u{i}" for i in range(24)]
    forward = estimate(np.array(edits), np.array(tokens), names, speakers)
    backward = estimate(np.array(edits[::-1]), np.array(tokens), names[::-1], speakers[::-1])
    assert forward == backward


def test_interval_depends_on_the_seed_of_the_draws_only() -> None:
    arguments = (list(range(12)), [30] * 12, _speakers(12))
    assert _one(*arguments) == _one(*arguments)
    assert _one(*arguments).interval != _one(*arguments, seed=1).interval


def test_no_limit_of_a_rate_is_negative() -> None:
    interval = _one([0] * 11 + [9], [30] * 12, _speakers(12)).interval
    assert interval is not None
    assert interval[0] == 0.0


def test_no_error_anywhere_has_a_point_for_an_interval() -> None:
    assert _one([0] * 12, [30] * 12, _speakers(12)).interval == (0.0, 0.0)


def test_seeds_that_agree_have_the_interval_of_one() -> None:
    edits = np.arange(20)
    names, tokens = [f"u{i}" for i in range(20)], np.full(20, 30)
    one = estimate(edits, tokens, names, _speakers(20))
    assert estimate(np.stack([edits] * 3), tokens, names, _speakers(20)) == one


def test_seeds_that_differ_widen_the_interval_by_students_t() -> None:
    # No unit differs from another, so all that varies is the seed: 0.1, 0.2 and 0.3.
    edits = np.repeat([[3], [6], [9]], 12, axis=1)
    names, tokens = [f"u{i}" for i in range(12)], np.full(12, 30)
    found = estimate(edits, tokens, names, _speakers(12), lowest=-math.inf)
    half = 4.30265 * 0.1 / math.sqrt(3)
    assert found.interval == pytest.approx((0.2 - half, 0.2 + half), abs=1e-5)
    assert found.upper == pytest.approx(0.2 + 2.91999 * 0.1 / math.sqrt(3), abs=1e-5)


@pytest.mark.parametrize(
    ("share", "freedom", "wanted"),
    [(0.975, 1, 12.7062), (0.975, 2, 4.30265), (0.95, 9, 1.83311), (0.975, 39, 2.02269)],
)
def test_students_t_is_the_tables(share: float, freedom: float, wanted: float) -> None:
    assert _t_quantile(share, freedom) == pytest.approx(wanted, rel=1e-5)


def _coverage(units: int, each: int, runs: int, of_seeds: float, trials: int) -> float:
    """Share of made-up test sets whose interval holds the true rate."""
    generator = np.random.default_rng(units + 7 * each + 31 * runs)
    names, speakers = [f"u{i}" for i in range(units * each)], _speakers(units, each)
    is_of_speakers = units >= 10
    covered = 0

    for _ in range(trials):
        rates = generator.normal(0.25, 0.06 if is_of_speakers else 0.0, (units, 1))
        moved = generator.normal(0.0, of_seeds, (runs, 1, 1))
        tokens = generator.integers(15, 45, (units, each))
        chance = np.clip(rates + moved + generator.normal(0.0, 0.05, (runs, units, each)), 0, 1)
        edits = generator.binomial(tokens, chance).reshape(runs, -1)
        interval = estimate(edits, tokens.ravel(), names, speakers).interval
        assert interval is not None
        covered += interval[0] <= 0.25 <= interval[1]

    return covered / trials


@pytest.mark.parametrize(
    ("units", "each", "runs", "of_seeds"),
    [(10, 4, 1, 0.0), (24, 8, 1, 0.0), (1, 10, 1, 0.0), (24, 8, 3, 0.01)],
)
def test_interval_covers_the_truth_in_90_to_98_of_100(
    units: int, each: int, runs: int, of_seeds: float
) -> None:
    assert 0.90 <= _coverage(units, each, runs, of_seeds, trials=300) <= 0.98


@pytest.mark.long
@pytest.mark.parametrize("runs", [1, 2, 3, 5])
@pytest.mark.parametrize(("units", "each"), [(10, 4), (40, 6), (1, 40), (2, 20), (9, 8)])
def test_interval_covers_the_truth_whatever_is_drawn(units: int, each: int, runs: int) -> None:
    assert 0.90 <= _coverage(units, each, runs, 0.01 * (runs > 1), trials=1000) <= 0.98
