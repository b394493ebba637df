"""The corpus formats that the programs know. A format is a class in a file and a line here."""

from pathlib import Path

from data.kaldi import KaldiFormat
from data.librispeech import LibriSpeechFormat
from data.manifest import ManifestFormat
from data.timit import TimitFormat
from data.utterance import CorpusFormat

FORMATS: dict[str, type[CorpusFormat]] = {
    "manifest": ManifestFormat,
    "kaldi": KaldiFormat,
    "librispeech": LibriSpeechFormat,
    "timit": TimitFormat,
}

ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".iso")
REMEDY = (
    "give the corpus with --data (TIMIT is LDC93S1, catalog.ldc.upenn.edu/LDC93S1), or use "
    "--data demo, which needs no corpus"
)


def find_corpus(data: str | Path, name: str = "auto") -> tuple[CorpusFormat, Path]:
    """Return the format of the corpus at ``data`` and the corpus's root.

    Args:
        data: A file or a folder, the corpus or above it.
        name: A key of FORMATS; with "auto" the first of them that finds a corpus is taken.

    Raises:
        ValueError: If there is no corpus of that format, or of any.
    """
    if name != "auto" and name not in FORMATS:
        raise ValueError(f"--corpus {name} is unknown: choose auto, {', '.join(FORMATS)}")
    formats = {key: cls() for key, cls in FORMATS.items() if name in ("auto", key)}
    path = Path(data)
    if not path.exists():
        raise ValueError(f"no corpus at {path}, which does not exist: {REMEDY}")
    if path.is_file() and path.name.lower().endswith(ARCHIVES):
        raise ValueError(f"{path} is an archive: unpack it, and give the folder")
    for corpus_format in formats.values():
        if (root := corpus_format.find(path)) is not None:
            return corpus_format, root
    problems = [each.almost(path) for each in formats.values()]
    if path.is_dir():
        packed = sorted(each for each in path.iterdir() if each.name.lower().endswith(ARCHIVES))
        problems += [f"{packed[0]} is an archive: unpack it" if packed else ""]
    if found := "; ".join(filter(None, problems)):
        raise ValueError(f"no corpus at {path}: {found}")
    looked_for = "; ".join(f"{key}: {each.looks_for}" for key, each in formats.items())
    raise ValueError(f"no corpus at {path}: looked for {looked_for}: {REMEDY}")
