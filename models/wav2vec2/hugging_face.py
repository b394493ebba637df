"""wav2vec 2.0 in Hugging Face folders."""

from collections.abc import Collection
from pathlib import Path

from data.files import JsonObject
from models.facts import DecodingFacts, FrontEndFacts
from models.family import HuggingFace, HuggingFaceFolder, Settings, Waveform, front_end_facts
from models.fields import Field, JsonFile, shown, take_fields, take_table
from models.tokenizers import SubwordTokenizer, SymbolTokenizer, Tokenizer
from models.tokenizers.hf import (
    fast_tokenizer_files,
    front_end_file,
    refuse_another,
    symbols_by_id,
    token_text,
    unigram_json,
)
from models.wav2vec2.config import Wav2Vec2Config
from models.wav2vec2.model import Wav2Vec2
from models.weights import ATTENTION_LEAVES, KeyMap

KEYS = KeyMap(
    prefix="wav2vec2.",
    pairs={
        "feature_extractor.conv_layers.{}.conv": "feature_encoder.layers.{}.conv",
        "feature_extractor.conv_layers.{}.layer_norm": "feature_encoder.layers.{}.norm",
        "feature_projection.layer_norm": "feature_projection.norm",
        "feature_projection.projection": "feature_projection.proj",
        "masked_spec_embed": "masked_embedding",
        # torch's old weight norm kept weight_g and weight_v, its new one numbers them.
        "encoder.pos_conv_embed.conv.parametrizations.weight.original0": (
            "encoder.positional_conv.weight_g"
        ),
        "encoder.pos_conv_embed.conv.parametrizations.weight.original1": (
            "encoder.positional_conv.weight_v"
        ),
        "encoder.pos_conv_embed.conv": "encoder.positional_conv",
        "encoder.layer_norm": "encoder.norm",
        **{
            f"encoder.layers.{{}}.attention.{leaf}": f"encoder.layers.{{}}.self_attn.{leaf}"
            for leaf in ATTENTION_LEAVES
        },
        "encoder.layers.{}.layer_norm": "encoder.layers.{}.attn_norm",
        "encoder.layers.{}.feed_forward.intermediate_dense": "encoder.layers.{}.ffn.fc1",
        "encoder.layers.{}.feed_forward.output_dense": "encoder.layers.{}.ffn.fc2",
        "encoder.layers.{}.final_layer_norm": "encoder.layers.{}.ffn_norm",
        "lm_head": "head",
    },
    unprefixed=("lm_head",),
    # Of pre-training, and a left-over of fine-tuning code from before transformers 4.3.
    dropped=("quantizer.", "project_q.", "project_hid.", "mask_time_emb_vector"),
)

CONFIG = (
    ("conv_dim", "conv_dims", "list of size", (512,) * 7),
    ("conv_kernel", "conv_kernels", "list of size", (10, 3, 3, 3, 3, 2, 2)),
    ("conv_stride", "conv_strides", "list of size", (5, 2, 2, 2, 2, 2, 2)),
    ("conv_bias", "conv_bias", "bool", False),
    ("feat_extract_norm", "conv_norm", "str", "group"),
    ("hidden_size", "d_model", "size", 768),
    ("num_hidden_layers", "num_layers", "size", 12),
    ("num_attention_heads", "num_heads", "size", 12),
    ("intermediate_size", "ffn_dim", "size", 3072),
    ("num_conv_pos_embeddings", "positional_kernel", "size", 128),
    ("num_conv_pos_embedding_groups", "positional_groups", "size", 16),
    ("do_stable_layer_norm", "norm_first", "bool", False),
    ("vocab_size", "vocab_size", "size", 32),
    ("hidden_dropout", "dropout", "share", 0.1),
    ("attention_dropout", "attention_dropout", "share", 0.1),
    ("activation_dropout", "activation_dropout", "share", 0.1),
    ("feat_proj_dropout", "projection_dropout", "share", 0.0),
    ("final_dropout", "head_dropout", "share", 0.1),
    ("layerdrop", "layer_drop", "share", 0.1),
    ("mask_time_prob", "mask_time_prob", "share", 0.05),
    ("mask_time_length", "mask_time_length", "size", 10),
    ("mask_time_min_masks", "mask_time_min", "id", 2),
    ("mask_feature_prob", "mask_channel_prob", "share", 0.0),
    ("mask_feature_length", "mask_channel_length", "size", 10),
    ("mask_feature_min_masks", "mask_channel_min", "id", 0),
    ("layer_norm_eps", "layer_norm_eps", "number", 1e-5),
)


# What changes the function that a model computes, and the only value that ours computes.
REQUIRED = {
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "add_adapter": False,
    "adapter_attn_dim": None,
}


