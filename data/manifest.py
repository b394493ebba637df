"""Manifests: tables of recordings as TSV, CSV or JSON lines, and those of Common Voice.

A row is an utterance. Columns: ``path`` (relative to the manifest), ``text`` and/or ``phones``, and
where they are known ``utt_id``, ``speaker``, ``sex``, ``split``, ``start`` and ``end`` (in
seconds). A folder of manifests, ``train.tsv``, ``dev.tsv`` and ``test.tsv``, is one corpus.

Source:
    commonvoice.mozilla.org: ``client_id``, ``path``, ``sentence`` and ``gender`` there are
    ``speaker``, ``path``, ``text`` and ``sex`` here; recordings are in ``clips`` beside the TSV.
"""

import csv
import io
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.audio import measure
from data.folders import read_text
from data.phones import check_phones
from data.utterance import CorpusFormat, Phone, Utterance, Wanted

COLUMNS = ("path", "text", "phones", "utt_id", "speaker", "sex", "split", "start", "end")
OTHER_NAMES = {"client_id": "speaker", "sentence": "text", "gender": "sex", "id": "utt_id"}
SPLITS = ("train", "dev", "test")
OTHER_SPLITS = {"valid": "dev", "validation": "dev", "val": "dev"}
SEXES = {"m": "m", "f": "f", "male": "m", "female": "f"}
SEXES |= {"male_masculine": "m", "female_feminine": "f"}  # Common Voice, from version 17 on
SUFFIXES = (".tsv", ".csv", ".jsonl")

Row = dict[str, str]


class ManifestFormat(CorpusFormat):
    """A manifest, or a folder of one manifest a split."""

    looks_for = "a file .tsv, .csv or .jsonl, or a folder with train, dev or test of those"

    def __init__(self) -> None:
        self._kept: dict[Path, list[Row]] = {}

    def find(self, data: Path) -> Path | None:
        """Return ``data`` where it is a manifest, or a folder of manifests named for splits."""
        if data.is_file():
            return data if data.suffix in SUFFIXES else None
        return data if _manifests(data) else None

    def parts(self, root: Path) -> list[str]:
        """Return the values of the column split, or the names of the manifests."""
        if root.is_dir():
            return list(_manifests(root))
        return list(dict.fromkeys(row.get("split", "") for row in self._rows(root)))

    def read(self, root: Path, part: str, wanted: Wanted) -> list[Utterance]:
        """Read the rows of a part."""
        manifest = _manifests(root)[part] if root.is_dir() else root
        rows = self._rows(manifest)
        if manifest == root:
            rows = [row for row in rows if row.get("split", "") == part]
        return [_read_row(row, manifest, wanted) for row in rows]

    def _rows(self, manifest: Path) -> list[Row]:
        """Read a manifest once."""
        if manifest not in self._kept:
            self._kept[manifest] = read_rows(manifest)
        return self._kept[manifest]


def _manifests(folder: Path) -> dict[str, Path]:
    """Return the manifests of a folder by the split that each is named for."""
    manifests: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        split = _split_name(path.stem)
        if path.suffix in SUFFIXES and split in SPLITS:
            if split in manifests:
                raise ValueError(
                    f"{manifests[split]} and {path} are both {split}: give one of them"
                )
            manifests[split] = path
    return manifests


def read_rows(manifest: Path) -> list[Row]:
    """Read a manifest: known columns by our names, and in "line" each row's place for messages.

    Columns that mean nothing here are named in one line on stderr.

    Raises:
        ValueError: If there is no row, no column path, or a row that does not fit.
    """
    raw = _read_json_lines(manifest) if manifest.suffix == ".jsonl" else _read_columns(manifest)
    rows: list[Row] = []
    ignored: set[str] = set()
    for number, values in raw:
        row = {"line": str(number)}
        _refuse_doubles([name for name, _ in values], f"{manifest}: line {number}")
        for name, value in values:
            known = _column(name)
            if known not in COLUMNS:
                ignored.add(name)
            elif value.strip():
                row[known] = value.strip()
        if "split" in row:
            row["split"] = _split_name(row["split"])
        rows.append(row)

    _check_rows(rows, manifest)
    if ignored:
        tqdm.write(f"{manifest}: columns not used: {', '.join(sorted(ignored))}", file=sys.stderr)
    return rows


