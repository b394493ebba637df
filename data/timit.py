"""TIMIT and other corpora of its layout: folders to utterances, splits, and counts.

The layout is ``{TRAIN,TEST}/DR1..8/SPEAKER/SENTENCE.{WAV,PHN,WRD,TXT}`` in any case, with ``.WAV``
SPHERE or RIFF. Reading labels and lengths touches no samples; ``data.audio`` reads those.
"""

import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.audio import is_sphere, measure
from data.folders import read_text, subfolders
from data.phones import PHONES_61, fold_phones
from data.timit_speakers import CORE_TEST_SPEAKERS, DEV_SPEAKERS
from data.utterance import PHONES, TEXT, CorpusFormat, Phone, Utterance, Wanted

SPLITS = ("train", "dev", "test", "full-test")

_TIMIT_UTTERANCES = {"train": 3696, "dev": 400, "test": 192, "full-test": 1344}
_TIMIT_REFERENCE_PHONES = {"dev": 15057, "test": 7215}
_SEARCH_DEPTH = 3
_DEV_EVERY = 10
_REMEDY = (
    "give the folder that holds TRAIN and TEST (TIMIT is LDC93S1, catalog.ldc.upenn.edu/LDC93S1), "
    "or use --data demo, which needs no corpus"
)


@dataclass(frozen=True)
class _Recording:
    """Files of one sentence, unread."""

    speaker: str
    sentence: str
    audio: Path
    labels: Mapping[str, Path]  # by lower-case extension: phn, wrd, txt


class TimitFormat(CorpusFormat):
    """TIMIT, and other corpora in its layout."""

    looks_for = "folders TRAIN and TEST with DR1..8 in them"
    whole_test = "full-test"

    def find(self, data: Path) -> Path | None:
        """Return the folder at or up to three levels below ``data`` that holds TRAIN and TEST."""
        return _find_corpus(data) if data.is_dir() else None

    def almost(self, data: Path) -> str:
        """Say where only one of TRAIN and TEST is, at ``data`` or below."""
        level = [data] if data.is_dir() else []
        for _ in range(_SEARCH_DEPTH + 1):
            for folder in level:
                groups = _by_name(folder)
                for there, missing in (("train", "TEST"), ("test", "TRAIN")):
                    regions = [name for part in groups.get(there, []) for name in _by_name(part)]
                    if any(re.fullmatch("dr[1-8]", name) for name in regions):
                        return f"{folder} has {there.upper()} and no {missing}: restore {missing}"
            level = [path for folder in level for path in subfolders(folder)]
        return ""

    def parts(self, root: Path) -> list[str]:
        """Return the splits of :func:`load_timit`."""
        return list(SPLITS)

    def read(self, root: Path, part: str, wanted: Wanted) -> list[Utterance]:
        """List a split by :func:`load_timit`."""
        return load_timit(root, part, wanted)

    def describe(self, split: str) -> str:
        """Say that no split holds the SA sentences."""
        return f"{split} without SA"

    def warnings(self, split: str, utterances: list[Utterance]) -> list[str]:
        """Return where TIMIT's published counts are not met."""
        return check_counts(split, utterances)


