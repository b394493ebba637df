"""Error counts against brute force and jiwer; intervals, trn files and text normalisation."""

import errno
import time
from collections import Counter
from functools import cache
from pathlib import Path

import jiwer
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.metrics import (
    METRICS,
    align,
    deciding_metric,
    error_rate,
    metrics_of,
    worst_utterances,
    write_trn,
)
from data.text import normalize_text

strings = st.text("abc", max_size=7)
pairs = st.tuples(strings, strings)


def brute_force(reference: str, hypothesis: str) -> tuple[int, int]:
    """Smallest edits, and the fewest substitutions among alignments that have so few."""

    @cache
    def best(i: int, j: int) -> tuple[int, int]:
        if not i or not j:
            return i + j, 0
        differ = int(reference[i - 1] != hypothesis[j - 1])
        diagonal, up, left = best(i - 1, j - 1), best(i - 1, j), best(i, j - 1)
        return min(
            (diagonal[0] + differ, diagonal[1] + differ),
            (up[0] + 1, up[1]),
            (left[0] + 1, left[1]),
        )

    return best(len(reference), len(hypothesis))


def timit_like(num_utterances: int) -> tuple[list, list]:
    generator = np.random.default_rng(0)
    references, hypotheses = [], []
    for length in generator.normal(38, 10, num_utterances).clip(5).astype(int):
        reference = [f"p{i}" for i in generator.integers(39, size=length)]
        hypothesis = []
        for token, chance in zip(reference, generator.random(length), strict=True):
            hypothesis += [] if chance < 0.06 else ["p0", token] if chance < 0.1 else [token]
        references.append(reference)
        hypotheses.append([t if generator.random() > 0.1 else "p1" for t in hypothesis])
    return references, hypotheses


def test_error_rate_on_hand_example_matches() -> None:
    errors = error_rate([["sil", "sh", "iy", "sil"], ["ae"]], [["sil", "s", "sil"], ["ae", "dx"]])
    assert (errors.substitutions, errors.deletions, errors.insertions) == (1, 1, 1)
    assert (errors.rate, errors.reference_tokens) == (3 / 5, 5)
    assert errors.utterance_counts.tolist() == [[1, 1, 0, 4], [0, 0, 1, 1]]
    assert errors.utterance_edits.tolist() == [2, 1]
    assert errors.utterance_tokens.tolist() == [4, 1]


def test_error_rate_prefers_hits_among_minimal_alignments() -> None:
    errors = error_rate(["ab"], ["bc"])
    assert (errors.substitutions, errors.deletions, errors.insertions) == (0, 1, 1)


@given(st.lists(pairs, min_size=1, max_size=6))
def test_error_rate_equals_brute_force(utterances: list) -> None:
    errors = error_rate([r for r, _ in utterances], [h for _, h in utterances])
    for (reference, hypothesis), counts in zip(utterances, errors.utterance_counts, strict=True):
        s, d, i, n = counts.tolist()
        assert (s + d + i, s) == brute_force(reference, hypothesis)
        assert (n, n - d + i) == (len(reference), len(hypothesis))
        assert min(s, d, i) >= 0
    assert [errors.substitutions, errors.deletions, errors.insertions, errors.reference_tokens] == (
        errors.utterance_counts.sum(0).tolist()
    )


@given(st.lists(pairs, min_size=1, max_size=6))
def test_error_rate_is_at_least_the_length_difference(utterances: list) -> None:
    errors = error_rate([r for r, _ in utterances], [h for _, h in utterances])
    for (reference, hypothesis), edits in zip(utterances, errors.utterance_edits, strict=True):
        assert (
            abs(len(reference) - len(hypothesis)) <= edits <= max(len(reference), len(hypothesis))
        )


def test_error_rate_has_the_edits_of_jiwer() -> None:
    references, hypotheses = timit_like(600)
    errors = error_rate(references, hypotheses)
    theirs = jiwer.process_words(
        [" ".join(r) for r in references], [" ".join(h) for h in hypotheses]
    )
    edits = theirs.substitutions + theirs.deletions + theirs.insertions
    assert errors.utterance_edits.sum() == edits
    assert errors.reference_tokens == theirs.hits + theirs.substitutions + theirs.deletions
    assert errors.rate == theirs.wer


