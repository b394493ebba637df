"""Whisper in Hugging Face folders."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data.files import read_json
from models.family import HuggingFace, HuggingFaceFolder, LogMel, Settings
from models.tokenizers import (
    ByteBPETokenizer,
    SubwordTokenizer,
    SymbolTokenizer,
    Tokenizer,
    hf_tokenizer_json,
)
from models.tokenizers.hf import fast_tokenizer_files, phones_json, symbols_by_id, unigram_json
from models.weights import ATTENTION_LEAVES, KeyMap
from models.whisper.config import WhisperConfig
from models.whisper.model import Whisper

_ENDS = ("pad", "bos", "eos")  # all of them are the token that ends a text

_KEYS = KeyMap(
    prefix="model.",
    pairs={
        "encoder.conv1": "encoder.conv1",
        "encoder.conv2": "encoder.conv2",
        "decoder.embed_tokens": "decoder.token_embedding",
        "decoder.layers.{}.encoder_attn_layer_norm": "decoder.layers.{}.cross_attn_norm",
        **{
            f"decoder.layers.{{}}.encoder_attn.{leaf}": f"decoder.layers.{{}}.cross_attn.{leaf}"
            for leaf in ATTENTION_LEAVES
        },
        **{
            f"{side}.{foreign}": f"{side}.{native}"
            for side in ("encoder", "decoder")
            for foreign, native in {
                "embed_positions.weight": "positions",
                "layer_norm": "final_norm",
                **{
                    f"layers.{{}}.self_attn.{leaf}": f"layers.{{}}.self_attn.{leaf}"
                    for leaf in ATTENTION_LEAVES
                },
                "layers.{}.self_attn_layer_norm": "layers.{}.attn_norm",
                "layers.{}.fc1": "layers.{}.ffn.fc1",
                "layers.{}.fc2": "layers.{}.ffn.fc2",
                "layers.{}.final_layer_norm": "layers.{}.ffn_norm",
            }.items()
        },
    },
    dropped=("proj_out.",),  # the tied head's second name
)

_CONFIG = (
    ("num_mel_bins", "num_mels", 80),
    ("max_source_positions", "audio_positions", 1500),
    ("max_target_positions", "text_positions", 448),
    ("d_model", "d_model", 384),
    ("encoder_layers", "encoder_layers", 4),
    ("decoder_layers", "decoder_layers", 4),
    ("encoder_attention_heads", "encoder_heads", 6),
    ("decoder_attention_heads", "decoder_heads", 6),
    ("encoder_ffn_dim", "encoder_ffn_dim", 1536),
    ("decoder_ffn_dim", "decoder_ffn_dim", 1536),
    ("vocab_size", "vocab_size", 51865),
    ("dropout", "dropout", 0.0),
    ("attention_dropout", "attention_dropout", 0.0),
    ("activation_dropout", "activation_dropout", 0.0),
)


# What changes the function that a model computes, and the only value that ours computes.
_REQUIRED = {
    "activation_function": "gelu",
    "scale_embedding": False,
    "tie_word_embeddings": True,
}


def _finish_config(
    model: Whisper, decoding: Mapping[str, Any], hf_config: dict[str, Any]
) -> dict[str, Any]:
    hf_config["is_encoder_decoder"] = True
    if decoding.get("start_ids"):
        hf_config["decoder_start_token_id"] = decoding["start_ids"][0]
    return hf_config | {f"{name}_token_id": decoding.get("eos_id") for name in _ENDS}


def _read_settings(folder: Path, config: WhisperConfig, hf_config: Mapping[str, Any]) -> Settings:
    # Settings that older folders keep in config.json; the newer file wins.
    settings = {**hf_config, **read_json(folder / "generation_config.json", needed=False)}
    start_ids = _start_ids(settings)
    tokenizer = _read_tokenizer(folder, settings, start_ids)
    if tokenizer is not None and len(start_ids) == 1 and tokenizer.start_ids:
        start_ids = list(tokenizer.start_ids)
    positions, most_tokens = config.audio_positions, config.text_positions
    audio_ctx: float | str | None = None if positions == 1500 else positions / 50  # 20 ms each
    if read_json(folder / "preprocessor_config.json", needed=False).get("audio_ctx") == "own":
        audio_ctx = "own"  # written by us, of a model that was trained like that
    eos_id = settings.get("eos_token_id", 50256)
    decoding = {
        "start_ids": start_ids,
        "eos_id": eos_id[0] if isinstance(eos_id, list) else eos_id,
        "suppress_ids": list(settings.get("suppress_tokens") or ()),
        "begin_suppress_ids": list(settings.get("begin_suppress_tokens") or ()),
        # transformers adds the start ids to whisper's max_length before it cuts there
        "max_tokens": min(settings.get("max_length", most_tokens) + len(start_ids), most_tokens),
    }
    frontend = LogMel(num_mels=config.num_mels, audio_ctx=audio_ctx)
    return Settings(tokenizer, asdict(frontend), decoding)


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


def _read_tokenizer(
    folder: Path, settings: Mapping[str, Any], start_ids: list[int]
) -> Tokenizer | None:
    file = folder / "tokenizer.json"
    content = read_json(file, needed=False)
    if content.get("model", {}).get("type") == "WordLevel":  # phones, as to_hf writes them
        symbols = symbols_by_id(content["model"]["vocab"])
        return SymbolTokenizer("phone", symbols, None, settings.get("eos_token_id"), start_ids)
    if content:
        return ByteBPETokenizer.from_json(file)
    vocab, merges, added = (
        folder / name for name in ("vocab.json", "merges.txt", "added_tokens.json")
    )
    if not (vocab.is_file() and merges.is_file()):
        return None
    return ByteBPETokenizer.from_slow_files(vocab, merges, added if added.is_file() else None)


def _write_settings(model: Whisper, settings: Settings, folder: HuggingFaceFolder) -> None:
    """Write a model with the context that it was trained on, which ends its positions early."""
    files, positions = folder.files, model.config.audio_positions  # 20 ms each
    audio_ctx: Any = settings.frontend.get("audio_ctx")
    seconds = math.ceil(positions / 50 if audio_ctx in (None, "own") else audio_ctx)
    positions = files["config.json"]["max_source_positions"] = min(50 * seconds, positions)
    name = "model.encoder.embed_positions.weight"
    folder.tensors[name] = folder.tensors[name][:positions].clone()

    files["preprocessor_config.json"] = _preprocessor(model, seconds)
    if audio_ctx == "own":  # for the way back; transformers takes no notice of it
        files["preprocessor_config.json"]["audio_ctx"] = audio_ctx
    if settings.decoding:
        generation = _generation_config(settings.tokenizer, settings.decoding)
        files["generation_config.json"] = generation
    if settings.tokenizer is not None:
        files |= _tokenizer_files(settings.tokenizer)


def _preprocessor(model: Whisper, seconds: int) -> dict[str, Any]:
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


def _tokenizer_files(tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
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
        content = unigram_json(tokenizer)
    else:
        assert isinstance(tokenizer, SymbolTokenizer)
        content = phones_json(tokenizer)
    names = {token["id"]: token["content"] for token in content["added_tokens"]}
    special = {"eos_token": names[eos_id], "pad_token": names[eos_id], "bos_token": names[eos_id]}
    return fast_tokenizer_files(content, special)


HUGGING_FACE = HuggingFace(
    model_type="whisper",
    architecture="WhisperForConditionalGeneration",
    keys=_KEYS,
    config=_CONFIG,
    required=_REQUIRED,
    read_config=lambda hf_config, config: config,
    finish_config=_finish_config,
    may_lack=lambda hf_config, names: (),
    read_settings=_read_settings,
    write_settings=_write_settings,
)
