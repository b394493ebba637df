"""Read Hugging Face folders of wav2vec2 and whisper."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import SpeechModel, Wav2Vec2, Whisper
from models.checkpoint import Checkpoint
from models.convert.files import read_json
from models.convert.hf_config import build_from_hf_config
from models.convert.keymap import HF_KEYS, load_renamed
from models.tokenizers import ByteBPETokenizer, SymbolTokenizer, Tokenizer

_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_HEAD = ("head.weight", "head.bias")


def from_hf(folder: str | os.PathLike[str]) -> SpeechModel:
    """Build the model of a Hugging Face folder; arguments and errors as ``load_hf``'s."""
    return load_hf(folder).model


def load_hf(folder: str | os.PathLike[str]) -> Checkpoint:
    """Read a Hugging Face folder.

    Weights of any floating type become float32. A wav2vec2 file without a CTC head (an encoder,
    or a pre-training file) gets a random head from torch's global generator, and
    ``run["head"]`` is then "new"; nothing else may be missing.

    Args:
        folder: Holds ``config.json``, ``model.safetensors`` or ``pytorch_model.bin`` (sharded or
            not), and what there is of tokenizer, preprocessor and generation files.

    Returns:
        Checkpoint; ``tokenizer`` is None where there are no tokenizer files.

    Raises:
        ValueError: If a file is missing or unreadable, a setting is not implemented, or a weight
            is unknown, missing or of another shape.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    tensors = _read_tensors(folder)
    try:
        model = build_from_hf_config(config)
        keys = HF_KEYS[model.family]
        is_headless = isinstance(model, Wav2Vec2) and not any("lm_head." in n for n in tensors)
        may_lack: tuple[str, ...] = _HEAD if is_headless else ()
        if not (config.get("mask_time_prob", 0.05) or config.get("mask_feature_prob", 0.0)):
            may_lack += ("masked_embedding",)  # transformers makes none for such a config
        load_renamed(model, tensors, keys, may_lack)
        read_rest = _read_ctc if isinstance(model, Wav2Vec2) else _read_seq2seq
        checkpoint = read_rest(folder, model, config)
    except ValueError as error:
        raise ValueError(f"Hugging Face folder {folder}: {error}") from None
    checkpoint.run = {
        "converted_from": "Hugging Face",
        "head": "new" if is_headless else "loaded",
    }
    if is_headless and _has_other_size(checkpoint.tokenizer, model):
        checkpoint.tokenizer = None  # the new head stands for nothing yet
    return checkpoint


def _has_other_size(tokenizer: Tokenizer | None, model: SpeechModel) -> bool:
    return tokenizer is not None and tokenizer.vocab_size != model.config.vocab_size


def _read_ctc(folder: Path, model: SpeechModel, config: Mapping[str, Any]) -> Checkpoint:
    preprocessor = read_json(folder / "preprocessor_config.json", needed=False)
    tokenizer = _read_ctc_tokenizer(folder, model.config.vocab_size)
    blank_id = config.get("pad_token_id", 0) if tokenizer is None else tokenizer.blank_id
    return Checkpoint(
        model=model,
        tokenizer=tokenizer,
        frontend={"kind": "waveform", "normalize": preprocessor.get("do_normalize", True)},
        decoding={"blank_id": blank_id},
    )


def _read_ctc_tokenizer(folder: Path, vocab_size: int) -> SymbolTokenizer | None:
    vocab = read_json(folder / "vocab.json", needed=False)
    if not vocab:
        return None
    added = read_json(folder / "added_tokens.json", needed=False)
    if len(vocab) < vocab_size:
        vocab |= added
    settings = read_json(folder / "tokenizer_config.json", needed=False)
    space, blank = settings.get("word_delimiter_token") or "|", settings.get("pad_token", "<pad>")
    blank = blank["content"] if isinstance(blank, dict) else blank
    if blank not in vocab:
        raise ValueError(f"vocab.json has no {blank!r}, the pad token that CTC's blank is")
    blank_id = vocab[blank]
    symbols = _by_id({"|" if symbol == space else symbol: i for symbol, i in vocab.items()})
    is_phone = "Phoneme" in settings.get("tokenizer_class", "")
    return SymbolTokenizer("phone" if is_phone else "char", symbols, blank_id=blank_id)


def _read_seq2seq(folder: Path, model: SpeechModel, config: Mapping[str, Any]) -> Checkpoint:
    assert isinstance(model, Whisper)
    # Settings that older folders keep in config.json; the newer file wins.
    settings = {**config, **read_json(folder / "generation_config.json", needed=False)}
    start_ids = _start_ids(settings)
    tokenizer = _read_seq2seq_tokenizer(folder, settings, start_ids)
    if tokenizer is not None and len(start_ids) == 1 and tokenizer.start_ids:
        start_ids = list(tokenizer.start_ids)
    positions, most_tokens = model.config.audio_positions, model.config.text_positions
    eos_id = settings.get("eos_token_id", 50256)
    audio_ctx: float | str | None = None if positions == 1500 else positions / 50  # 20 ms each
    if read_json(folder / "preprocessor_config.json", needed=False).get("audio_ctx") == "own":
        audio_ctx = "own"  # written by us, of a model that was trained like that
    return Checkpoint(
        model=model,
        tokenizer=tokenizer,
        frontend={
            "kind": "log_mel",
            "num_mels": model.config.num_mels,
            "audio_ctx": audio_ctx,
        },
        decoding={
            "start_ids": start_ids,
            "eos_id": eos_id[0] if isinstance(eos_id, list) else eos_id,
            "suppress_ids": list(settings.get("suppress_tokens") or ()),
            "begin_suppress_ids": list(settings.get("begin_suppress_tokens") or ()),
            # transformers adds the start ids to whisper's max_length before it cuts there
            "max_tokens": min(
                settings.get("max_length", most_tokens) + len(start_ids), most_tokens
            ),
        },
    )


def _start_ids(settings: Mapping[str, Any]) -> list[int]:
    """Return the ids that decoding starts with: English where the file leaves the language open."""
    start_ids = [settings.get("decoder_start_token_id", 50257)]
    forced = [token for _, token in sorted(settings.get("forced_decoder_ids") or ())]
    if forced and None not in forced:
        start_ids += forced
    elif settings.get("is_multilingual", True) and "lang_to_id" in settings:
        start_ids += [settings["lang_to_id"]["<|en|>"], settings["task_to_id"]["transcribe"]]
    no_timestamps = settings.get("no_timestamps_token_id")
    if no_timestamps is not None and start_ids[-1] != no_timestamps:
        start_ids.append(no_timestamps)
    return start_ids


def _read_seq2seq_tokenizer(
    folder: Path, settings: Mapping[str, Any], start_ids: list[int]
) -> Tokenizer | None:
    file = folder / "tokenizer.json"
    content = read_json(file, needed=False)
    if content.get("model", {}).get("type") == "WordLevel":  # phones, as to_hf writes them
        symbols = _by_id(content["model"]["vocab"])
        return SymbolTokenizer("phone", symbols, None, settings.get("eos_token_id"), start_ids)
    if content:
        return ByteBPETokenizer.from_json(file)
    vocab, merges, added = (
        folder / name for name in ("vocab.json", "merges.txt", "added_tokens.json")
    )
    if not (vocab.is_file() and merges.is_file()):
        return None
    return ByteBPETokenizer.from_slow_files(vocab, merges, added if added.is_file() else None)


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """Read the first weight file there is, or all shards of the first index."""
    for name in _WEIGHT_FILES:
        if (folder / name).is_file():
            return _read_weight_file(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            shards = sorted(set(read_json(index).get("weight_map", {}).values()))
            parts = [_read_weight_file(folder / Path(shard).name) for shard in shards]
            return {key: tensor for part in parts for key, tensor in part.items()}
    raise ValueError(
        f"no weights in {folder}: looked for {' and '.join(_WEIGHT_FILES)}, whole or with an index"
    )


def _read_weight_file(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        if not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
            raise TypeError("not only tensors")
        return tensors
    except ImportError:
        raise ValueError(
            f"reading {path} needs the safetensors package: pip install -e '.[hf]'"
        ) from None
    except Exception as error:  # both libraries name no common type for damaged or refused files
        raise ValueError(
            f"{path} can't be read ({type(error).__name__}): missing, damaged, or not weights"
        ) from None


def _by_id(vocab: Mapping[str, int]) -> list[str]:
    symbols = sorted(vocab, key=lambda symbol: vocab[symbol])
    if [vocab[symbol] for symbol in symbols] != list(range(len(symbols))):
        raise ValueError(f"the vocabulary's ids are not 0 to {len(symbols) - 1}, each once")
    return symbols
