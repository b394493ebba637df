"""Write models for other programs: Hugging Face folders, and what else a family names."""

import os
from pathlib import Path
from typing import BinaryIO

from data.files import JsonObject
from models import FAMILIES, SpeechModel
from models.checkpoint import Checkpoint
from models.convert.card import model_card
from models.convert.folder import check_place, write_folder
from models.convert.hf_config import hf_config
from models.facts import DecodingFacts, FrontEndFacts, RunFacts
from models.family import ExportedFolder, ForeignExport, HuggingFaceFolder, Settings
from models.tensor_file import write_tensors
from models.tokenizers import Tokenizer


def to_hf(
    model: SpeechModel,
    folder: str | os.PathLike[str],
    tokenizer: Tokenizer | None = None,
    decoding: DecodingFacts | None = None,
    frontend: FrontEndFacts | None = None,
    overwrite: bool = False,
    run: RunFacts | None = None,
    results: JsonObject | None = None,
) -> int:
    """Write ``model`` as a folder that transformers' ``from_pretrained`` loads.

    Weights are written in float32; pruned ones are plain zeros. A model of log-mels trained on a
    shorter audio context is written with that context, rounded up to whole seconds, for Hugging
    Face's has to be as long as its features; one trained on each utterance's own length, for which
    there is nothing like it there, with all of its positions. ``README.md`` is a model card. The
    folder is filled beside its place and then renamed.

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
        run: Where the weights come from, for the card.
        results: What a run's results.json says of them, for the card.

    Returns:
        The number of parameters written.

    Raises:
        ValueError: If ``folder`` is in the way or cannot be written, or the tokenizer does not fit
            the model.
    """
    folder = Path(folder)
    check_place(folder, overwrite)
    if tokenizer is not None and tokenizer.vocab_size != model.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the model's vocabulary "
            f"{model.config.vocab_size}: give the model's own tokenizer"
        )

    settings = Settings(tokenizer, frontend or {}, decoding or {})
    hugging_face = FAMILIES[model.family].hugging_face
    tensors = {
        hugging_face.keys.to_foreign(name): tensor.detach().float().cpu().contiguous()
        for name, tensor in model.state_dict().items()
    }
    content = HuggingFaceFolder({"config.json": hf_config(model, settings.decoding)}, tensors)
    hugging_face.write_settings(model, settings, content)

    def write_weights(file: BinaryIO) -> None:
        write_tensors(file, content.tensors, {"format": "pt"})

    num_parameters = sum(tensor.numel() for tensor in content.tensors.values())
    exported = ExportedFolder(content.files, {"model.safetensors": write_weights}, num_parameters)
    checkpoint = Checkpoint(model, **vars(settings), run=run or RunFacts())
    write_folder(folder, exported, model_card(checkpoint, num_parameters, results))
    return num_parameters


def to_foreign(
    checkpoint: Checkpoint,
    to: str,
    folder: str | os.PathLike[str],
    values: str = "fp32",
    overwrite: bool = False,
    results: JsonObject | None = None,
) -> int:
    """Write a checkpoint as a folder of a format that its family names.

    Args:
        checkpoint: Any.
        to: Name of the format for ``--to``.
        folder: Must not exist, or be empty.
        values: How weights are stored, a key of ``models.packed.VALUES``.
        overwrite: Replace an older export in ``folder``.
        results: As for :func:`to_hf`.

    Returns:
        The number of parameters written.

    Raises:
        ValueError: If the family has no such format, the format cannot hold the checkpoint, or
            ``folder`` is in the way or cannot be written.
    """
    folder = Path(folder)
    check_place(folder, overwrite)
    exports = _exports(checkpoint.model.family)
    if to not in exports:
        able = [name for name in FAMILIES if to in _exports(name)]
        raise ValueError(
            f"--to {to} is for {' and '.join(able)}, and this is a {checkpoint.model.family} "
            "model: use --to hf"
        )
    settings = Settings(checkpoint.tokenizer, checkpoint.frontend, checkpoint.decoding)
    content = exports[to].write(checkpoint.model, settings, values)
    load_with = exports[to].load_with
    card = model_card(checkpoint, content.num_parameters, results, load_with)
    write_folder(folder, content, card)
    return content.num_parameters


def foreign_names() -> list[str]:
    """List what ``--to`` calls the formats that families name."""
    return sorted(name for family in FAMILIES for name in _exports(family))


def _exports(family: str) -> dict[str, ForeignExport]:
    exports = [each.export for each in FAMILIES[family].formats if each.export is not None]
    return {export.to: export for export in exports}
