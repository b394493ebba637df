import math

import numpy as np
import pytest

from data.intervals import estimate
from data.significance import mapsswe, paired_difference, pooled_rate

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


def test_rate_of_a_run_is_the_one_that_scoring_reports() -> None:
    lines = _random(3)
    edits = [len(line["operations"].replace("=", "")) for line in lines]
    tokens = [len(line["operations"].replace("I", "")) for line in lines]
    names, speakers = ([line[key] for line in lines] for key in ("utt_id", "speaker"))
    scored = estimate(np.array(edits), np.array(tokens), names, speakers)
    assert pooled_rate([lines]) == scored


def test_rate_of_several_runs_is_the_mean_of_theirs() -> None:
    runs = [_random(seed) for seed in range(3)]
    mean = np.mean([pooled_rate([run]).rate for run in runs])
    assert pooled_rate(runs).rate == pytest.approx(mean)


def test_difference_is_that_of_the_pooled_rates() -> None:
    difference = paired_difference([_lines("SS==", "====")], [_lines("====", "===D")])
    assert difference.rate == 0.125
    assert difference.interval is None


def test_pairs_make_the_interval_narrower_than_unpaired_draws() -> None:
    hard, easy = "SSSSSSSS", "========"
    first = _lines(*[hard, easy] * 6, speakers="abcdefghijkl")
    second = _lines(*["=" + hard[1:], easy] * 6, speakers="abcdefghijkl")
    paired, single = (
        paired_difference([first], [second]).interval,
        pooled_rate([first]).interval,
    )
    assert paired is not None
    assert single is not None
    assert paired[1] - paired[0] < 0.2 * (single[1] - single[0])


def test_difference_of_several_seeds_pairs_each_with_its_own() -> None:
    runs = [_lines(*["S==="] * 12), _lines(*["SS=="] * 12)]
    assert paired_difference(runs, runs).interval == (0.0, 0.0)
    crossed = paired_difference(runs, runs[::-1]).interval  # -0.25 and 0.25 by seed
    assert crossed == pytest.approx((-12.7062 * 0.25, 12.7062 * 0.25), rel=1e-5)


def test_other_utterances_are_refused() -> None:
    other = [line | {"utt_id": "x"} for line in _random(0)]
    with pytest.raises(ValueError, match="different utterances .* the same test set"):
        mapsswe(_random(0), other)
    with pytest.raises(ValueError, match="different utterances"):
        paired_difference([_random(0)], [other])
    with pytest.raises(ValueError, match="different utterances"):
        pooled_rate([_random(0), other])


def test_references_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="u0 has references of different length: compare"):
        mapsswe(_lines("=="), _lines("==="))
