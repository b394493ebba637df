"""LibriSpeech, and what Libri-light takes from it for fine-tuning.

The layout is ``{train,dev,test}-NAME/SPEAKER/CHAPTER/`` with FLAC recordings and, in each chapter's
folder, ``SPEAKER-CHAPTER.trans.txt`` of lines ``SPEAKER-CHAPTER-NUMBER THE WORDS``. SPEAKERS.TXT
beside the parts gives the speakers' sex.

Source:
    openslr.org/12 (README.TXT of LibriSpeech), and ``librispeech_finetuning`` of Libri-light, whose
    parts ``1h/0`` to ``1h/5`` (ten minutes each) and ``9h`` hold the same folders of speakers below
    ``clean`` and ``other``.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from data.audio import measure
from data.folders import read_text, subfolders
from data.utterance import TEXT, CorpusFormat, Utterance, Wanted

LIBRI_LIGHT = "librispeech_finetuning"
LIBRI_LIGHT_PART = "train-10h"
AUDIO = (".flac", ".wav")


class LibriSpeechFormat(CorpusFormat):
    """LibriSpeech: its parts are the folders, ``train-10h`` is Libri-light's where no train is."""

    looks_for = "folders train-*, dev-* or test-* with SPEAKER/CHAPTER/*.trans.txt in them"

    def find(self, data: Path) -> Path | None:
        """Return ``data``, or the first folder in it, that holds such parts."""
        if not data.is_dir():
            return None
        candidates = [data, *subfolders(data)]
        return next((folder for folder in candidates if _has_transcripts(folder)), None)

    def parts(self, root: Path) -> list[str]:
        """Return the names of the folders."""
        names = [folder.name for folder in _part_folders(root)]
        has_train = any(name.startswith("train-") for name in names)
        if (root / LIBRI_LIGHT).is_dir() and not has_train:
            names.append(LIBRI_LIGHT_PART)
        return names

    def read(self, root: Path, part: str, wanted: Wanted) -> list[Utterance]:
        """Read every chapter of a part."""
        is_whole = part == LIBRI_LIGHT_PART and not (root / part).is_dir()
        folder = root / LIBRI_LIGHT if is_whole else root / part
        sexes = _read_sexes(root / "SPEAKERS.TXT")
        return [
            each for chapter in _chapters(folder) for each in _read_chapter(chapter, sexes, wanted)
        ]


def _part_folders(root: Path) -> list[Path]:
    return [
        each for each in subfolders(root) if re.fullmatch(r"(train|dev|test)-[\w-]+", each.name)
    ]


def _has_transcripts(root: Path) -> bool:
    """Look into the first speaker's first chapter of each part."""
    for part in _part_folders(root):
        for speaker in subfolders(part)[:1]:
            for chapter in subfolders(speaker)[:1]:
                if any(chapter.glob("*.trans.txt")):
                    return True
    return False


def _chapters(folder: Path) -> Iterator[Path]:
    """Yield the folders that hold a transcript, in the order of their names."""
    for path, folders, names in os.walk(folder):
        folders.sort()
        if any(name.endswith(".trans.txt") for name in names):
            yield Path(path)


def _read_chapter(folder: Path, sexes: dict[str, str], wanted: Wanted) -> Iterator[Utterance]:
    """Yield a chapter's utterances.

    Raises:
        ValueError: If a line has no recording, or a recording no line.
    """
    texts = {}
    for transcript in sorted(folder.glob("*.trans.txt")):
        for number, line in enumerate(read_text(transcript).splitlines(), 1):
            utt_id, _, text = line.strip().partition(" ")
            if utt_id in texts or not text.strip():
                problem = "a second line" if utt_id in texts else "no words"
                raise ValueError(f"{transcript}: line {number}: {problem} for {utt_id!r}: mend it")
            texts[utt_id] = text.strip()

    recordings = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix in AUDIO}
    if alone := sorted(texts.keys() - recordings.keys()):
        raise ValueError(f"{folder}: words of {alone[0]} but no recording: restore its .flac")
    if TEXT in wanted.labels and (alone := sorted(recordings.keys() - texts.keys())):
        raise ValueError(f"{folder}: no words for {alone[0]} in its .trans.txt: restore them")

    for utt_id, path in recordings.items():
        speaker = utt_id.split("-")[0]
        yield Utterance(
            utt_id=utt_id,
            **measure(path, wanted.resample)._asdict(),
            speaker=speaker,
            sex=sexes.get(speaker, ""),
            text=texts.get(utt_id, ""),
        )


def _read_sexes(path: Path) -> dict[str, str]:
    """Return "m" or "f" by speaker, from lines ``14 | F | train-clean-360 | 25.03 | Name``."""
    if not path.is_file():
        return {}
    sexes = {}
    for line in read_text(path).splitlines():
        columns = [column.strip() for column in line.split("|")]
        if not line.startswith(";") and len(columns) > 1 and columns[1] in ("M", "F"):
            sexes[columns[0]] = columns[1].lower()
    return sexes
