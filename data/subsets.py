"""Choose a part of a training split: by sex, dialect region or amount of speech."""

import hashlib
from collections.abc import Sequence

from data.utterance import Utterance

_FORM = "give sex=f, dialect=1+2, minutes=10, or several joined by commas"


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
