"""What can be known of a corpus before anything is trained or decoded, and would fail after it."""

import sys
from collections.abc import Sequence

from tqdm import tqdm

from data.audio import SAMPLE_RATE, read_audio
from data.corpus import Split
from data.metrics import metrics_of
from data.utterance import Utterance

HOURS_READ = 10.0
"""Speech that is read to see whether it can be: all of TIMIT, or LibriSpeech's dev and test."""

_NAMED = 10


def named(utterances: Sequence[Utterance]) -> str:
    """Return the names of utterances with file and length, of many only the first ten."""
    shown = [f"{u.utt_id} ({u.path}, {u.seconds:.3f} s)" for u in utterances[:_NAMED]]
    others = len(utterances) - len(shown)
    return ", ".join(shown) + (f" and {others} others" if others else "")


def check_lengths(utterances: Sequence[Utterance], min_samples: int) -> None:
    """Check that a model has a frame for every utterance.

    Args:
        utterances: What it is to hear.
        min_samples: Samples at 16 kHz that its first frame takes.

    Raises:
        ValueError: If some are shorter; names them.
    """
    if short := [each for each in utterances if each.num_samples < min_samples]:
        raise ValueError(
            f"too short for one frame of the model, {1000 * min_samples / SAMPLE_RATE:g} ms: "
            f"{named(short)}: take such recordings out of the corpus"
        )


def check_references(splits: Sequence[Split], label: str) -> None:
    """Check that splits can be scored: that their references hold anything that is compared.

    Single utterances without are named on stderr; all that is recognised in them is an error.

    Args:
        splits: What is scored.
        label: "phones" or "text".

    Raises:
        ValueError: If all references of a split are empty.
    """
    metric = next(iter(metrics_of(label).values()))
    for split in splits:
        empty = [each for each in split.utterances if not metric.tokens(each.label(label))]
        if len(empty) == len(split.utterances):
            raise ValueError(
                f"no utterance of {split.name} has {label} that count ({metric.units}): correct "
                "the labels, or give another split or corpus"
            )
        if empty:
            text = f"{split.name}: no {label} that count in {named(empty)}"
            tqdm.write(f"warning: {text}", file=sys.stderr)


def check_recordings(utterances: Sequence[Utterance], hours: float = HOURS_READ) -> None:
    """Read recordings once, in their order, so that damage in them is found now.

    Args:
        utterances: What will be read.
        hours: Of speech, after which the rest is left to when it is needed.

    Raises:
        ValueError: If some can't be read; says what is wrong with the first and names the others.
    """
    problems: list[str] = []
    damaged: list[Utterance] = []
    seconds = 0.0
    for each in tqdm(utterances, "check", disable=None, leave=False):
        seconds += each.seconds
        if seconds > 3600 * hours:
            break
        try:
            is_resampled = each.sample_rate != SAMPLE_RATE
            read_audio(each.path, each.start, each.num_samples, is_resampled)
        except ValueError as error:
            problems.append(str(error))
            damaged.append(each)
    if problems:
        others = f" (so it is with {named(damaged[1:])})" if damaged[1:] else ""
        raise ValueError(f"{problems[0]}{others}")
