"""Which utterances a run takes, in its manifest.tsv, and whether a corpus still holds the same."""

import hashlib
import os
import zlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from data.corpus import Split
from data.files import write_file
from data.folders import read_text
from data.phones import fold_phones
from data.utterance import Utterance

COLUMNS = (
    "utt_id speaker sex dialect path num_samples seconds phones39 text labels_sha256 first_sample "
    "split described probe_crc32"
).split()
LEFT_OUT = "-left-out"
"""What follows the name of a split for its utterances that can't be trained on."""

_COMPARED = {
    "labels_sha256": "label",
    "num_samples": "length",
    "first_sample": "beginning",
    "probe_crc32": "recording",
}
_WHOLE, _PROBE = 1 << 18, 1 << 12  # bytes

Rows = Mapping[tuple[str, str], Mapping[str, str]]


def write_manifest(
    splits: Sequence[Split], root: Path, path: str | Path, left_out: Collection[str] = ()
) -> None:
    """Write a tab-separated list of utterances, to tell later which data a number came from.

    Columns: utt_id, speaker, sex, dialect, path (in the corpus), num_samples, seconds, phones39 (as
    scored), text, labels_sha256 (over phones with times, words and text), first_sample (of the
    recording), split, described (with the rule by which the split was drawn, if it was), and
    probe_crc32 (see :func:`probe_recording`).

    Args:
        splits: What to list.
        root: The corpus.
        path: File to write.
        left_out: Names of those that are not trained on; their split is ``train-left-out``.
    """
    lines = [COLUMNS]
    probes: dict[Path, str] = {}
    for split in splits:
        for item in split.utterances:
            if item.path not in probes:
                probes[item.path] = probe_recording(item.path)
            name = split.name + (LEFT_OUT if item.utt_id in left_out else "")
            row = _row(item, root) | {"split": name, "described": split.described}
            row["probe_crc32"] = probes[item.path]
            lines.append([row[column] for column in COLUMNS])
    text = "".join("\t".join(line) + "\n" for line in lines)
    write_file(path, text.encode())


def _row(item: Utterance, root: Path) -> dict[str, str]:
    labels = repr(([(p.start, p.end, p.label) for p in item.phones], item.words, item.text))
    return {
        "utt_id": item.utt_id,
        "speaker": item.speaker,
        "sex": item.sex,
        "dialect": str(item.dialect or ""),
        "path": os.path.relpath(item.path, root.parent if root.is_file() else root),
        "num_samples": str(item.num_samples),
        "seconds": f"{item.seconds:.4f}",
        "phones39": " ".join(fold_phones([phone.label for phone in item.phones], 39)),
        "text": " ".join(item.text.split()),
        "labels_sha256": hashlib.sha256(labels.encode()).hexdigest(),
        "first_sample": str(item.start),
    }


def probe_recording(path: Path) -> str:
    """Return a CRC-32 of a file's size, its first 256 KiB, and 4 KiB of every 64 KiB after that.

    So all of a sentence is compared, and of longer recordings a sixteenth, evenly spread.
    """
    try:
        size = path.stat().st_size
        value = zlib.crc32(str(size).encode())
        with path.open("rb") as file:
            value = zlib.crc32(file.read(_WHOLE), value)
            for start in range(_WHOLE, size, 16 * _PROBE):
                file.seek(start)
                value = zlib.crc32(file.read(_PROBE), value)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}: restore the file") from None
    return f"{value:08x}"


def check_manifest(splits: Sequence[Split], path: Path, remedy: str) -> None:
    """Check that splits hold the utterances of a manifest, with equal labels and recordings.

    What the manifest of an earlier version does not have is not compared.

    Args:
        splits: Of the corpus as it is now.
        path: A run's manifest.tsv.
        remedy: What the user is told to do.

    Raises:
        ValueError: If they do not; says what differs. Or if the manifest can't be read.
    """
    rows = _read_rows(path)
    listed = {name for name, _ in rows}
    now = {
        (split.name, item.utt_id): item
        for split in splits
        for item in split.utterances
        if split.name in listed
    }
    names = {split.name for split in splits}
    before = {key: row for key, row in rows.items() if key[0] in names}
    differences = _describe_differences(before, now)
    if differences:
        raise ValueError(
            f"the corpus has changed since {path} was written, of its utterances are "
            f"{', '.join(differences)}: {remedy}"
        )


def _describe_differences(before: Rows, now: Mapping[tuple[str, str], Utterance]) -> list[str]:
    """Say what was lost, added, moved to another split or changed, each with an example."""
    gone = before.keys() - now.keys()
    new = now.keys() - before.keys()
    moved = {utt_id for _, utt_id in gone} & {utt_id for _, utt_id in new}
    found: dict[str, list[str]] = {}
    for split, utt_id in sorted(before.keys() | now.keys()):
        key = (split, utt_id)
        if key in gone:
            what = f"moved out of {split}" if utt_id in moved else f"gone from {split}"
        elif key in new:
            what = "" if utt_id in moved else f"new in {split}"
        else:
            changed = _changed(before[key], now[key])
            what = f"with another {changed} in {split}" if changed else ""
        if what:
            found.setdefault(what, []).append(utt_id)
    return [
        f"{len(ids)} {what} ({ids[0]}{', ...' if ids[1:] else ''})" for what, ids in found.items()
    ]


def _changed(before: Mapping[str, str], utterance: Utterance) -> str | None:
    """Return what of an utterance differs from its row."""
    now = _row(utterance, Path())
    for column, what in _COMPARED.items():
        value = now[column] if column in now else probe_recording(utterance.path)
        if column in before and value != before[column]:
            return what
    return None


def _read_rows(path: Path) -> Rows:
    """Return the rows of a manifest by split and utterance; those left out count as in the split.

    Raises:
        ValueError: If it is damaged.
    """
    header, *lines = [line.split("\t") for line in read_text(path).split("\n") if line] or [[]]
    rows = {}
    for number, values in enumerate(lines, 2):
        row = dict(zip(header, values, strict=False))
        if len(values) != len(header) or not {"utt_id", "split", "labels_sha256"} <= set(row):
            raise ValueError(f"{path}: line {number} is no row of a manifest: restore the file")
        rows[row["split"].removesuffix(LEFT_OUT), row["utt_id"]] = row
    return rows
