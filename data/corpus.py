"""A corpus of any format as the programs use it: its splits, and what a run trains on."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path

from tqdm import tqdm

from data.formats import find_corpus
from data.front_ends import check_context
from data.log_mel import AudioContext, read_context
from data.splits import draw_splits, missing_splits, parts_of
from data.subsets import select_subset
from data.utterance import Utterance, Wanted


@dataclass(frozen=True)
class Split:
    """Utterances of one split.

    Attributes:
        name: As it was asked for.
        utterances: Sorted by ``utt_id``.
        described: How the protocol line names it, with the rule where it was drawn.
    """

    name: str
    utterances: Sequence[Utterance]
    described: str


class Corpus:
    """A corpus that was found; its parts are read when a split needs them, and then kept.

    Args:
        data: Its folder or file, or a folder above.
        name: Its format, or "auto".
        wanted: What every utterance must have.

    Raises:
        ValueError: If there is none.
    """

    def __init__(self, data: str | Path, name: str = "auto", wanted: Wanted | None = None) -> None:
        self.format, self.root = find_corpus(data, name)
        self._wanted = wanted or Wanted()
        self._parts = self.format.parts(self.root)
        self._missing = missing_splits(self._parts)
        self._read: dict[str, list[Utterance]] = {}

    def read(self, split: str) -> Split:
        """Return a split; say on stderr what a reader of a number on it must know.

        Where the corpus has no dev or test of its own they are drawn, by
        ``data.splits.draw_splits``, from its train or, if it is not divided at all, from all of it.

        Raises:
            ValueError: If there is no such split, it is empty, a recording or a wanted label is
                missing or damaged, or two utterances have one name.
        """
        utterances, rule = self._list(split)
        for warning in self.format.warnings(split, utterances):
            tqdm.write(f"warning: {warning}", file=sys.stderr)
        described = self.format.describe(split)
        return Split(split, utterances, f"{described} ({rule})" if rule else described)

    def utterances(self, split: str) -> list[Utterance]:
        """Return the utterances of a split as :meth:`read` does, without a word on stderr."""
        return self._list(split)[0]

    def longest_of_test(self) -> Utterance:
        """Return the longest utterance of the test part: of TIMIT's whole TEST, not of its core."""
        test = self.utterances(self.format.whole_test)
        return max(test, key=lambda utterance: utterance.num_samples)

    def _list(self, split: str) -> tuple[list[Utterance], str]:
        """Return the utterances of a split, and the rule by which it was drawn, or nothing."""
        is_drawn = split in self._missing
        source = parts_of("train", self._parts) or [""]
        names = source if is_drawn else parts_of(split, self._parts)
        if not names:
            known = [part for part in [*self._parts, *self._missing] if part]
            raise ValueError(
                f"{self.root} has no split {split!r}: choose {', '.join(known)}, as in --splits"
            )

        utterances = [each for name in names for each in self._part(name)]
        rule = ""
        if self._missing and split != "all" and set(names) <= set(source):
            held_out = [name for name in self._missing if name != "train"]
            everything = [each for name in source for each in self._part(name)]
            draw = draw_splits(everything, held_out)
            wanted = split if is_drawn else "train"  # a part of train loses what is held out
            utterances = [each for each in utterances if draw.split_of[each.utt_id] == wanted]
            rule = draw.rule if split in held_out else ""
        return _checked(utterances, f"{self.root}: split {split!r}"), rule

    def _part(self, name: str) -> list[Utterance]:
        """Read a part, unless it has been read, and check that no wanted label is missing."""
        if name not in self._read:
            utterances = self.format.read(self.root, name, self._wanted)
            for label, utterance in product(sorted(self._wanted.labels), utterances):
                if not utterance.label(label):
                    raise ValueError(
                        f"{self.root}: no {label} for {utterance.utt_id}: add them or leave it "
                        "out, or give another --target"
                    )
            self._read[name] = utterances
        return self._read[name]


def _checked(utterances: Iterable[Utterance], where: str) -> list[Utterance]:
    """Sort utterances by name, and make sure that there are some and that names are unique."""
    ordered = sorted(utterances, key=lambda utterance: utterance.utt_id)
    if not ordered:
        raise ValueError(f"{where} is empty: use another split or corpus")
    for one, other in zip(ordered, ordered[1:], strict=False):
        if one.utt_id == other.utt_id:
            raise ValueError(
                f"{where} has two utterances {one.utt_id}, {one.path} and {other.path}: rename one"
            )
    return ordered


@dataclass(frozen=True)
class TrainingData:
    """What a run trains on and is scored on while it trains.

    Attributes:
        corpus: Where it comes from.
        train: Train, or a subset of it.
        dev: All of dev.
        test: What it is scored on at its end.
        longest: The longest utterance of train (all of it), dev and test; of TIMIT's whole TEST.
    """

    corpus: Corpus
    train: Split
    dev: Split
    test: Split
    longest: Utterance

    def audio_context(self, audio_ctx: str) -> AudioContext:
        """Return what the option ``audio_ctx`` makes of this corpus; its test part counts too.

        Raises:
            ValueError: As `read_context`, or if an utterance of train, dev or test does not fit.
        """
        context = read_context(audio_ctx, self.longest.seconds)
        for split in (self.train, self.dev, self.test):
            check_context(split.utterances, context)
        return context


def _check_apart(*splits: Split) -> None:
    """Refuse a recording that is in two splits, and name speakers who are on stderr.

    A score on what was trained on is none; one on known voices is flattering.
    """
    for first, second in combinations(splits, 2):
        heard = {(each.path, each.start): each for each in first.utterances}
        for other in second.utterances:
            if one := heard.get((other.path, other.start)):
                raise ValueError(
                    f"{one.utt_id} of {first.name} and {other.utt_id} of {second.name} are the "
                    f"same recording, {other.path}: leave it in one split"
                )
        speakers = {each.speaker for each in first.utterances} - {""}
        if known := speakers & {each.speaker for each in second.utterances}:
            text = f"{len(known)} speakers are in both {first.name} and {second.name}"
            tqdm.write(f"warning: {text} ({min(known)}, ...)", file=sys.stderr)


def load_corpus(
    corpus: Corpus, subset: str | None = None, splits: str = "train,dev,test"
) -> TrainingData:
    """Read what to train on, or a subset of it, what to choose the best weights by, and the test.

    Args:
        corpus: Where from.
        subset: As for ``select_subset``.
        splits: Names of the three splits, joined by commas.

    Raises:
        ValueError: As ``Corpus.read`` and ``select_subset``, if there are not three names, or if a
            recording is in two splits.
    """
    names = [name.strip() for name in splits.split(",")]
    if len(set(names)) != 3:
        raise ValueError(f"--splits {splits} are not three: give train,dev,test or other names")
    train, dev, test = (corpus.read(name) for name in names)
    _check_apart(train, dev, test)
    everything = [*train.utterances, *dev.utterances, *test.utterances]
    if test.name == "test":
        everything.append(corpus.longest_of_test())
    longest = max(everything, key=lambda utterance: utterance.num_samples)

    if subset:
        chosen = select_subset(train.utterances, subset)
        train = Split(train.name, chosen, f"{train.described}, subset {subset}")
    return TrainingData(corpus, train, dev, test, longest)
