"""Write a model for another program as a folder, filled beside its place and then renamed."""

import json
import os
import shutil
from pathlib import Path

from data.files import IDLE_SECONDS, WRITE_ELSEWHERE, remove_left_overs, temporary_beside
from models.family import ExportedFolder


def check_place(folder: Path, overwrite: bool) -> None:
    """Raise ValueError where a folder is in the way of an export.

    Args:
        folder: Where the export is to be.
        overwrite: Whether an older export may be replaced.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise ValueError(f"{folder} exists and is not empty: choose another place")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is no older export (no config.json in it): not replaced")


def write_folder(folder: Path, content: ExportedFolder, card: str) -> None:
    """Write an export whole or not at all.

    Args:
        folder: Its place, checked with ``check_place``.
        content: Its files.
        card: Text of its README.md.

    Raises:
        ValueError: If it cannot be written.
    """
    new = temporary_beside(folder)
    old = temporary_beside(folder, "old")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_left_overs(folder.parent, IDLE_SECONDS)
        new.mkdir()
        (new / "README.md").write_text(card, encoding="utf-8")
        for name, values in content.json.items():
            text = json.dumps(values, indent=2, ensure_ascii=False)
            (new / name).write_text(text + "\n", encoding="utf-8")
        for name, write in content.binary.items():
            with (new / name).open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
    except OSError as error:
        raise ValueError(
            f"cannot write {folder} ({error.strerror or error}): {WRITE_ELSEWHERE}"
        ) from None
    finally:
        if old.exists() and not folder.exists():  # stopped between the two renames
            os.replace(old, folder)
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)
