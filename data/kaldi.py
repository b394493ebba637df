"""Kaldi's data folders: wav.scp, text, utt2spk, and if they are there segments and spk2gender.

A folder of such folders, ``train``, ``dev`` and ``test``, is one corpus with its splits.

Source:
    kaldi-asr.org/doc/data_prep.html. Commands in wav.scp, lines that end with ``|``, are refused:
    nothing that a corpus holds is executed.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from data.audio import measure
from data.folders import read_text
from data.phones import check_phones
from data.utterance import PHONES, TEXT, CorpusFormat, Phone, Utterance, Wanted


class KaldiFormat(CorpusFormat):
    """Kaldi's data folders.

    For phone targets the labels are those of a file ``phones``, or of ``text`` without one.
    """

    looks_for = "wav.scp, in the folder or in folders train, dev and test below"

    def find(self, data: Path) -> Path | None:
        """Return ``data`` where it is such a folder or holds such folders."""
        if not data.is_dir():
            return None
        return data if (data / "wav.scp").is_file() or any(data.glob("*/wav.scp")) else None

    def parts(self, root: Path) -> list[str]:
        """Return the names of the folders; a single one has no name."""
        if (root / "wav.scp").is_file():
            return [""]
        return sorted(path.parent.name for path in root.glob("*/wav.scp"))

    def read(self, root: Path, part: str, wanted: Wanted) -> list[Utterance]:
        """Read one folder."""
        folder = root / part
        recordings = _read_table(folder / "wav.scp")
        segments = {name: f"{name} 0 -1" for name in recordings}
        if (folder / "segments").is_file():
            segments = _read_table(folder / "segments")
        labels = {name: _read_optional(folder / name) for name in ("text", "phones", "utt2spk")}
        sexes = _read_optional(folder / "spk2gender")
        if PHONES in wanted.labels and TEXT not in wanted.labels and not labels["phones"]:
            labels |= {"phones": labels["text"], "text": {}}

        utterances = []
        for utt_id, segment in segments.items():
            where = f"{folder / 'phones'}: {utt_id}"
            speaker = labels["utt2spk"].get(utt_id, "")
            phones = check_phones(labels["phones"].get(utt_id, "").split(), where)
            path, begin, end = _locate(segment, utt_id, recordings, folder)
            utterances.append(
                Utterance(
                    utt_id=utt_id,
                    **measure(path, wanted.resample, begin, end)._asdict(),
                    speaker=speaker,
                    sex=sexes.get(speaker, ""),
                    text=labels["text"].get(utt_id, ""),
                    phones=tuple(Phone(0, 0, phone) for phone in phones),
                )
            )
        return utterances


def _locate(
    segment: str, utt_id: str, recordings: dict[str, str], folder: Path
) -> tuple[Path, float, float | None]:
    """Return the recording of an utterance, where it begins in it, and where it ends."""
    try:
        recording, begin_text, end_text = segment.split()
        begin = float(begin_text)
        end = float(end_text)
        source = recordings[recording]
    except (ValueError, KeyError):
        raise ValueError(
            f"{folder / 'segments'}: {utt_id}: {segment!r} is not `recording start end` of a "
            "recording in wav.scp: mend it"
        ) from None
    if not source:
        raise ValueError(f"{folder / 'wav.scp'}: {recording} has no path: mend it")
    if source.endswith("|"):
        raise ValueError(
            f"{folder / 'wav.scp'}: {recording} is a command, and none is run: write its output "
            "to a file, and give that"
        )
    path = folder / source
    # Kaldi takes paths from where it is run.
    return (path if os.path.exists(path) else Path(source)), begin, None if end < 0 else end


def _read_optional(path: Path) -> dict[str, str]:
    return _read_table(path) if path.is_file() else {}


def _read_table(path: Path) -> dict[str, str]:
    """Read lines of a name and what it stands for."""
    return dict(_lines(path))


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    seen = set[str]()
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        name, *rest = line.split(maxsplit=1)
        if name in seen:
            raise ValueError(f"{path}: line {number}: a second line for {name}: remove one")
        seen.add(name)
        yield name, rest[0].strip() if rest else ""