def _column(name: str) -> str:
    """Return our name of a column."""
    lower = name.strip().lower()
    return OTHER_NAMES.get(lower, lower)


def _split_name(name: str) -> str:
    """Return train, dev or test where a name stands for one, in any case; else the name."""
    lower = name.lower()
    known = OTHER_SPLITS.get(lower, lower)
    return known if known in SPLITS else name


def _refuse_doubles(names: Sequence[str], where: str) -> None:
    """Raise where two columns stand for one thing: which of them counts is not for us to say."""
    first: dict[str, str] = {}
    for name in names:
        column = _column(name)
        if column in COLUMNS and column in first:
            raise ValueError(
                f"{where}: columns {first[column]} and {name} are both {column}: rename or remove "
                "one of them"
            )
        first[column] = name


def _check_rows(rows: list[Row], manifest: Path) -> None:
    """Make sure that there are rows, each with a path, and either all or none with a split."""
    if not rows:
        raise ValueError(f"{manifest}: no rows below the names of the columns: give a longer one")
    has_split = any("split" in row for row in rows)
    for row in rows:
        for column in ("path", "split") if has_split else ("path",):
            if column not in row:
                raise ValueError(f"{manifest}: line {row['line']}: no {column}: add it")


def _read_columns(manifest: Path) -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """Yield line number and values of each row of a TSV, which has no quotes, or a CSV."""
    lines = io.StringIO(read_text(manifest), newline="")
    if manifest.suffix == ".csv":
        reader = csv.reader(lines)
    else:
        reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    try:
        header, *rows = [(reader.line_num, values) for values in reader if values] or [(1, [])]
    except csv.Error as error:
        raise ValueError(f"{manifest}: line {reader.line_num}: {error}: mend it") from None

    names = header[1]
    if "path" not in map(_column, names):
        found = ", ".join(" ".join(name.split()) for name in names) or "none"
        raise ValueError(
            f"{manifest}: line 1: no column path among {found}: name the columns, of "
            f"{', '.join(COLUMNS)}"
        )
    for number, values in rows:
        if len(values) != len(names):
            raise ValueError(
                f"{manifest}: line {number}: {len(values)} columns where line 1 has "
                f"{len(names)}: mend it"
            )
        yield number, list(zip(names, values, strict=True))


def _read_json_lines(manifest: Path) -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """Yield line number and pairs of each object; lists of strings become joined by spaces."""
    for number, line in enumerate(read_text(manifest).split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line, object_pairs_hook=_Pairs)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{manifest}: line {number}: no JSON ({error}): mend it") from None
        if not isinstance(values, _Pairs):
            raise ValueError(f"{manifest}: line {number}: no JSON object: mend it")
        yield number, [(name, _as_text(value)) for name, value in values]


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with all its names, the same one twice too."""


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    is_list = isinstance(value, list) and not isinstance(value, _Pairs)
    return " ".join(map(str, value)) if is_list else str(value)


def _read_row(row: Row, manifest: Path, wanted: Wanted) -> Utterance:
    """Turn a row into an utterance."""
    where = f"{manifest}: line {row['line']}"
    path = manifest.parent / row["path"]
    in_clips = manifest.parent / "clips" / row["path"]
    if not os.path.exists(path) and os.path.exists(in_clips):
        path = in_clips
    begin = _seconds(row, "start", where)
    end = _seconds(row, "end", where)
    phones = check_phones(row.get("phones", "").split(), where)
    return Utterance(
        utt_id=row.get("utt_id") or _name(row),
        **measure(path, wanted.resample, begin or 0.0, end)._asdict(),
        speaker=row.get("speaker", ""),
        sex=SEXES.get(row.get("sex", "").lower(), ""),
        text=row.get("text", ""),
        phones=tuple(Phone(0, 0, phone) for phone in phones),
    )


def _seconds(row: Row, column: str, where: str) -> float | None:
    if column not in row:
        return None
    try:
        seconds = float(row[column])
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"{where}: {column} is {row[column]!r}: give seconds")
    return seconds


def _name(row: Row) -> str:
    """Name an utterance by its recording and, where it is a part of one, by its times."""
    stem = re.sub(r"\.\w+$", "", row["path"])
    name = re.sub(r"[\s()/\\]+", "-", stem).strip("-.")
    times = [row[column] for column in ("start", "end") if column in row]
    return "-".join([name, *times])
