"""Choose a part of a training split: by sex, dialect region or amount of speech."""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from tqdm import tqdm

from data.front_ends import check_context
from data.log_mel import AudioContext, read_context
from data.timit import Utterance, check_counts, load_timit

_FORM = "give sex=f, dialect=1+2, minutes=10, or several joined by commas"


@dataclass(frozen=True)
class Corpus:
    """What a run trains on and is scored on while it trains.

    Attributes:
        root: Its folder.
        train: Utterances of train, or of a subset of it.
        dev: Utterances of dev.
        longest: The longest utterance of train (all of it) and dev.
    """

    root: str
    train: list[Utterance]
    dev: list[Utterance]
    longest: Utterance

    def audio_context(self, audio_ctx: str) -> AudioContext:
        """Return what the option ``audio_ctx`` makes of this corpus; TEST counts too.

        Raises:
            ValueError: As `read_context`, or if an utterance of train, dev or test does not fit.
        """
        longest = max(u.seconds for u in [self.longest, *load_timit(self.root, "full-test")])
        context = read_context(audio_ctx, longest)
        check_context([*self.train, *self.dev, *load_timit(self.root, "test")], context)
        return context


def load_corpus(root: str, subset: str | None) -> Corpus:
    """List train, or a subset of it, and dev; say on stderr where TIMIT's counts are not met.

    Raises:
        ValueError: As `load_timit` and `select_subset`.
    """
    splits = {split: load_timit(root, split) for split in ("train", "dev")}
    for warning in (text for pair in splits.items() for text in check_counts(*pair)):
        tqdm.write(f"warning: {warning}", file=sys.stderr)
    train, dev = splits["train"], splits["dev"]
    longest = max([*train, *dev], key=lambda utterance: utterance.seconds)
    return Corpus(root, select_subset(train, subset) if subset else train, dev, longest)


def select_subset(utterances: Sequence[Utterance], subset: str) -> list[Utterance]:
    """Return the utterances that ``subset`` describes, in their order.

    Minutes are filled last, with utterances in an order that depends on their ids alone, as long
    as they fit, so ten minutes are part of twenty; speakers get in by chance.

    Args:
        utterances: A split.
        subset: ``key=value`` pairs joined by commas: ``sex`` (m or f), ``dialect`` (1 to 8, several
            joined by +), ``minutes``.

    Raises:
        ValueError: If the description is not of that form, or nothing is left.
    """
    wanted: dict[str, str] = {}
    for pair in subset.split(","):
        key, _, value = pair.strip().partition("=")
        if key not in ("sex", "dialect", "minutes") or not value or key in wanted:
            raise ValueError(f"subset {subset!r} has no meaning at {pair!r}: {_FORM}")
        wanted[key] = value
    chosen = list(utterances)
    if sex := wanted.get("sex"):
        if sex not in ("m", "f"):
            raise ValueError(f"subset {subset!r}: sex is m or f")
        chosen = [u for u in chosen if u.sex == sex]
    if dialects := wanted.get("dialect"):
        if not set(dialects.split("+")) <= set("12345678"):
            raise ValueError(f"subset {subset!r}: dialects are 1 to 8, joined by +")
        chosen = [u for u in chosen if str(u.dialect) in dialects.split("+")]
    if minutes := wanted.get("minutes"):
        chosen = _fill(chosen, minutes, subset)
    if not chosen:
        raise ValueError(f"subset {subset!r} leaves no utterance to train on: widen it")
    return chosen


def _fill(utterances: list[Utterance], minutes: str, subset: str) -> list[Utterance]:
    try:
        seconds = 60 * float(minutes)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"subset {subset!r}: minutes are a positive number")
    taken, total = set(), 0.0
    for utterance in sorted(utterances, key=lambda u: hashlib.sha256(u.utt_id.encode()).digest()):
        if total + utterance.seconds > seconds:
            break
        taken.add(utterance.utt_id)
        total += utterance.seconds
    return [utterance for utterance in utterances if utterance.utt_id in taken]
