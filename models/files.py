"""Reading the JSON files of other formats."""

import json
from pathlib import Path
from typing import Any


def read_json(path: Path, needed: bool = True) -> dict[str, Any]:
    """Read a JSON object; {} where a file that is not ``needed`` is missing.

    Raises:
        ValueError: If the file can't be read or is no JSON object.
    """
    if not needed and not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = type(error).__name__
        raise ValueError(f"{path} can't be read ({reason}): missing, or not JSON") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object: get the model's own")
    return content
