"""Write Hugging Face folders of wav2vec2 and whisper."""

import base64
import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from models import SpeechModel, Wav2Vec2, Whisper
from models.convert.hf_config import hf_config
from models.convert.keymap import HF_KEYS
from models.tokenizers import (
    ByteBPETokenizer,
    SubwordTokenizer,
    SymbolTokenizer,
    Tokenizer,
    hf_tokenizer_json,
)

Files = dict[str, dict[str, Any]]


def to_hf(
    model: SpeechModel,
    folder: str | os.PathLike[str],
    tokenizer: Tokenizer | None = None,
    decoding: Mapping[str, Any] | None = None,
    frontend: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write ``model`` as a folder that transformers' ``from_pretrained`` loads.

    Weights are written in float32; pruned ones are plain zeros. A whisper trained on a shorter
    audio context is written with that context, rounded up to whole seconds, for Hugging Face's
    has to be as long as its features; one trained on each utterance's own length, for which there
    is nothing like it there, with all of its positions. The folder is filled beside its place and
    then renamed.

    Args:
        model: A ``Wav2Vec2`` or ``Whisper``.
        folder: Must not exist, or be empty.
        tokenizer: Written for ``AutoTokenizer``; phones for CTC as Wav2Vec2PhonemeCTCTokenizer,
            whose text has spaces between the phones. Subwords decode ids that CTC's repeats and
            blanks have been taken out of. None writes no tokenizer.
        decoding: As a checkpoint holds it; gives ``generation_config.json`` (whisper).
        frontend: As a checkpoint holds it; None is a normalised waveform, or 30 s of log-mel.
        overwrite: Replace an older export in ``folder``.

    Raises:
        ValueError: If ``folder`` is in the way, the tokenizer does not fit the model, or the
            safetensors package is missing.
    """
    folder, decoding, frontend = Path(folder), decoding or {}, frontend or {}
    _check_place(folder, overwrite)
    if tokenizer is not None and tokenizer.vocab_size != model.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the model's vocabulary "
            f"{model.config.vocab_size}: give the model's own tokenizer"
        )
    tensors = _foreign_tensors(model)
    files: Files = {"config.json": hf_config(model, decoding)}
    if isinstance(model, Whisper):
        positions = model.config.audio_positions  # 20 ms each
        audio_ctx: Any = frontend.get("audio_ctx")
        seconds = math.ceil(positions / 50 if audio_ctx in (None, "own") else audio_ctx)
        positions = files["config.json"]["max_source_positions"] = min(50 * seconds, positions)
        name = "model.encoder.embed_positions.weight"
        tensors[name] = tensors[name][:positions].clone()
        files["preprocessor_config.json"] = _log_mel_config(model, seconds)
        if audio_ctx == "own":  # for the way back; transformers takes no notice of it
            files["preprocessor_config.json"]["audio_ctx"] = audio_ctx
        if decoding:
            files["generation_config.json"] = _generation_config(tokenizer, decoding)
        files |= _seq2seq_tokenizer_files(tokenizer) if tokenizer else {}
    else:
        files["preprocessor_config.json"] = _waveform_config(model, frontend)
        files |= _ctc_tokenizer_files(tokenizer) if tokenizer else {}
    _write_folder(folder, files, tensors)


def _check_place(folder: Path, overwrite: bool) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise ValueError(f"{folder} exists and is not empty: choose another place")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is no older export (no config.json in it): not replaced")


def _foreign_tensors(model: SpeechModel) -> dict[str, Tensor]:
    keys = HF_KEYS[model.family]
    return {
        keys.to_foreign(name): tensor.detach().float().cpu().contiguous()
        for name, tensor in model.state_dict().items()
    }


def _log_mel_config(model: Whisper, seconds: int) -> dict[str, Any]:
    return {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "processor_class": "WhisperProcessor",
        "feature_size": model.config.num_mels,
        "sampling_rate": 16000,
        "hop_length": 160,
        "n_fft": 400,
        "chunk_length": seconds,
        "n_samples": 16000 * seconds,
        "nb_max_frames": 100 * seconds,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
    }


def _waveform_config(model: Wav2Vec2, frontend: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "processor_class": "Wav2Vec2Processor",
        "feature_size": 1,
        "sampling_rate": 16000,
        "padding_side": "right",
        "padding_value": 0.0,
        "do_normalize": frontend.get("normalize", True),
        "return_attention_mask": model.config.conv_norm == "layer",
    }


def _generation_config(tokenizer: Tokenizer | None, decoding: Mapping[str, Any]) -> dict[str, Any]:
    start_id, *forced = decoding["start_ids"]
    eos_id = decoding["eos_id"]
    config: dict[str, Any] = {
        "decoder_start_token_id": start_id,
        "bos_token_id": eos_id,
        "eos_token_id": eos_id,
        "pad_token_id": eos_id,
        "suppress_tokens": list(decoding["suppress_ids"]) or None,
        "begin_suppress_tokens": list(decoding["begin_suppress_ids"]) or None,
        # transformers adds the start ids to whisper's max_length before it cuts there
        "max_length": decoding["max_tokens"] - len(decoding["start_ids"]),
        "return_timestamps": False,
        "is_multilingual": False,
    }
    if forced:
        config["forced_decoder_ids"] = [[i, token] for i, token in enumerate(forced, start=1)]
    if isinstance(tokenizer, ByteBPETokenizer):
        ids = tokenizer.added_tokens
        config["no_timestamps_token_id"] = ids["<|notimestamps|>"]
        if len(tokenizer.start_ids) > 2:  # start, language, task, no timestamps
            tasks = ("transcribe", "translate")
            between = range(tokenizer.start_ids[0] + 1, min(ids[f"<|{task}|>"] for task in tasks))
            config["is_multilingual"] = True
            config["lang_to_id"] = {token: i for token, i in ids.items() if i in between}
            config["task_to_id"] = {task: ids[f"<|{task}|>"] for task in tasks}
    return config


def _ctc_tokenizer_files(tokenizer: Tokenizer) -> Files:
    if isinstance(tokenizer, SubwordTokenizer):
        return _fast_tokenizer_files(_unigram_json(tokenizer), {"pad_token": "<pad>"})
    if not isinstance(tokenizer, SymbolTokenizer) or tokenizer.blank_id is None:
        raise ValueError(f"a {tokenizer.kind} tokenizer without a blank is not for CTC")
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    special = {
        "pad_token": tokenizer.symbols[tokenizer.blank_id],
        **{key: name if name in tokenizer.symbols else None for key, name in names.items()},
    }
    if tokenizer.kind == "phone":
        settings = {"tokenizer_class": "Wav2Vec2PhonemeCTCTokenizer", "do_phonemize": False}
    else:
        settings = {"tokenizer_class": "Wav2Vec2CTCTokenizer", "word_delimiter_token": "|"}
    return {
        "vocab.json": {symbol: i for i, symbol in enumerate(tokenizer.symbols)},
        "tokenizer_config.json": {**settings, **special, "processor_class": "Wav2Vec2Processor"},
        "special_tokens_map.json": {k: v for k, v in special.items() if v is not None},
    }


def _seq2seq_tokenizer_files(tokenizer: Tokenizer) -> Files:
    if isinstance(tokenizer, ByteBPETokenizer):
        special = dict.fromkeys(
            ("bos_token", "eos_token", "unk_token", "pad_token"), "<|endoftext|>"
        )
        return {
            "tokenizer.json": hf_tokenizer_json(tokenizer),
            "tokenizer_config.json": {
                "tokenizer_class": "WhisperTokenizer",
                "processor_class": "WhisperProcessor",
                **special,
            },
            "special_tokens_map.json": special,
        }
    start_ids, eos_id = tokenizer.start_ids, tokenizer.eos_id
    if not start_ids or eos_id is None or tokenizer.kind == "char":
        raise ValueError(f"a {tokenizer.kind} tokenizer can't be written for whisper")
    if isinstance(tokenizer, SubwordTokenizer):
        content = _unigram_json(tokenizer)
    else:
        assert isinstance(tokenizer, SymbolTokenizer)
        content = _phones_json(tokenizer)
    names = {token["id"]: token["content"] for token in content["added_tokens"]}
    special = {"eos_token": names[eos_id], "pad_token": names[eos_id], "bos_token": names[eos_id]}
    return _fast_tokenizer_files(content, special)


def _fast_tokenizer_files(content: dict[str, Any], special: dict[str, str]) -> Files:
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


def _phones_json(tokenizer: SymbolTokenizer) -> dict[str, Any]:
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


def _unigram_json(tokenizer: SubwordTokenizer) -> dict[str, Any]:
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


def _added(token: str, token_id: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": token, **flags, "special": True}


def _write_folder(folder: Path, files: Files, tensors: dict[str, Tensor]) -> None:
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
        for name, content in files.items():
            text = json.dumps(content, indent=2, ensure_ascii=False)
            (new / name).write_text(text + "\n", encoding="utf-8")
        save_file(tensors, new / "model.safetensors", metadata={"format": "pt"})
        if folder.exists():
            shutil.move(folder, Path(holder) / "old")
        os.replace(new, folder)
