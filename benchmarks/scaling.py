"""Items without a model against a peer: error rates, and how our costs grow with the size."""

import math
from collections.abc import Sequence

import numpy as np
from torch import nn

from benchmarks.common import Contender, Report, Settings, alternate, import_peer, leave_out
from benchmarks.reprune import SPARSITY, draw_weights, prune_ours
from benchmarks.training import our_optimizer, our_step
from benchmarks.wav2vec2 import BLANK, build, make_batch
from data.metrics import error_rate
from data.phones import PHONE_SETS
from models.training.tasks import CTCTask
from pruning.masks import count_zeros

Texts = list[list[str]]
MEAN_TOKENS, SD_TOKENS, ERROR_SHARE = 38, 10, 0.15


def phone_sequences(count: int) -> tuple[Texts, Texts]:
    """Draw references of TIMIT-like lengths and hypotheses, 15 % of whose tokens were edited."""
    generator = np.random.default_rng(0)
    phones = list(PHONE_SETS[39])
    references, hypotheses = [], []
    for length in generator.normal(MEAN_TOKENS, SD_TOKENS, count).clip(8, 75).astype(int):
        reference = [phones[i] for i in generator.integers(len(phones), size=length)]
        hypothesis = []
        for phone in reference:
            edit = generator.integers(3) if generator.random() < ERROR_SHARE else 3
            if edit != 0:  # 0 deletes
                hypothesis.append(phone if edit != 1 else phones[generator.integers(len(phones))])
            if edit == 2:
                hypothesis.append(phones[generator.integers(len(phones))])
        references.append(reference)
        hypotheses.append(hypothesis)
    return references, hypotheses


def error_rate_item(settings: Settings) -> list[Report]:
    """Score as many phone sequences as TIMIT's full test has, against jiwer."""
    count = 20 if settings.smoke else 1680
    references, hypotheses = phone_sequences(count)
    tokens = sum(map(len, references))
    report = Report(f"error rate of {count} phone sequences, {tokens} reference tokens")
    contenders = [Contender("ours", lambda: error_rate(references, hypotheses))]
    jiwer = import_peer("jiwer")
    if jiwer is None:
        leave_out(report, "jiwer")
    else:
        lines = [[" ".join(text) for text in side] for side in (references, hypotheses)]
        contenders.append(Contender("jiwer", lambda: jiwer.process_words(*lines)))
    report.rows = alternate(contenders, settings.repeats or 10, settings.warmup)
    for row in report.rows[1:]:
        ours, theirs = report.rows[0].result, row.result
        edits = theirs.substitutions + theirs.deletions + theirs.insertions
        report.check(
            f"edits of ours and {row.name}: {ours.utterance_edits.sum()} and {edits}",
            ours.utterance_edits.sum() == edits,
        )
        report.check_close(f"rate of ours and {row.name}", ours.rate, theirs.wer, 1e-12)
    for row in report.rows:
        row.figures["tokens/s"] = tokens / row.median
    return [report]


def curve_item(settings: Settings) -> list[Report]:
    """Time our own work at growing sizes."""
    return [
        _step_curve(settings, "utterances", [1, 2] if settings.smoke else [1, 2, 4, 8, 16]),
        _step_curve(settings, "seconds", [0.5, 1.0] if settings.smoke else [1, 2, 4, 8]),
        _reprune_curve(settings, [0.01, 0.02] if settings.smoke else [1, 3, 10, 30, 85]),
        _error_rate_curve(settings, [10, 20] if settings.smoke else [420, 840, 1680, 3360, 6720]),
    ]


def _curve(
    settings: Settings, title: str, contenders: Sequence[Contender], sizes: Sequence[float]
) -> Report:
    """Time a contender for each size and add the power of the size that the time grows with."""
    rows = alternate(contenders, settings.repeats or 5, settings.warmup)
    report = Report(title, rows, has_ratios=False)
    for row, size in zip(rows, sizes, strict=True):
        row.figures["ms per unit"] = 1e3 * row.median / size
    report.note_growth(sizes)
    return report


def _step_curve(settings: Settings, what: str, sizes: Sequence[float]) -> Report:
    """Time w2v2-demo's train step at several batch sizes, or lengths of four utterances."""
    model = build(settings, "w2v2-demo")
    task, optimizer = CTCTask(model, BLANK, settings.precision), our_optimizer(model)

    def contender(size: float) -> Contender:
        lengths = [2.0] * int(size) if what == "utterances" else [float(size)] * 4
        inputs, targets = make_batch(lengths, settings.device)
        return Contender(f"{size:g} {what}", lambda: our_step(task, optimizer, inputs, targets))

    contenders = [contender(size) for size in sizes]
    report = _curve(settings, f"w2v2-demo train step by {what}", contenders, sizes)
    for row in report.rows:
        loss = float(row.result)
        report.check(f"loss per token at {row.name} is finite: {loss:.6g}", math.isfinite(loss))
    return report


def _reprune_curve(settings: Settings, millions: Sequence[float]) -> Report:
    """Time a re-prune of linear layers of about a million parameters each."""

    def modules(size: float) -> nn.ModuleList:
        width = 100 if settings.smoke else 1000
        blocks = max(1, round(size * 1e6 / width**2))
        return nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))

    def contender(size: float) -> Contender:
        layers = modules(size)
        return Contender(
            f"{size:g} M parameters", lambda: prune_ours(layers), lambda: draw_weights(layers)
        )

    contenders = [contender(size) for size in millions]
    report = _curve(settings, f"re-prune at {SPARSITY:g}", contenders, millions)
    for size in millions:
        layers = modules(size)
        draw_weights(layers)
        prune_ours(layers)
        zeros, total = count_zeros(dict(layers.named_parameters()))
        wanted = round(SPARSITY * total)
        report.check(f"{wanted} zeros at {size:g} M: {zeros}", zeros == wanted)
    return report


def _error_rate_curve(settings: Settings, counts: Sequence[int]) -> Report:
    """Time the error rate of corpora of several sizes, each the same sequences again and again."""
    first = counts[0]
    references, hypotheses = phone_sequences(first)

    def contender(count: int) -> Contender:
        times = count // first
        return Contender(
            f"{count} utterances", lambda: error_rate(references * times, hypotheses * times)
        )

    contenders = [contender(count) for count in counts]
    report = _curve(settings, "error rate by utterances", contenders, counts)
    once = int(report.rows[0].result.utterance_edits.sum())
    for row, count in zip(report.rows, counts, strict=True):
        edits, wanted = int(row.result.utterance_edits.sum()), once * (count // first)
        report.check(f"{wanted} edits in {row.name}: {edits}", edits == wanted)
    return report
