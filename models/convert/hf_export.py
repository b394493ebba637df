"""Write Hugging Face folders: what is the same for every family."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models import FAMILIES, SpeechModel
from models.convert.hf_config import hf_config
from models.family import HuggingFaceFolder, Settings
from models.tokenizers import Tokenizer


def to_hf(
    model: SpeechModel,
    folder: str | os.PathLike[str],
    tokenizer: Tokenizer | None = None,
    decoding: Mapping[str, Any] | None = None,
    frontend: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write ``model`` as a folder that transformers' ``from_pretrained`` loads.

    Weights are written in float32; pruned ones are plain zeros. A model of log-mels trained on a
    shorter audio context is written with that context, rounded up to whole seconds, for Hugging
    Face's has to be as long as its features; one trained on each utterance's own length, for which
    there is nothing like it there, with all of its positions. The folder is filled beside its place
    and then renamed.

    Args:
        model: Of any family.
        folder: Must not exist, or be empty.
        tokenizer: Written for ``AutoTokenizer``; phones for CTC as Wav2Vec2PhonemeCTCTokenizer,
            whose text has spaces between the phones. Subwords decode ids that CTC's repeats and
            blanks have been taken out of. None writes no tokenizer.
        decoding: As a checkpoint holds it; gives ``generation_config.json`` where text is
            written token by token.
        frontend: As a checkpoint holds it; None is a normalised waveform, or 30 s of log-mel.
        overwrite: Replace an older export in ``folder``.

    Raises:
        ValueError: If ``folder`` is in the way, the tokenizer does not fit the model, or the
            safetensors package is missing.
    """
    folder = Path(folder)
    _check_place(folder, overwrite)
    if tokenizer is not None and tokenizer.vocab_size != model.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the model's vocabulary "
            f"{model.config.vocab_size}: give the model's own tokenizer"
        )

    settings = Settings(tokenizer, dict(frontend or {}), dict(decoding or {}))
    hugging_face = FAMILIES[model.family].hugging_face
    tensors = {
        hugging_face.keys.to_foreign(name): tensor.detach().float().cpu().contiguous()
        for name, tensor in model.state_dict().items()
    }
    content = HuggingFaceFolder({"config.json": hf_config(model, settings.decoding)}, tensors)
    hugging_face.write_settings(model, settings, content)
    _write_folder(folder, content)


def _check_place(folder: Path, overwrite: bool) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise ValueError(f"{folder} exists and is not empty: choose another place")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is no older export (no config.json in it): not replaced")


def _write_folder(folder: Path, content: HuggingFaceFolder) -> None:
    try:
        from safetensors.torch import save_file
    except ImportError:
        raise ValueError(
            "writing a Hugging Face folder needs the safetensors package: pip install -e '.[hf]'"
        ) from None
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as holder:
        new = Path(holder) / "new"
        new.mkdir()
        for name, values in content.files.items():
            text = json.dumps(values, indent=2, ensure_ascii=False)
            (new / name).write_text(text + "\n", encoding="utf-8")
        save_file(content.tensors, new / "model.safetensors", metadata={"format": "pt"})
        if folder.exists():
            shutil.move(folder, Path(holder) / "old")
        os.replace(new, folder)
