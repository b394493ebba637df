"""What stands beside the weights in Hugging Face folders of any family."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.files import JsonObject
from models.fields import JsonFile, shown
from models.tokenizers.subword import SubwordTokenizer
from models.tokenizers.symbols import SymbolTokenizer


def fast_tokenizer_files(content: JsonObject, special: dict[str, str]) -> dict[str, JsonObject]:
    """Return the files of a tokenizer that transformers loads as PreTrainedTokenizerFast.

    Args:
        content: What differs in ``tokenizer.json``, from `phones_json` or `unigram_json`.
        special: Special tokens by the name that transformers gives their role.
    """
    return {
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "normalizer": None,
            "post_processor": None,
            **content,
        },
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", **special},
        "special_tokens_map.json": special,
    }


def phones_json(tokenizer: SymbolTokenizer) -> JsonObject:
    """Describe phones, which stand between spaces, in the terms of ``tokenizer.json``."""
    special = {i for i in (tokenizer.eos_id, *(tokenizer.start_ids or ())) if i is not None}
    return {
        "added_tokens": [_added(tokenizer.symbols[i], i) for i in sorted(special)],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {symbol: i for i, symbol in enumerate(tokenizer.symbols)},
            "unk_token": "<unk>",
        },
    }


def is_phones_json(file: JsonFile) -> bool:
    """Return whether a ``tokenizer.json`` is of the kind that `phones_json` describes."""
    model = file.content.get("model")
    return isinstance(model, dict) and model.get("type") == "WordLevel"


def unigram_json(tokenizer: SubwordTokenizer) -> JsonObject:
    """Describe a SentencePiece model in the terms of ``tokenizer.json``."""
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(
        model_proto=base64.b64decode(tokenizer.spec()["model"])
    )
    size = pieces.GetPieceSize()
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    return {
        "added_tokens": [
            _added(pieces.IdToPiece(i), i)
            for i in range(size)
            if pieces.IsControl(i) or pieces.IsUnknown(i)
        ],
        "pre_tokenizer": metaspace,
        "decoder": metaspace,
        "model": {
            "type": "Unigram",
            "unk_id": pieces.unk_id(),
            "vocab": [[pieces.IdToPiece(i), pieces.GetScore(i)] for i in range(size)],
            "byte_fallback": False,
        },
    }


def _added(token: str, token_id: int) -> JsonObject:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": token, **flags, "special": True}


def symbols_by_id(vocab: Mapping[str, int]) -> list[str]:
    """Return the symbols of a ``vocab.json`` in the order of their ids.

    Raises:
        ValueError: If the ids are not 0 and up, each once.
    """
    symbols = sorted(vocab, key=lambda symbol: vocab[symbol])
    if [vocab[symbol] for symbol in symbols] != list(range(len(symbols))):
        raise ValueError(
            f"vocab.json: the vocabulary's ids are not 0 to {len(symbols) - 1}, each once: restore "
            "the file that the weights were published with"
        )
    return symbols


def token_text(file: JsonFile, name: str, token: str | JsonObject) -> str:
    """Return the text of a special token, which stands there bare or in an object.

    Raises:
        ValueError: If the object holds no text.
    """
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise file.error(name, "a token or an object with its content")
    return text


def front_end_file(folder: Path) -> JsonFile:
    """Return what a folder says of its front end, {} where it says nothing.

    transformers 5 writes ``processor_config.json``, which holds it under ``feature_extractor`` and
    comes first for it; earlier versions write ``preprocessor_config.json``.

    Raises:
        ValueError: If a file is damaged.
    """
    processor = JsonFile.read(folder / "processor_config.json")
    for name in ("feature_extractor", "audio_processor"):
        content = processor.content.get(name)
        if isinstance(content, dict):
            return JsonFile(processor.path, content)
        if content is not None:
            raise processor.error(name, "an object")
    return JsonFile.read(folder / "preprocessor_config.json")


def refuse_another(file: JsonFile, name: str, found: Any, wanted: Any) -> None:
    """Raise where a front end is set to what ours does not compute.

    Raises:
        ValueError: If ``found`` is not ``wanted``; names the file and the setting.
    """
    if isinstance(found, bool) != isinstance(wanted, bool) or found != wanted:
        raise ValueError(
            f"{file.path}: {name} is {shown(found)}, and only {wanted!r} is implemented: "
            "give weights with such a front end"
        )
