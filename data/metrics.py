"""Error rates: what is compared, how it is aligned, counted, and written for SCTK."""

import re
from collections.abc import Callable, Container, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from data.files import write_file
from data.phones import fold_phones
from data.text import NORMALIZER, normalize_text
from data.utterance import PHONES, TEXT

Tokens = Sequence[Hashable]
Operation = Literal["hit", "substitution", "deletion", "insertion"]

_LETTERS = {"hit": "=", "substitution": "S", "deletion": "D", "insertion": "I"}
ROWS_TOGETHER = 256  # utterances aligned at once; of similar length, so that little is padding


@dataclass(frozen=True)
class Metric:
    """An error rate: which label of an utterance is compared, cut into which tokens.

    Attributes:
        label: "phones" or "text".
        tokens: Cuts a reference, and in the same way what was decoded, into what is compared.
        units: What the tokens are, for the protocol line.
    """

    label: str
    tokens: Callable[[str], list[str]]
    units: str


def _scored_phones(phones: str) -> list[str]:
    return fold_phones(phones.split(), 39)


def _words(text: str) -> list[str]:
    return normalize_text(text).split()


def _characters(text: str) -> list[str]:
    return list(normalize_text(text))


METRICS: dict[str, Metric] = {
    "per": Metric(PHONES, _scored_phones, "39 phones, q deleted"),
    "wer": Metric(TEXT, _words, f"lower case, {NORMALIZER}"),
    "cer": Metric(TEXT, _characters, f"lower case, {NORMALIZER}"),
}
"""Every error rate by its key in results.json. Of those of one label the first decides: which
checkpoint is best, what sweeps tune on and reports show."""


def metrics_of(label: str) -> dict[str, Metric]:
    """Return the metrics that compare ``label``, the one that decides first."""
    return {name: metric for name, metric in METRICS.items() if metric.label == label}


def deciding_metric(results: Container[str]) -> str | None:
    """Return the metric that decides among those in ``results``; None if there is none."""
    return next((name for name in METRICS if name in results), None)


@dataclass(frozen=True, eq=False)
class ErrorRate:
    """Errors pooled over utterances.

    Attributes:
        rate: (substitutions + deletions + insertions) / reference_tokens, a fraction; it can exceed
            1. Without any reference token it is 0.0 if there is no error either, otherwise inf.
        substitutions: Reference tokens aligned with another token.
        deletions: Reference tokens aligned with nothing.
        insertions: Hypothesis tokens aligned with nothing.
        reference_tokens: Number of reference tokens.
        utterance_counts: (U, 4) int64; for each utterance its substitutions, deletions, insertions
            and reference tokens.
    """

    rate: float
    substitutions: int
    deletions: int
    insertions: int
    reference_tokens: int
    utterance_counts: np.ndarray

    @property
    def utterance_edits(self) -> np.ndarray:
        """Edits of each utterance, (U,) int64."""
        return self.utterance_counts[:, :3].sum(1)

    @property
    def utterance_tokens(self) -> np.ndarray:
        """Reference tokens of each utterance, (U,) int64."""
        return self.utterance_counts[:, 3]


def error_rate(references: Sequence[Tokens], hypotheses: Sequence[Tokens]) -> ErrorRate:
    """Count the errors of all utterances together: PER of phones, WER of words, CER of characters.

    Each utterance has its minimal number of edits (Levenshtein). Where several alignments reach it,
    the one with the most hits counts, that is with the fewest substitutions; this settles all
    three counts. An utterance with an empty reference adds its hypothesis as insertions.

    Args:
        references: A sequence of hashable tokens for each utterance; a plain string is a sequence
            of characters.
        hypotheses: As many, in the same order.

    Raises:
        ValueError: If the two numbers of utterances differ or are 0.
    """
    if len(references) != len(hypotheses):
        raise ValueError(
            f"{len(references)} references but {len(hypotheses)} hypotheses: "
            "give one hypothesis for each reference"
        )
    if not references:
        raise ValueError("no utterances to score: the split is empty")
    ids: dict[Hashable, int] = {}
    encoded_references = [_encode(tokens, ids) for tokens in references]
    encoded_hypotheses = [_encode(tokens, ids) for tokens in hypotheses]
    num_references = np.array([len(tokens) for tokens in references])
    num_hypotheses = np.array([len(tokens) for tokens in hypotheses])
    edits = np.zeros_like(num_references)
    substitutions = np.zeros_like(num_references)
    order = np.lexsort((num_hypotheses, num_references))
    for start in range(0, len(order), ROWS_TOGETHER):
        rows = order[start : start + ROWS_TOGETHER]
        edits[rows], substitutions[rows] = _count_edits(
            _pad([encoded_references[row] for row in rows], -1),
            num_references[rows],
            _pad([encoded_hypotheses[row] for row in rows], -2),
            num_hypotheses[rows],
        )
    # edits = S + D + I and D - I = references - hypotheses leave no choice once S is known.
    surplus = num_references - num_hypotheses
    insertions = (edits - substitutions - surplus) // 2
    counts = np.stack([substitutions, insertions + surplus, insertions, num_references], axis=1)
    s, d, i, n = (int(total) for total in counts.sum(0))
    rate = (s + d + i) / n if n else (float("inf") if i else 0.0)
    return ErrorRate(rate, s, d, i, n, counts)