def test_error_rate_has_no_more_substitutions_than_jiwer() -> None:
    references, hypotheses = timit_like(100)
    errors = error_rate(references, hypotheses)
    utterances = zip(references, hypotheses, errors.utterance_counts, strict=True)
    for reference, hypothesis, counts in utterances:
        theirs = jiwer.process_words(" ".join(reference), " ".join(hypothesis))
        assert counts[0] <= theirs.substitutions


def test_error_rate_of_timit_test_set_takes_under_200_ms() -> None:
    references, hypotheses = timit_like(1680)
    seconds = []
    for _ in range(5):
        start = time.process_time()
        error_rate(references, hypotheses)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.2  # 0.04 observed


def test_error_rate_pools_empty_reference_as_insertions() -> None:
    errors = error_rate([[], ["a", "b"]], [["x"], ["a", "b"]])
    assert (errors.insertions, errors.rate) == (1, 0.5)


@pytest.mark.parametrize(("hypothesis", "rate"), [([], 0.0), (["x"], float("inf"))])
def test_error_rate_without_reference_tokens_is_zero_or_infinite(
    hypothesis: list, rate: float
) -> None:
    assert error_rate([[]], [hypothesis]).rate == rate


def test_error_rate_of_different_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match="2 references but 1 hypotheses"):
        error_rate(["a", "b"], ["a"])


def test_error_rate_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no utterances to score"):
        error_rate([], [])


def test_align_on_hand_example_matches() -> None:
    assert align(["sil", "sh", "iy"], ["sil", "s", "iy", "h#"]) == [
        ("hit", "sil", "sil"),
        ("substitution", "sh", "s"),
        ("hit", "iy", "iy"),
        ("insertion", None, "h#"),
    ]


@pytest.mark.parametrize(
    ("reference", "hypothesis", "operation"), [("a", "", "deletion"), ("", "a", "insertion")]
)
def test_align_with_one_side_empty_gives_one_operation(
    reference: str, hypothesis: str, operation: str
) -> None:
    assert align(reference, hypothesis) == [(operation, reference or None, hypothesis or None)]


@given(pairs)
def test_align_has_the_counts_of_error_rate_and_both_sides(pair: tuple) -> None:
    reference, hypothesis = pair
    steps = align(reference, hypothesis)
    counts = Counter(step[0] for step in steps)
    assert [counts["substitution"], counts["deletion"], counts["insertion"]] == (
        error_rate([reference], [hypothesis]).utterance_counts[0, :3].tolist()
    )
    assert "".join(r for _, r, _ in steps if r is not None) == reference
    assert "".join(h for _, _, h in steps if h is not None) == hypothesis
    assert all((operation == "hit") == (r == h) for operation, r, h in steps)


def test_worst_utterances_come_first_and_leave_out_the_perfect() -> None:
    errors = error_rate(["aa", "bbb", "cc", "d"], ["ax", "xxx", "xc", "d"])
    assert worst_utterances(errors, ["u1", "u2", "u3", "u4"], count=2) == [
        ("u2", 3, 3),
        ("u1", 1, 2),
    ]
    assert [u for u, _, _ in worst_utterances(errors, ["u1", "u2", "u3", "u4"])] == [
        "u2",
        "u1",
        "u3",
    ]


def test_write_trn_gives_tokens_then_id(tmp_path: Path) -> None:
    write_trn(tmp_path / "ref.trn", [("mdab0_si1039", ["sil", "hh"]), ("mdab0_si1669", [])])
    lines = (tmp_path / "ref.trn").read_text(encoding="utf-8")
    assert lines == "sil hh (mdab0_si1039)\n(mdab0_si1669)\n"


@pytest.mark.parametrize("utt_id", ["a b", "a(b", "a)", ""])
def test_write_trn_of_ambiguous_id_is_refused(tmp_path: Path, utt_id: str) -> None:
    with pytest.raises(ValueError, match="trn id"):
        write_trn(tmp_path / "ref.trn", [(utt_id, ["sil"])])


