"""Whisper in Hugging Face folders."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.files import JsonObject
from models.facts import DecodingFacts, FrontEndFacts
from models.family import HuggingFace, HuggingFaceFolder, LogMel, Settings, front_end_facts
from models.fields import Field, JsonFile, has_type, shown, take_fields
from models.tokenizers import (
    ByteBPETokenizer,
    SubwordTokenizer,
    SymbolTokenizer,
    Tokenizer,
    hf_tokenizer_json,
)
from models.tokenizers.byte_bpe import TASKS
from models.tokenizers.hf import (
    fast_tokenizer_files,
    front_end_file,
    is_phones_json,
    phones_json,
    refuse_another,
    symbols_by_id,
    unigram_json,
)
from models.weights import ATTENTION_LEAVES, KeyMap
from models.whisper.config import WhisperConfig
from models.whisper.languages import language_token
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
    ("num_mel_bins", "num_mels", "size", 80),
    ("max_source_positions", "audio_positions", "size", 1500),
    ("max_target_positions", "text_positions", "size", 448),
    ("d_model", "d_model", "size", 384),
    ("encoder_layers", "encoder_layers", "size", 4),
    ("decoder_layers", "decoder_layers", "size", 4),
    ("encoder_attention_heads", "encoder_heads", "size", 6),
    ("decoder_attention_heads", "decoder_heads", "size", 6),
    ("encoder_ffn_dim", "encoder_ffn_dim", "size", 1536),
    ("decoder_ffn_dim", "decoder_ffn_dim", "size", 1536),
    ("vocab_size", "vocab_size", "size", 51865),
    ("dropout", "dropout", "share", 0.0),
    ("attention_dropout", "attention_dropout", "share", 0.0),
    ("activation_dropout", "activation_dropout", "share", 0.0),
)


# What changes the function that a model computes, and the only value that ours computes.
_REQUIRED = {
    "activation_function": "gelu",
    "scale_embedding": False,
    "tie_word_embeddings": True,
}


def _finish_config(model: Whisper, decoding: DecodingFacts, hf_config: JsonObject) -> JsonObject:
    hf_config["is_encoder_decoder"] = True
    if decoding.get("start_ids"):
        hf_config["decoder_start_token_id"] = decoding["start_ids"][0]
    return hf_config | {f"{name}_token_id": decoding.get("eos_id") for name in _ENDS}


_DECODING = {
    "decoder_start_token_id": Field("id or null"),
    "eos_token_id": Field("id or list of id or null"),
    "forced_decoder_ids": Field("list of list of any or null", ()),
    "suppress_tokens": Field("list of int or null", ()),
    "begin_suppress_tokens": Field("list of int or null", ()),
    "language": Field("str or null"),
    "task": Field("str or null"),
    "is_multilingual": Field("bool or null", True),
    "lang_to_id": Field("dict of id or null", {}),
    "task_to_id": Field("dict of id or null", {}),
    "no_timestamps_token_id": Field("id or null"),
    "max_length": Field("size or null"),
    "max_new_tokens": Field("size or null"),
}
_FRONT_END = {
    "sampling_rate": Field("any", 16000),
    "hop_length": Field("any", 160),
    "n_fft": Field("any", 400),
    "dither": Field("any", 0.0),
    "do_normalize": Field("any", False),
    "padding_side": Field("any", "right"),
    "padding_value": Field("any", 0.0),
}


def _read_settings(config: WhisperConfig, config_file: JsonFile) -> Settings:
    folder = config_file.path.parent
    # Older folders keep in config.json what newer ones have in a file of its own, which wins.
    files = (config_file, JsonFile.read(folder / "generation_config.json"))
    settings = take_fields(_DECODING, *files)
    tokenizer = _read_text_tokenizer(folder)
    try:
        start_ids = _start_ids(settings, tokenizer)
        eos_id = _eos_id(settings["eos_token_id"], tokenizer)
        for name, i in [("a start id", i) for i in start_ids] + [("eos_token_id", eos_id)]:
            if i >= config.vocab_size:
                raise ValueError(f"{name} is {i}, and vocab_size {config.vocab_size}")
    except ValueError as error:
        path = files[1].path if files[1].content else config_file.path
        raise ValueError(f"{path}: {error}: correct the file") from None

    most_tokens = config.text_positions
    if (new_tokens := settings["max_new_tokens"]) is None:
        # transformers adds the start ids to whisper's max_length before it cuts there
        new_tokens = most_tokens if settings["max_length"] is None else settings["max_length"]
    decoding: DecodingFacts = {
        "start_ids": start_ids,
        "eos_id": eos_id,
        "suppress_ids": ids_within(settings["suppress_tokens"], config.vocab_size),
        "begin_suppress_ids": ids_within(settings["begin_suppress_tokens"], config.vocab_size),
        "max_tokens": min(new_tokens + len(start_ids), most_tokens),
    }
    front_end = front_end_facts(read_front_end(folder, config))
    if tokenizer is None:
        return Settings(_read_phones(folder, eos_id, start_ids), front_end, decoding)
    return Settings(tokenizer.speaking(start_ids), front_end, decoding)


def read_front_end(folder: Path, config: WhisperConfig) -> LogMel:
    """Read what a folder says of its front end; where it says nothing, the model's sizes do.

    Raises:
        ValueError: If it says what is not implemented, or contradicts the sizes.
    """
    file = front_end_file(folder)
    for name, value in take_fields(_FRONT_END, file).items():
        # null is false for the one switch among them
        found = False if name == "do_normalize" and value is None else value
        refuse_another(file, name, found, _FRONT_END[name].default)

    seconds = config.audio_positions / 50  # 20 ms each
    sizes = {"feature_size": config.num_mels, "chunk_length": math.ceil(seconds)}
    for name, value in take_fields({n: Field("any", v) for n, v in sizes.items()}, file).items():
        refuse_another(file, name, value, sizes[name])

    # "own" is written by us, of a model that was trained like that.
    kind = take_fields({"audio_ctx": Field("str or null")}, file)["audio_ctx"]
    if kind not in (None, "own"):
        raise file.error("audio_ctx", "'own'")
    audio_ctx = kind or (None if config.audio_positions == 1500 else seconds)
    return LogMel(num_mels=config.num_mels, audio_ctx=audio_ctx)


def ids_within(ids: Sequence[int], vocab_size: int) -> list[int]:
    """Leave out ids that no token has, such as -1, as transformers does."""
    return [i for i in ids if 0 <= i < vocab_size]


def _eos_id(found: int | list[int] | None, tokenizer: ByteBPETokenizer | None) -> int:
    if isinstance(found, list) and len(set(found)) > 1:
        raise ValueError(f"eos_token_id is {shown(found)}, and only one end is implemented")
    if isinstance(found, list) and found:
        return found[0]
    if isinstance(found, int):
        return found
    return 50256 if tokenizer is None else tokenizer.eos_id


def _start_ids(settings: Mapping[str, Any], tokenizer: ByteBPETokenizer | None) -> list[int]:
    """Return the ids that decoding starts with: English where the file leaves the language open.

    As in transformers, ``language`` and ``task`` come before ``forced_decoder_ids``; it would
    listen for the language where neither names one.

    Raises:
        ValueError: If they name what the model does not know.
    """
    languages = settings["lang_to_id"]
    tasks = settings["task_to_id"]
    no_timestamps = settings["no_timestamps_token_id"]
    multilingual = bool(languages)
    start_id = settings["decoder_start_token_id"]
    if tokenizer is not None:
        special = tokenizer.added_tokens
        multilingual = tokenizer.is_multilingual
        languages = languages or special
        tasks = tasks or {
            name: special[f"<|{name}|>"] for name in TASKS if f"<|{name}|>" in special
        }
        start_id = tokenizer.start_ids[0] if start_id is None else start_id
        no_timestamps = tokenizer.start_ids[-1] if no_timestamps is None else no_timestamps
    start_ids = [50257 if start_id is None else start_id]

    language = settings["language"]
    task = settings["task"]
    if language is None and task is None:
        start_ids += _forced_ids(settings["forced_decoder_ids"], languages)
    if not (multilingual and settings["is_multilingual"]):
        if language_token(language or "en") != "<|en|>" or task not in (None, "transcribe"):
            raise ValueError(
                f"language {shown(language)} and task {shown(task)} are asked of a model that only "
                "transcribes English"
            )
    elif len(start_ids) == 1:
        start_ids.append(_known("language", language_token(language or "en"), languages))
        start_ids.append(_known("task", task or "transcribe", tasks))
    if no_timestamps is not None and start_ids[-1] != no_timestamps:
        start_ids.append(no_timestamps)
    return start_ids


def _known(kind: str, name: str, ids: Mapping[str, int]) -> int:
    if name not in ids:
        raise ValueError(f"{kind} {shown(name)} is not one that the model knows")
    return ids[name]


def _forced_ids(pairs: Sequence[Sequence[Any]], languages: Mapping[str, int]) -> list[int]:
    """Return the ids at positions 1, 2, ...; no id at the first is a language left open."""
    ids: list[Any] = [pair[-1] if pair else None for pair in pairs]
    if ids and list(pairs[0]) == [1, None]:
        ids[0] = _known("language", "<|en|>", languages)
        pairs = [[1, ids[0]], *pairs[1:]]
    if not has_type(ids, "list of id") or list(pairs) != [
        [place, token] for place, token in enumerate(ids, start=1)
    ]:
        raise ValueError(f"forced_decoder_ids is {shown(pairs)}, expected [[1, ID], [2, ID], ...]")
    return ids


def _read_text_tokenizer(folder: Path) -> ByteBPETokenizer | None:
    file = folder / "tokenizer.json"
    if file.is_file():
        return None if is_phones_json(JsonFile.read(file)) else ByteBPETokenizer.from_json(file)
    vocab, merges, added = (
        folder / name for name in ("vocab.json", "merges.txt", "added_tokens.json")
    )
    if not (vocab.is_file() and merges.is_file()):
        return None
    return ByteBPETokenizer.from_slow_files(vocab, merges, added if added.is_file() else None)


def _read_phones(folder: Path, eos_id: int, start_ids: list[int]) -> SymbolTokenizer | None:
    """Read the phones of a ``tokenizer.json`` as ``_write_settings`` writes it."""
    file = JsonFile.read(folder / "tokenizer.json")
    if not file.content:
        return None
    model = JsonFile(file.path, file.content["model"])
    vocab = take_fields({"vocab": Field("dict of id")}, model)["vocab"]
    if vocab is None:
        raise model.error("vocab", "an object")
    return SymbolTokenizer("phone", symbols_by_id(vocab), None, eos_id, start_ids)


def exported_context(model: Whisper, frontend: FrontEndFacts) -> tuple[int, int]:
    """Return the whole seconds of audio that an export takes, and its encoder positions.

    A context that the model was trained on ends its positions early; without one, and for a model
    of each utterance's own length, all of them stay.
    """
    positions, audio_ctx = model.config.audio_positions, frontend.get("audio_ctx")  # 20 ms each
    seconds = math.ceil(positions / 50 if audio_ctx in (None, "own") else float(audio_ctx))
    return seconds, min(50 * seconds, positions)


def _write_settings(model: Whisper, settings: Settings, folder: HuggingFaceFolder) -> None:
    files = folder.files
    seconds, positions = exported_context(model, settings.frontend)
    files["config.json"]["max_source_positions"] = positions
    name = "model.encoder.embed_positions.weight"
    folder.tensors[name] = folder.tensors[name][:positions].clone()

    files["preprocessor_config.json"] = preprocessor_json(model, seconds, settings.frontend)
    if settings.decoding:
        most_tokens = model.config.text_positions
        generation = _generation_config(settings.tokenizer, settings.decoding, most_tokens)
        files["generation_config.json"] = generation
    if settings.tokenizer is not None:
        files |= _tokenizer_files(settings.tokenizer)


def preprocessor_json(model: Whisper, seconds: int, frontend: FrontEndFacts) -> JsonObject:
    """Return ``preprocessor_config.json`` of a model that takes some seconds of audio."""
    own = {"audio_ctx": "own"}  # for the way back; other programs take no notice of it
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
        **(own if frontend.get("audio_ctx") == "own" else {}),
    }


def _generation_config(
    tokenizer: Tokenizer | None, decoding: DecodingFacts, most_tokens: int
) -> JsonObject:
    start_id, *forced = decoding["start_ids"]
    eos_id = decoding["eos_id"]
    max_tokens = decoding["max_tokens"]
    # transformers adds the start ids to whisper's max_length before it cuts there, and published
    # models, which may fill all places, state the number of those
    max_length = max_tokens if max_tokens == most_tokens else max_tokens - 1 - len(forced)
    config: JsonObject = {
        "decoder_start_token_id": start_id,
        "bos_token_id": eos_id,
        "eos_token_id": eos_id,
        "pad_token_id": eos_id,
        "suppress_tokens": list(decoding["suppress_ids"]) or None,
        "begin_suppress_tokens": list(decoding["begin_suppress_ids"]) or None,
        "max_length": max_length,
        "return_timestamps": False,
        "is_multilingual": False,
    }
    if forced:
        config["forced_decoder_ids"] = [[i, token] for i, token in enumerate(forced, start=1)]
    if isinstance(tokenizer, ByteBPETokenizer):
        ids = tokenizer.added_tokens
        config["no_timestamps_token_id"] = ids["<|notimestamps|>"]
        if len(tokenizer.start_ids) > 2:  # start, language, task, no timestamps
            config["is_multilingual"] = True
            config["lang_to_id"] = language_ids(tokenizer)
            config["task_to_id"] = {task: ids[f"<|{task}|>"] for task in TASKS}
    return config


def language_ids(tokenizer: ByteBPETokenizer) -> dict[str, int]:
    """Return the tokens of languages: those between the start and the tasks."""
    ids = tokenizer.added_tokens
    tasks = [ids[f"<|{task}|>"] for task in TASKS if f"<|{task}|>" in ids]
    between = range(tokenizer.start_ids[0] + 1, min(tasks, default=0))
    return {token: i for token, i in ids.items() if i in between}


def _tokenizer_files(tokenizer: Tokenizer) -> dict[str, JsonObject]:
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

    start_ids = tokenizer.start_ids
    eos_id = tokenizer.eos_id
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
    read_config=lambda file, config: config,
    finish_config=_finish_config,
    may_lack=lambda names: (),
    read_settings=_read_settings,
    write_settings=_write_settings,
)
