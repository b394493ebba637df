import math

import numpy as np
import pytest

from data.metrics import bootstrap_interval
from data.significance import mapsswe, paired_bootstrap, pooled_interval

Lines = list[dict[str, str]]


def _lines(*operations: str, speakers: str = "abcdef") -> Lines:
    return [
        {"utt_id": f"u{i}", "speaker": speakers[i % len(speakers)], "operations": line}
        for i, line in enumerate(operations)
    ]


def _random(seed: int, wrong: float = 0.3) -> Lines:
    generator = np.random.default_rng(seed)
    tokens = generator.choice(["=", "S", "=I"], (20, 12), p=[1 - wrong, wrong / 2, wrong / 2])
    return _lines(*("".join(line) for line in tokens))


def _differences(first: str, second: str) -> tuple[int, float]:
    test = mapsswe(_lines(first), _lines(second))
    return test.segments, test.mean * test.segments


def test_mapsswe_is_the_hand_computed_example() -> None:
    # Segments: "S" | "SS" against "==" | "=" against "I" | "D": differences 1, 2, -1, 1.
    first = _lines("S==SS==", "======", "==D")
    second = _lines("=======", "===I===", "===")
    test = mapsswe(first, second)
    assert test.segments == 4
    assert test.mean == 0.75
    z = 0.75 / (math.sqrt((0.25**2 + 1.25**2 + 1.75**2 + 0.25**2) / 3) / math.sqrt(4))
    assert test.z == pytest.approx(z)
    assert test.z == pytest.approx(1.19208, abs=1e-5)
    assert test.p == pytest.approx(0.233, abs=5e-4)


def test_mapsswe_turned_round_changes_the_sign_only() -> None:
    first, second = mapsswe(_random(0), _random(1)), mapsswe(_random(1), _random(0))
    assert first.segments == second.segments
    assert (first.z, first.p) == pytest.approx((-second.z, second.p))


def test_two_right_tokens_part_segments() -> None:
    assert _differences("S==S", "====") == (2, 2)


def test_one_right_token_parts_none() -> None:
    assert _differences("S=S", "===") == (1, 2)


def test_tokens_right_in_one_system_only_part_none() -> None:
    assert _differences("S==S", "=S==") == (1, 1)


def test_an_insertion_inside_a_run_of_two_breaks_it() -> None:
    assert _differences("S=I=S", "====") == (1, 3)


def test_an_insertion_between_two_runs_is_a_segment() -> None:
    assert _differences("==I==", "====") == (1, 1)


def test_an_insertion_at_the_end_is_counted() -> None:
    assert _differences("===I", "===") == (1, 1)


def test_the_end_of_an_utterance_parts_segments() -> None:
    assert mapsswe(_lines("S", "S"), _lines("=", "=")).segments == 2


def test_segments_without_errors_are_left_out() -> None:
    assert mapsswe(_lines("===", "=", ""), _lines("===", "=", "")).segments == 0


def test_a_system_does_not_differ_from_itself() -> None:
    test = mapsswe(_random(0), _random(0))
    assert (test.mean, test.z, test.p) == (0.0, 0.0, 1.0)


def test_one_segment_tests_nothing() -> None:
    assert mapsswe(_lines("S"), _lines("=")).p == 1.0


def test_equal_differences_everywhere_are_certain() -> None:
    test = mapsswe(_lines("S", "S"), _lines("=", "="))
    assert (test.z, test.p) == (math.inf, 0.0)


def test_interval_is_the_one_that_scoring_reports() -> None:
    lines = _random(3)
    edits = [len(line["operations"].replace("=", "")) for line in lines]
    tokens = [len(line["operations"].replace("I", "")) for line in lines]
    speakers = [line["speaker"] for line in lines]
    assert pooled_interval(lines) == bootstrap_interval(edits, tokens, speakers)


def test_interval_of_one_speaker_is_a_point() -> None:
    assert pooled_interval(_lines("=S", "==", speakers="a")) == (0.25, 0.25)


def test_interval_without_errors_is_zero() -> None:
    assert pooled_interval(_lines("==", "==")) == (0.0, 0.0)


def test_interval_of_seeds_that_agree_is_that_of_one() -> None:
    assert pooled_interval(_random(0) * 3) == pytest.approx(pooled_interval(_random(0)))


def test_interval_without_reference_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="no reference tokens, so no interval: score a test set"):
        pooled_interval(_lines("I", ""))


def test_difference_is_that_of_the_pooled_rates() -> None:
    difference = paired_bootstrap(_lines("SS==", "===="), _lines("====", "===D"))
    assert difference.rate == 0.125
    assert difference.low <= 0.125 <= difference.high


def test_a_constant_difference_has_a_point_for_an_interval() -> None:
    first, second = _lines("SS==", "S===", "SSSS"), _lines("S===", "====", "SSS=")
    difference = paired_bootstrap(first, second)
    assert (difference.low, difference.high) == pytest.approx((0.25, 0.25))


def test_pairs_make_the_interval_narrower_than_unpaired_draws() -> None:
    hard, easy = "SSSSSSSS", "========"
    first = _lines(*[hard, easy] * 6, speakers="abcdefghijkl")
    second = _lines(*["=" + hard[1:], easy] * 6, speakers="abcdefghijkl")
    paired, single = paired_bootstrap(first, second), pooled_interval(first)
    assert paired.high - paired.low < 0.2 * (single[1] - single[0])


def test_other_utterances_are_refused() -> None:
    other = [line | {"utt_id": "x"} for line in _random(0)]
    for test in (paired_bootstrap, mapsswe):
        with pytest.raises(ValueError, match="different utterances .* the same test set"):
            test(_random(0), other)


def test_references_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="u0 has references of different length: compare"):
        mapsswe(_lines("=="), _lines("==="))