def test_write_trn_that_fails_leaves_the_older_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "ref.trn"
    write_trn(path, [("a", ["sil"])])

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ValueError, match="No space left on device"):
        write_trn(path, 9000 * [("b", ["aa"])])
    assert path.read_text() == "sil (a)\n"
    assert [each.name for each in path.parent.iterdir()] == ["ref.trn"]


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        (
            "She had your dark suit, in greasy wash-water!",
            "she had your dark suit in greasy wash water",
        ),
        ("Don't ask 'em; it\u2019s the dogs' o'clock.", "don't ask em it's the dogs o'clock"),
        ("  two\tspaces \n here -- ", "two spaces here"),
        ("Größe, ça: 3,5 % \u00ab\u0434\u0430\u00bb", "größe ça 3 5 \u0434\u0430"),
        ("'\"?!", ""),
        ("Defeat--the", "defeat the"),
        ("oh\u2014no, oh \u2013 no, oh\u2013no", "oh no oh no oh no"),
        ("and/or Monday...Tuesday well,then e.g.the", "and or monday tuesday well then e g the"),
        ("half-\nhearted snake_case a|b a+b", "half hearted snake case a b a b"),
        ("don`t don\u00b4t don\u02bct don\u2018t don\uff07t", "don't " * 4 + "don't"),
        ("'tis \u2018quoted\u2019 rock 'n' roll", "tis quoted rock n roll"),
        ("a\u00a0b a\u200bb so\u00adft \ufb01sh \uff21\uff22", "a b a b soft fish ab"),
        (
            "cafe\u0301 caf\u00e9 \u0939\u093f\u0928\u094d\u0926\u0940",
            "caf\u00e9 caf\u00e9 \u0939\u093f\u0928\u094d\u0926\u0940",
        ),
    ],
)
def test_normalize_text_keeps_words_only(text: str, normalized: str) -> None:
    assert normalize_text(text) == normalized


@given(st.text())
def test_normalize_text_twice_changes_nothing(text: str) -> None:
    once = normalize_text(text)
    assert normalize_text(once) == once


@pytest.mark.parametrize(
    "text",
    [
        "Defeat--the citizens, and/or wash-water",
        "oh\u2014no \u2026 well\u2026then",
        "a_b (c) \u00abd\u00bb \uff21\uff22 \ufb01sh 3.5 $5 ten%",
    ],
)
def test_normalize_text_splits_words_as_the_published_basic_normaliser(text: str) -> None:
    english_normalizer = pytest.importorskip("transformers.models.whisper.english_normalizer")
    theirs = english_normalizer.BasicTextNormalizer()(text.replace("(c)", "c"))
    assert normalize_text(text).split() == theirs.split()


def test_a_transcript_that_differs_in_its_dashes_only_has_no_errors() -> None:
    words = METRICS["wer"].tokens
    assert error_rate([words("Defeat--the and/or")], [words("defeat the and or")]).rate == 0.0
    assert "(normaliser 2)" in METRICS["wer"].units


def test_every_metric_has_a_label_and_one_that_decides() -> None:
    assert list(metrics_of("phones")) == ["per"]
    assert list(metrics_of("text")) == ["wer", "cer"]
    assert METRICS == metrics_of("phones") | metrics_of("text")
    assert deciding_metric({"cer": 0.1, "wer": 0.2, "dev": {}}) == "wer"
    assert deciding_metric({"dev": {}}) is None


@pytest.mark.parametrize(
    ("name", "text", "tokens"),
    [
        ("per", "h# ix q bcl b sil", ["sil", "ih", "sil", "b", "sil"]),
        ("wer", "Don't stop, co-op!", ["don't", "stop", "co", "op"]),
        ("cer", "A  b.", ["a", " ", "b"]),
    ],
)
def test_metric_cuts_a_label_into_its_tokens(name: str, text: str, tokens: list[str]) -> None:
    assert METRICS[name].tokens(text) == tokens
