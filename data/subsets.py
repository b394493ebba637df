"""Choose a part of a training split: by sex, dialect region, a list or amount of speech."""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from data.files import warn_once
from data.folders import read_text
from data.utterance import Utterance

_FORM = "give sex=f, dialect=1+2, minutes=10, a list of utterances, or several joined by commas"


def select_subset(utterances: Sequence[Utterance], subset: str) -> list[Utterance]:
    """Return the utterances that ``subset`` describes, in their order.

    Minutes are filled last, with utterances in an order that depends on their ids alone, as long
    as they fit, so ten minutes are part of twenty; speakers get in by chance.

    Args:
        utterances: A split.
        subset: ``key=value`` pairs joined by commas: ``sex`` (m or f), ``dialect`` (1 to 8, several
            joined by +), ``minutes``. Or a file of utterances, one a line, named by ``utt_id`` or
            by their recordings, in the first column; or a folder of such recordings.

    Raises:
        ValueError: If the description is not of that form, a list names an utterance that is not in
            the split, or nothing is left.
    """
    wanted: dict[str, str] = {}
    listed: set[str] | None = None
    for pair in subset.split(","):
        key, _, value = pair.strip().partition("=")
        if not value and os.path.exists(key):
            listed = _read_list(Path(key))
            continue
        if key not in ("sex", "dialect", "minutes") or not value or key in wanted:
            raise ValueError(f"subset {subset!r} has no meaning at {pair!r}: {_FORM}")
        wanted[key] = value

    chosen = list(utterances)
    if listed is not None:
        chosen = _choose(chosen, listed, subset)
    if sex := wanted.get("sex"):
        if sex not in ("m", "f"):
            raise ValueError(f"subset {subset!r}: sex is m or f")
        if not any(u.sex for u in chosen):
            raise ValueError(f"subset {subset!r}: the corpus does not say who is of which sex")
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
    taken = set()
    total = 0.0
    for utterance in sorted(utterances, key=lambda u: hashlib.sha256(u.utt_id.encode()).digest()):
        if total + utterance.seconds > seconds:
            break
        taken.add(utterance.utt_id)
        total += utterance.seconds
    if len(taken) == len(utterances) and 60 * float(minutes) > total:
        warn_once("subset", f"--subset {subset}: all there is are {total / 60:.1f} minutes")
    return [utterance for utterance in utterances if utterance.utt_id in taken]


def _read_list(path: Path) -> set[str]:
    """Return the names in a list, or of the recordings below a folder, without suffix and folder.

    The first line of a list of fairseq is the folder of the recordings, and has no other columns.
    """
    if path.is_dir():
        return {each.stem for each in path.rglob("*") if each.suffix in (".flac", ".wav")}
    lines = [line.split("\t") for line in read_text(path).split("\n") if line.strip()]
    if len(lines) > 1 and len(lines[0]) < len(lines[1]):
        del lines[0]
    return {Path(columns[0].strip()).name.partition(".")[0] for columns in lines}


def _choose(utterances: Sequence[Utterance], listed: set[str], subset: str) -> list[Utterance]:
    """Return the utterances of a list; a recording's name will do where no second one has it."""
    stems = Counter(utterance.path.stem for utterance in utterances)
    names = {
        each.utt_id: {each.utt_id, *([each.path.stem] if stems[each.path.stem] == 1 else [])}
        for each in utterances
    }
    if unknown := sorted(listed - set().union(*names.values())):
        what = "which several utterances have" if unknown[0] in stems else "which is not in train"
        others = f", and {len(unknown) - 1} others" if unknown[1:] else ""
        raise ValueError(
            f"subset {subset!r} names {unknown[0]!r}, {what}{others}: give another list"
        )
    return [each for each in utterances if listed & names[each.utt_id]]