def _read_config(file: JsonFile, config: JsonObject) -> JsonObject:
    if not take_fields({"apply_spec_augment": Field("bool", True)}, file)["apply_spec_augment"]:
        config |= {"mask_time_prob": 0.0, "mask_channel_prob": 0.0}
    return config


def _finish_config(model: Wav2Vec2, decoding: DecodingFacts, hf_config: JsonObject) -> JsonObject:
    config = model.config
    hf_config["num_feat_extract_layers"] = len(config.conv_dims)
    hf_config["apply_spec_augment"] = bool(config.mask_time_prob or config.mask_channel_prob)
    if not hf_config["apply_spec_augment"]:
        # transformers gives a model without mask probabilities no mask embedding to load.
        del hf_config["mask_time_prob"]
    special = {"pad": decoding.get("blank_id"), "bos": None, "eos": None}
    return hf_config | {f"{name}_token_id": value for name, value in special.items()}


def _may_lack(names: Collection[str]) -> tuple[str, ...]:
    """Allow for an encoder alone, and for files without the mask embedding, as many are."""
    may_lack: tuple[str, ...] = ()
    if not any("lm_head." in name for name in names):
        may_lack += ("head.weight", "head.bias")
    if not any(name.endswith("masked_spec_embed") for name in names):
        may_lack += ("masked_embedding",)
    return may_lack


_FRONT_END = {
    "do_normalize": Field("bool", True),
    "sampling_rate": Field("any", 16000),
    "feature_size": Field("any", 1),
    "padding_side": Field("any", "right"),
    "padding_value": Field("any", 0.0),
}


def _read_settings(config: Wav2Vec2Config, file: JsonFile) -> Settings:
    folder = file.path.parent
    extractor = front_end_file(folder)
    front_end = take_fields(_FRONT_END, extractor)
    for name in ("sampling_rate", "feature_size", "padding_side", "padding_value"):
        refuse_another(extractor, name, front_end[name], _FRONT_END[name].default)

    tokenizer = _read_tokenizer(folder, config.vocab_size)
    pad_id = take_fields({"pad_token_id": Field("id or null", 0)}, file)["pad_token_id"]
    blank_id = pad_id if tokenizer is None else tokenizer.blank_id
    if blank_id is None or blank_id >= config.vocab_size:
        raise file.error("pad_token_id", f"an id below vocab_size, {config.vocab_size}")
    frontend = Waveform(normalize=front_end["do_normalize"])
    return Settings(tokenizer, front_end_facts(frontend), {"blank_id": blank_id})


_TOKENIZER = {
    "word_delimiter_token": Field("str or dict of any or null", "|"),
    "pad_token": Field("str or dict of any or null", "<pad>"),
    "tokenizer_class": Field("str or null", ""),
}


def _read_tokenizer(folder: Path, vocab_size: int) -> SymbolTokenizer | None:
    vocab = take_table(JsonFile.read(folder / "vocab.json"), "id")
    if not vocab:
        return None
    added = take_table(JsonFile.read(folder / "added_tokens.json"), "id")
    if len(vocab) < vocab_size:
        vocab |= added
    file = JsonFile.read(folder / "tokenizer_config.json")
    settings = take_fields(_TOKENIZER, file)
    space, blank = (token_text(file, n, settings[n]) for n in ("word_delimiter_token", "pad_token"))
    if blank not in vocab:
        raise ValueError(f"vocab.json has no {shown(blank)}, the pad token that CTC's blank is")
    blank_id = vocab[blank]
    symbols = symbols_by_id({"|" if symbol == space else symbol: i for symbol, i in vocab.items()})
    is_phone = "Phoneme" in settings["tokenizer_class"]
    return SymbolTokenizer("phone" if is_phone else "char", symbols, blank_id=blank_id)


def _write_settings(model: Wav2Vec2, settings: Settings, folder: HuggingFaceFolder) -> None:
    folder.files["preprocessor_config.json"] = _preprocessor(model, settings.frontend)
    if settings.tokenizer is not None:
        folder.files |= _tokenizer_files(settings.tokenizer)


def _preprocessor(model: Wav2Vec2, frontend: FrontEndFacts) -> JsonObject:
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


def _tokenizer_files(tokenizer: Tokenizer) -> dict[str, JsonObject]:
    if isinstance(tokenizer, SubwordTokenizer):
        return fast_tokenizer_files(unigram_json(tokenizer), {"pad_token": "<pad>"})
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


HUGGING_FACE = HuggingFace(
    model_type="wav2vec2",
    architecture="Wav2Vec2ForCTC",
    keys=KEYS,
    config=CONFIG,
    required=REQUIRED,
    read_config=_read_config,
    finish_config=_finish_config,
    may_lack=_may_lack,
    read_settings=_read_settings,
    write_settings=_write_settings,
)
