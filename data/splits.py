"""Which part of a corpus is train, dev and test, where the corpus says so and where it does not."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from data.utterance import Utterance

DRAWN = ("train", "dev", "test")
"""Splits that are drawn where a corpus does not have them."""

_SHARE = 10  # one in ten is dev, another is test
_SEED = 0


class Draw(NamedTuple):
    """How utterances were dealt to splits: the split of each ``utt_id``, and the rule in words."""

    split_of: Mapping[str, str]
    rule: str


def parts_of(split: str, parts: Sequence[str]) -> list[str]:
    """Return the parts that make up a split.

    That is the part of its name, else all whose names begin with its name and a hyphen or an
    underscore; the part without a name is "all".
    """
    if split in parts:
        return [split]
    if split == "all" and "" in parts:
        return [""]
    return [part for part in parts if part.startswith((f"{split}-", f"{split}_"))]


def missing_splits(parts: Sequence[str]) -> list[str]:
    """Return the splits that have to be drawn, from the nameless part or from train."""
    if "" in parts:
        return [split for split in DRAWN if split not in parts]
    has_train = bool(parts_of("train", parts))
    return [split for split in DRAWN if has_train and not parts_of(split, parts)]


def draw_splits(utterances: Sequence[Utterance], held_out: Sequence[str]) -> Draw:
    """Deal utterances to train and to the splits that are held out from it, a tenth each.

    Whole speakers are dealt where the corpus names at least three, else utterances. The order in
    which they are taken is that of a hash of their names, with seed 0: every run and every machine
    deals alike, whatever a run's own seed is.

    Args:
        utterances: Of the nameless part, or of train.
        held_out: "dev", "test" or both.

    Raises:
        ValueError: If there are too few utterances for that.
    """
    speakers = {utterance.speaker for utterance in utterances}
    by_speaker = "" not in speakers and len(speakers) > len(DRAWN) - 1
    names = speakers if by_speaker else {utterance.utt_id for utterance in utterances}
    ranked = sorted(names, key=lambda name: hashlib.sha256(f"{_SEED} {name}".encode()).digest())
    size = max(1, len(ranked) // _SHARE)
    if len(ranked) <= size * len(held_out):
        raise ValueError(
            f"{len(ranked)} utterances are too few to draw {' and '.join(held_out)} from: give a "
            "corpus with splits of its own, or a larger one"
        )

    split_of_name = dict.fromkeys(ranked, "train")
    for number, split in enumerate(held_out):
        split_of_name |= dict.fromkeys(ranked[number * size : (number + 1) * size], split)

    if by_speaker:
        dealt = {each.utt_id: split_of_name[each.speaker] for each in utterances}
        return Draw(dealt, f"a tenth of the speakers, drawn with seed {_SEED}")
    return Draw(split_of_name, f"a tenth of the utterances, drawn with seed {_SEED}")
