"""Look into the folders of a corpus."""

import io
import os
from pathlib import Path

from data.files import refuse_special


def subfolders(folder: Path) -> list[Path]:
    """List a folder's visible subfolders by name; one that may not be read has none."""
    try:
        with os.scandir(folder) as entries:
            names = [each.name for each in entries if each.is_dir() and each.name[0] != "."]
    except PermissionError:
        return []
    return [folder / name for name in sorted(names)]


def read_text(path: Path) -> str:
    """Read a file of labels, UTF-8 with or without a byte order mark.

    Raises:
        ValueError: If it cannot be read, or is not text.
    """
    refuse_special(path)
    try:
        content = path.read_bytes()
        if content.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise ValueError(f"{path}: UTF-16 text: save it as UTF-8")
        return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig").read()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}: check its permissions") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not text: restore the file") from None