def _encode(tokens: Tokens, ids: dict[Hashable, int]) -> list[int]:
    """Number the tokens, adding new ones to ``ids``."""
    return [ids.setdefault(token, len(ids)) for token in tokens]


def _pad(rows: list[list[int]], value: int) -> np.ndarray:
    padded = np.full((len(rows), max(map(len, rows))), value, dtype=np.int32)
    for row, ids in zip(padded, rows, strict=True):
        row[: len(ids)] = ids
    return padded


def _edit_weight(num_references: int, num_hypotheses: int) -> int:
    """Cost of an edit in units of the extra cost of a substitution: more than all of those."""
    return min(num_references, num_hypotheses) + 1


def _next_row(above: np.ndarray, differs: np.ndarray, weight: int) -> np.ndarray:
    """Advance the table of costs by one reference token, for every utterance at once.

    Args:
        above: (U, H + 1) costs of aligning the reference so far with each hypothesis prefix.
        differs: (U, H) whether the new reference token differs from each hypothesis token.
        weight: Cost of a deletion or insertion; a substitution costs one more, a hit nothing.
    """
    row = above + weight
    np.minimum(row[:, 1:], above[:, :-1] + differs * (weight + 1), out=row[:, 1:])
    # A run of insertions adds `weight` for each column: take that slope out, then the best start
    # of a run is a running minimum.
    slope = np.arange(row.shape[1], dtype=row.dtype) * weight
    row -= slope
    np.minimum.accumulate(row, axis=1, out=row)
    row += slope
    return row


def _count_edits(
    references: np.ndarray,
    num_references: np.ndarray,
    hypotheses: np.ndarray,
    num_hypotheses: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return edits and substitutions, (U,) each, of padded id rows sorted by reference length."""
    weight = _edit_weight(references.shape[1], hypotheses.shape[1])
    first_row = np.arange(hypotheses.shape[1] + 1, dtype=np.int64) * weight
    costs = np.tile(first_row, (len(references), 1))
    for i in range(references.shape[1]):
        first = np.searchsorted(num_references, i, side="right")  # those before it have ended
        differs = references[first:, i, None] != hypotheses[first:]
        costs[first:] = _next_row(costs[first:], differs, weight)
    totals = costs[np.arange(len(costs)), num_hypotheses]
    return totals // weight, totals % weight


def align(
    reference: Tokens, hypothesis: Tokens
) -> list[tuple[Operation, Hashable | None, Hashable | None]]:
    """Align one pair, with the same counts as :func:`error_rate`.

    Among alignments with equal counts the one is taken that, read from the end, takes a hit or a
    substitution first, then a deletion, then an insertion.

    Returns:
        (operation, reference token, hypothesis token) in order; the token that an insertion or a
        deletion lacks is None.
    """
    weight = _edit_weight(len(reference), len(hypothesis))
    row = np.arange(len(hypothesis) + 1, dtype=np.int64)[None] * weight
    rows = [row]
    for token in reference:
        differs = np.array([[token != other for other in hypothesis]], dtype=bool)
        rows.append(_next_row(rows[-1], differs.reshape(1, len(hypothesis)), weight))

    costs = np.concatenate(rows)
    steps: list[tuple[Operation, Hashable | None, Hashable | None]] = []
    i = len(reference)
    j = len(hypothesis)
    while i or j:
        if i and j:
            differ = reference[i - 1] != hypothesis[j - 1]
            diagonal = costs[i, j] == costs[i - 1, j - 1] + differ * (weight + 1)
        else:
            differ = diagonal = False
        if diagonal:
            i -= 1
            j -= 1
            steps.append(("substitution" if differ else "hit", reference[i], hypothesis[j]))
        elif i and costs[i, j] == costs[i - 1, j] + weight:
            i -= 1
            steps.append(("deletion", reference[i], None))
        else:
            j -= 1
            steps.append(("insertion", None, hypothesis[j]))

    return steps[::-1]


def worst_utterances(
    errors: ErrorRate, utt_ids: Sequence[str], count: int = 10
) -> list[tuple[str, int, int]]:
    """Return (utt_id, edits, reference tokens) of the utterances with most edits, worst first.

    Among equals the earlier utterance comes first; utterances without edits are left out.
    """
    edits = errors.utterance_edits
    tokens = errors.utterance_tokens
    order = np.argsort(-edits, kind="stable")[:count]
    return [(utt_ids[row], int(edits[row]), int(tokens[row])) for row in order if edits[row]]


def operations(reference: Tokens, hypothesis: Tokens) -> str:
    """Return the alignment of :func:`align` as a letter a step: ``=``, ``S``, ``D`` or ``I``."""
    return "".join(_LETTERS[step[0]] for step in align(reference, hypothesis))


def write_trn(path: str | Path, utterances: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Write (utt_id, tokens) pairs in SCTK's trn format, one line ``tokens (utt_id)`` for each.

    Raises:
        ValueError: If an id holds white space or a parenthesis, or the file cannot be written.
    """
    lines = []
    for utt_id, tokens in utterances:
        if re.search(r"[\s()]", utt_id) or not utt_id:
            raise ValueError(f"trn id {utt_id!r} is empty or holds white space or a parenthesis")
        lines.append(" ".join([*tokens, f"({utt_id})"]) + "\n")
    write_file(path, "".join(lines).encode())