def load_timit(root: str | Path, split: str, wanted: Wanted | None = None) -> list[Utterance]:
    """List a split of TIMIT, or of another corpus in its layout.

    Where TEST holds speakers of TIMIT's core test or development set, ``test`` and ``dev`` are
    those 24 and 50 speakers and ``train`` is all of TRAIN. Elsewhere ``test`` is all of TEST,
    ``dev`` is every tenth TRAIN speaker (sorted, the 10th, 20th, ...) and ``train`` the others.
    ``full-test`` is all of TEST. The SA sentences, the same two for every speaker, are in no split.
    Copies of one sentence count once, a SPHERE one first.

    Args:
        root: The folder of TRAIN and TEST, or one up to three levels above; any case.
        split: "train", "dev", "test" or "full-test".
        wanted: The labels that every sentence must have, phones from .PHN, text from .TXT; without
            it both.

    Returns:
        The utterances by ``utt_id``; the same list on every machine.

    Raises:
        ValueError: If the corpus is not there, the split is unknown or empty, a recording or label
            file is missing or damaged, a phone is not of the 61, or phone times overlap or run
            backward.

    Warns:
        UserWarning: If only some of TIMIT's speakers of the split are there.

    Source:
        The split and the treatment of SA are those of Kaldi's ``egs/timit/s5``. That recipe trusts
        the labels, and we check them.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    corpus = _find_corpus(Path(root))
    if corpus is None:
        raise ValueError(
            f"no TIMIT at {root}: looked for folders TRAIN and TEST down to {_SEARCH_DEPTH} levels "
            f"below: {_REMEDY}"
        )

    wanted = wanted or Wanted()
    train = _list_recordings(corpus, "train")
    test = _list_recordings(corpus, "test")
    if shared := sorted(train.keys() & test.keys()):
        raise ValueError(
            f"{corpus}: speaker {shared[0]} is in TRAIN and in TEST: restore TIMIT's folders"
        )

    is_timit = not test.keys().isdisjoint(CORE_TEST_SPEAKERS | DEV_SPEAKERS)
    if is_timit:
        chosen = _choose_timit(split, train, test)
    else:
        chosen = _choose_other(split, train, test)

    utterances = [
        _read_utterance(recording, is_timit, wanted)
        for recordings in chosen
        for recording in recordings
        if not recording.sentence.startswith("sa")
    ]
    if not utterances:
        raise ValueError(f"{corpus}: nothing is in split {split!r}: use another split or corpus")

    return sorted(utterances, key=lambda utterance: utterance.utt_id)


def check_counts(split: str, utterances: Sequence[Utterance]) -> list[str]:
    """Compare a split of TIMIT with its published counts.

    Args:
        split: As for ``load_timit``.
        utterances: What ``load_timit`` gave for it.

    Returns:
        One line per difference: in utterances, and for ``dev`` and ``test`` in reference phones (39
        set, ``q`` deleted, every ``sil`` kept). Empty for other corpora, which have no such counts.

    Source:
        TESTSET.DOC of the TIMIT disc, and the totals in the RESULTS file of Kaldi's s5 recipe.
    """
    if not any(utterance.is_timit for utterance in utterances):
        return []
    num_phones = sum(len(_scored_phones(utterance)) for utterance in utterances)
    found = [
        ("utterances", len(utterances), _TIMIT_UTTERANCES.get(split)),
        ("reference phones", num_phones, _TIMIT_REFERENCE_PHONES.get(split)),
    ]
    return [
        f"TIMIT {split} has {count} {what} where {wanted} are expected: this copy is not "
        "complete, and its error rates are not comparable"
        for what, count, wanted in found
        if wanted is not None and count != wanted
    ]


def _scored_phones(utterance: Utterance) -> list[str]:
    return fold_phones([phone.label for phone in utterance.phones], 39)


def _choose_timit(
    split: str,
    train: Mapping[str, list[_Recording]],
    test: Mapping[str, list[_Recording]],
) -> list[list[_Recording]]:
    """Choose by TIMIT's speaker lists."""
    if split == "train":
        return list(train.values())
    if split == "full-test":
        return list(test.values())
    wanted = CORE_TEST_SPEAKERS if split == "test" else DEV_SPEAKERS
    if missing := sorted(wanted - test.keys()):
        warnings.warn(
            f"TIMIT {split} lacks {len(missing)} of its {len(wanted)} speakers, so its error rates "
            f"are not comparable: {' '.join(missing)}",
            stacklevel=3,
        )
    return [test[speaker] for speaker in test if speaker in wanted]


def _choose_other(
    split: str,
    train: Mapping[str, list[_Recording]],
    test: Mapping[str, list[_Recording]],
) -> list[list[_Recording]]:
    """Choose by counting, in a corpus that has no lists of speakers."""
    if split in ("test", "full-test"):
        return list(test.values())
    dev_speakers = sorted(train)[_DEV_EVERY - 1 :: _DEV_EVERY]
    if split == "dev" and not dev_speakers:
        raise ValueError(
            f"dev is empty: it is every tenth TRAIN speaker and there are {len(train)}: "
            "use a corpus of ten or more"
        )
    return [train[speaker] for speaker in train if (speaker in dev_speakers) == (split == "dev")]


def _find_corpus(root: Path) -> Path | None:
    """Return the folder at or below ``root`` that holds TRAIN and TEST, the nearest one, or None.

    Raises:
        ValueError: If two are equally near.
    """
    level = [root] if root.is_dir() else []
    for _ in range(_SEARCH_DEPTH + 1):
        found = [folder for folder in level if {"train", "test"} <= _by_name(folder).keys()]
        if len(found) > 1:
            raise ValueError(
                f"{len(found)} corpora below {root}, {found[0]} and {found[1]}: give one of them"
            )
        if found:
            return found[0]
        level = [path for folder in level for path in subfolders(folder)]
    return None


def _by_name(folder: Path) -> dict[str, list[Path]]:
    """Group a folder's subfolders by lower-case name."""
    groups: dict[str, list[Path]] = {}
    for path in subfolders(folder):
        groups.setdefault(path.name.lower(), []).append(path)
    return groups


def _list_recordings(corpus: Path, part: str) -> dict[str, list[_Recording]]:
    """List TRAIN or TEST by speaker, copies removed, nothing opened that has no copy."""
    copies: dict[tuple[str, str], list[_Recording]] = {}
    for speaker_folder in _speaker_folders(corpus, part):
        for recording in _speaker_recordings(speaker_folder):
            copies.setdefault((recording.speaker, recording.sentence), []).append(recording)
    speakers: dict[str, list[_Recording]] = {}
    for (speaker, _), recordings in sorted(copies.items()):
        if len(recordings) > 1:
            recordings.sort(key=lambda r: (not is_sphere(r.audio), str(r.audio)))
        speakers.setdefault(speaker, []).append(recordings[0])
    if not speakers:
        raise ValueError(
            f"{corpus}: no recordings in {part.upper()}/DR1..8/SPEAKER/*.WAV: {_REMEDY}"
        )
    return speakers


