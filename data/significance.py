"""Tell whether two systems differ by more than chance: paired bootstrap, and MAPSSWE.

An utterance is a mapping with "utt_id", "speaker" and "operations", the alignment with its
reference in order: "=" a hit, "S" a substitution, "D" a deletion, "I" an insertion.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.intervals import Estimate, estimate

Utterances = Sequence[Mapping[str, Any]]

MIN_GOOD = 2  # reference tokens that both systems got right and that part two segments


@dataclass(frozen=True)
class SegmentTest:
    """What :func:`mapsswe` found.

    Attributes:
        segments: Segments in which either system erred.
        mean: Mean over them of the first system's errors minus the second's.
        z: Test statistic; positive where the first system errs more.
        p: Two-sided p-value.
    """

    segments: int
    mean: float
    z: float
    p: float


def pooled_rate(runs: Sequence[Utterances]) -> Estimate:
    """Return the error rate of one system, the mean over its runs, which differ in their seeds.

    Raises:
        ValueError: If the runs were scored on different utterances.
    """
    for run in runs[1:]:
        _check_pairs(runs[0], run)
    edits = np.array([_edits(run) for run in runs])
    return estimate(edits, *_columns(runs[0]))


def paired_difference(first: Sequence[Utterances], second: Sequence[Utterances]) -> Estimate:
    """Return the difference of two systems' error rates, first minus second, paired run by run.

    Both systems are drawn with the same units, so what makes a speaker hard for both cancels out;
    see :func:`data.intervals.estimate`.

    Args:
        first: Utterances of each run of the first system.
        second: As many of the second, those of the same seeds in the same order.

    Raises:
        ValueError: If the utterances differ.
    """
    for a, b in zip(first, second, strict=True):
        _check_pairs(first[0], a)
        _check_pairs(a, b)
    edits = [_edits(a) - _edits(b) for a, b in zip(first, second, strict=True)]
    return estimate(np.array(edits), *_columns(first[0]), lowest=-math.inf)


def mapsswe(first: Utterances, second: Utterances) -> SegmentTest:
    """Test two systems by the matched-pairs sentence-segment word error test.

    Each utterance is cut into segments, so that errors in different ones are as good as
    independent: a run of at least two neighbouring reference tokens that both systems got right,
    without an insertion of either between them, bounds a segment on each side, as does the end of
    an utterance; the run itself belongs to none. An insertion belongs to the segment at its place,
    a single right token to the segment around it. Segments without an error of either system are
    left out. With d the first system's errors in a segment minus the second's, over n segments,
    z = mean(d) / (std(d) / sqrt(n)), std with n - 1; p is the two-sided tail of the normal, which
    wants some 50 segments. Where all d are 0, or n < 2, z is 0 and p 1; where all are equal but
    not 0, z is infinite.

    Source:
        Gillick and Cox 1989, Some statistical issues in the comparison of speech recognition
        algorithms; NIST SCTK's sc_stats, whose least run of right tokens is two as well.

    Raises:
        ValueError: If the utterances differ.
    """
    _check_pairs(first, second)
    differences = np.array(
        [
            errors[0] - errors[1]
            for a, b in zip(first, second, strict=True)
            for errors in _segments(a["operations"], b["operations"])
        ],
        dtype=np.float64,
    )
    n = len(differences)
    mean = float(differences.mean()) if n else 0.0
    if n < 2 or not differences.any():
        return SegmentTest(n, mean, 0.0, 1.0)
    error = float(differences.std(ddof=1)) / math.sqrt(n)
    z = mean / error if error else math.copysign(math.inf, mean)
    return SegmentTest(n, mean, z, math.erfc(abs(z) / math.sqrt(2)))


def _segments(first: str, second: str) -> list[tuple[int, int]]:
    """Return the errors of both systems in each segment that has any."""
    systems = [_by_token(first), _by_token(second)]
    wrong = [wrong for wrong, _ in systems]
    inserted = [inserted for _, inserted in systems]
    num_tokens = len(wrong[0])
    right = [not (a or b) for a, b in zip(*wrong, strict=True)]
    run_start = 0
    bounds = [False] * num_tokens

    for i in range(num_tokens + 1):
        broken = i == num_tokens or not right[i] or inserted[0][i] or inserted[1][i]
        if broken:
            if i - run_start >= MIN_GOOD:
                bounds[run_start:i] = [True] * (i - run_start)
            run_start = i if i < num_tokens and right[i] else i + 1

    segments = [[0, 0]]
    for i in range(num_tokens + 1):
        for system in (0, 1):
            segments[-1][system] += inserted[system][i]
            if i < num_tokens:
                segments[-1][system] += wrong[system][i]
        if i < num_tokens and bounds[i]:
            segments.append([0, 0])

    return [(a, b) for a, b in segments if a or b]


def _by_token(operations: str) -> tuple[list[int], list[int]]:
    """Return whether each reference token is wrong, and the insertions before each, then after."""
    wrong: list[int] = []
    inserted = [0]
    for operation in operations:
        if operation == "I":
            inserted[-1] += 1
        else:
            wrong.append(int(operation != "="))
            inserted.append(0)
    return wrong, inserted


def _check_pairs(first: Utterances, second: Utterances) -> None:
    lists = [[(line["utt_id"], line["speaker"]) for line in lines] for lines in (first, second)]
    if lists[0] != lists[1]:
        raise ValueError(
            f"the two systems were scored on different utterances ({len(lists[0])} and "
            f"{len(lists[1])}): compare runs with the same test set"
        )
    for a, b in zip(first, second, strict=True):
        if _count(a["operations"])[1] != _count(b["operations"])[1]:
            raise ValueError(
                f"utterance {a['utt_id']} has references of different length: compare runs with "
                "the same target and test set"
            )


def _count(operations: str) -> tuple[int, int]:
    """Return errors and reference tokens of an utterance."""
    inserted = operations.count("I")
    return len(operations) - operations.count("="), len(operations) - inserted


def _edits(utterances: Utterances) -> np.ndarray:
    """Return the edits of each utterance, (U,) int64."""
    return np.array([_count(line["operations"])[0] for line in utterances])


def _columns(utterances: Utterances) -> tuple[np.ndarray, list[str], list[str]]:
    """Return reference tokens, name and speaker of each utterance."""
    tokens = np.array([_count(line["operations"])[1] for line in utterances])
    names = [str(line["utt_id"]) for line in utterances]
    return tokens, names, [str(line["speaker"]) for line in utterances]
