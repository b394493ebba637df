"""Find pre-trained weights by model name: a local folder first, then the model hub."""

import os
import re
from pathlib import Path

from models import PRESETS, family_of

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_SIDE_FILES = ("*.json", "merges.txt")
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


def find_weights(model_name: str) -> Path:
    """Return where the pre-trained weights of ``model_name`` are, fetching them if need be.

    Looks for ``NAME`` and ``NAME.pt`` in the folder that the environment variable PARP_WEIGHTS
    names (default: ``weights`` under the current folder), then asks the model hub through
    huggingface_hub, which reads its own cache first and honours HF_HUB_OFFLINE.

    Args:
        model_name: A preset.

    Returns:
        A path that ``load_weights`` takes.

    Raises:
        ValueError: If the name is unknown or there are no weights in any of these places.
    """
    family = family_of(model_name)
    root = Path(os.environ.get("PARP_WEIGHTS") or "weights")
    for path in (root / model_name, root / f"{model_name}.pt"):
        if path.exists():
            return path

    looked = f"no weights for {model_name}: looked for {root / model_name}[.pt]"
    hub_id = PRESETS[model_name].hub_id
    if hub_id is None:
        raise ValueError(f"{looked}, and the hub has none; train it with --init random")

    try:
        return _download(hub_id)
    except ImportError:
        reason = "huggingface_hub is not installed: pip install -e '.[hf]'"
    except Exception as error:  # network, permission, cache: the library has no common type
        reason = f"{type(error).__name__} from the hub for {hub_id}"

    raise ValueError(
        f"{looked}; {reason}. Get them with 'hf download {hub_id} --local-dir "
        f"{root / model_name}', give --init PATH, or run without weights: "
        f"--model {family.demo} --data demo"
    )


def download(hub_id: str) -> Path:
    """Return the folder of a hub repository, fetching it if need be.

    Raises:
        ValueError: If it cannot be had.
    """
    try:
        return _download(hub_id)
    except ImportError:
        reason = "huggingface_hub is not installed: pip install -e '.[hf]'"
    except Exception as error:  # network, permission, cache: the library has no common type
        reason = f"{type(error).__name__} from the hub"
    raise ValueError(
        f"no weights at {hub_id}: there is no such file or folder, and it cannot be had from the "
        f"model hub ({reason})"
    )


def _download(hub_id: str) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError

    folder = Path(snapshot_download(hub_id, allow_patterns=list(_SIDE_FILES)))
    for name in _WEIGHT_FILES:
        try:
            return Path(hf_hub_download(hub_id, name)).parent
        except EntryNotFoundError:
            continue
    raise FileNotFoundError(f"{folder} has neither {' nor '.join(_WEIGHT_FILES)}")