def _speaker_folders(corpus: Path, part: str) -> Iterator[Path]:
    for part_folder in _by_name(corpus)[part]:
        for name, folders in _by_name(part_folder).items():
            if re.fullmatch("dr[1-8]", name):
                for folder in folders:
                    yield from subfolders(folder)


def _speaker_recordings(folder: Path) -> Iterator[_Recording]:
    """Yield one recording per audio file of a speaker, copies included."""
    speaker = folder.name.lower()
    if speaker[0] not in "fm":
        raise ValueError(f"{folder}: a speaker's name begins with F or M: rename the folder")
    audio: dict[str, list[Path]] = {}
    labels: dict[str, dict[str, Path]] = {}
    others: dict[str, Path] = {}

    for name in sorted(os.listdir(folder)):
        stem, _, extension = name.lower().partition(".")
        if extension in ("wav", "wav.wav"):
            audio.setdefault(stem, []).append(folder / name)
        elif extension in ("phn", "wrd", "txt"):
            labels.setdefault(stem, {}).setdefault(extension, folder / name)
        else:
            others.setdefault(stem, folder / name)

    for sentence, paths in audio.items():
        if not re.fullmatch(r"s[aix]\d+", sentence):
            raise ValueError(
                f"{paths[0]}: a sentence is named SA, SI or SX and a number: rename or remove it"
            )
        for path in paths:
            yield _Recording(speaker, sentence, path, labels.get(sentence, {}))

    if alone := sorted(labels.keys() - audio.keys()):
        found = others.get(alone[0])
        remedy = "restore it"
        if found:
            remedy = f"{found.name} is there; whatever they hold, recordings are named .WAV here"
        raise ValueError(f"{folder}: labels of {alone[0]} but no .WAV: {remedy}")


def _read_utterance(recording: _Recording, is_timit: bool, wanted: Wanted) -> Utterance:
    path = recording.audio
    labels = recording.labels
    for kind, label in (("phn", PHONES), ("txt", TEXT)):
        if label in wanted.labels and kind not in labels:
            raise ValueError(
                f"{path}: no {recording.sentence.upper()}.{kind.upper()} beside it: "
                "restore the file"
            )

    span = measure(path, wanted.resample)
    words = _read_segments(labels["wrd"]) if "wrd" in labels else []
    return Utterance(
        utt_id=f"{recording.speaker}_{recording.sentence}",
        speaker=recording.speaker,
        sex=recording.speaker[0],
        dialect=int(path.parent.parent.name[2:]),
        sentence=recording.sentence,
        **span._asdict(),
        text=_read_sentence(labels["txt"]) if "txt" in labels else "",
        words=tuple(label for _, _, label in words),
        phones=_read_phones(labels["phn"], span.num_samples) if "phn" in labels else (),
        is_timit=is_timit,
    )


def _read_phones(path: Path, length: int) -> tuple[Phone, ...]:
    """Read a ``.PHN`` file; its last end may be a little off the recording's, as in TIMIT."""
    phones: list[Phone] = []
    for line, (start, end, label) in enumerate(_read_segments(path), 1):
        problem = None
        if label not in PHONES_61:
            problem = f"unknown phone {label!r}, not one of TIMIT's 61"
        elif end <= start:
            problem = f"phone {label} ends at {end}, not after its start {start}"
        elif phones and start < phones[-1].end:
            problem = (
                f"phone {label} starts at {start}, before the end {phones[-1].end} of the last"
            )
        elif start >= length:
            problem = f"phone {label} starts at {start}, after the recording's {length} samples"
        if problem:
            raise ValueError(f"{path}: line {line}: {problem}: restore the file")
        phones.append(Phone(start, end, label))
    if not phones:
        raise ValueError(f"{path}: no phones in it: restore the file")
    return tuple(phones)


def _read_segments(path: Path) -> list[tuple[int, int, str]]:
    """Read ``start end label`` lines. Words overlap here and there in TIMIT, so times are free."""
    segments = []
    for number, line in enumerate(read_text(path).rstrip().splitlines(), 1):
        match = re.fullmatch(r"\s*(\d{1,18})\s+(\d{1,18})\s+(\S+)\s*", line)
        if match is None:
            raise ValueError(
                f"{path}: line {number}: {line.strip()!r} is not `start end label`: "
                "restore the file"
            )
        segments.append((int(match[1]), int(match[2]), match[3]))
    return segments


def _read_sentence(path: Path) -> str:
    start, end, sentence = (read_text(path).split(maxsplit=2) + [""] * 3)[:3]
    sentence = sentence.rstrip()
    # No regular expression: one that takes white space twice needs its square in time.
    if not (start.isdecimal() and end.isdecimal() and sentence) or "\n" in sentence:
        raise ValueError(f"{path}: line 1: not `start end sentence`: restore the file")
    return sentence
