"""wav2vec 2.0 in Hugging Face folders."""

from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data.files import read_json
from models.family import HuggingFace, HuggingFaceFolder, Settings, Waveform
from models.tokenizers import SubwordTokenizer, SymbolTokenizer, Tokenizer
from models.tokenizers.hf import fast_tokenizer_files, symbols_by_id, unigram_json
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
    dropped=("quantizer.", "project_q.", "project_hid."),  # of pre-training
)

CONFIG = (
    ("conv_dim", "conv_dims", (512,) * 7),
    ("conv_kernel", "conv_kernels", (10, 3, 3, 3, 3, 2, 2)),
    ("conv_stride", "conv_strides", (5, 2, 2, 2, 2, 2, 2)),
    ("conv_bias", "conv_bias", False),
    ("feat_extract_norm", "conv_norm", "group"),
    ("hidden_size", "d_model", 768),
    ("num_hidden_layers", "num_layers", 12),
    ("num_attention_heads", "num_heads", 12),
    ("intermediate_size", "ffn_dim", 3072),
    ("num_conv_pos_embeddings", "positional_kernel", 128),
    ("num_conv_pos_embedding_groups", "positional_groups", 16),
    ("do_stable_layer_norm", "norm_first", False),
    ("vocab_size", "vocab_size", 32),
    ("hidden_dropout", "dropout", 0.1),
    ("attention_dropout", "attention_dropout", 0.1),
    ("activation_dropout", "activation_dropout", 0.1),
    ("feat_proj_dropout", "projection_dropout", 0.0),
    ("final_dropout", "head_dropout", 0.1),
    ("layerdrop", "layer_drop", 0.1),
    ("mask_time_prob", "mask_time_prob", 0.05),
    ("mask_time_length", "mask_time_length", 10),
    ("mask_time_min_masks", "mask_time_min", 2),
    ("mask_feature_prob", "mask_channel_prob", 0.0),
    ("mask_feature_length", "mask_channel_length", 10),
    ("mask_feature_min_masks", "mask_channel_min", 0),
    ("layer_norm_eps", "layer_norm_eps", 1e-5),
)


# What changes the function that a model computes, and the only value that ours computes.
REQUIRED = {
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "add_adapter": False,
    "adapter_attn_dim": None,
}


def _read_config(hf_config: Mapping[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    if not hf_config.get("apply_spec_augment", True):
        config |= {"mask_time_prob": 0.0, "mask_channel_prob": 0.0}
    return config


def _finish_config(
    model: Wav2Vec2, decoding: Mapping[str, Any], hf_config: dict[str, Any]
) -> dict[str, Any]:
    config = model.config
    hf_config["num_feat_extract_layers"] = len(config.conv_dims)
    hf_config["apply_spec_augment"] = bool(config.mask_time_prob or config.mask_channel_prob)
    if not hf_config["apply_spec_augment"]:
        # transformers gives a model without mask probabilities no mask embedding to load.
        del hf_config["mask_time_prob"]
    special = {"pad": decoding.get("blank_id"), "bos": None, "eos": None}
    return hf_config | {f"{name}_token_id": value for name, value in special.items()}


def _may_lack(hf_config: Mapping[str, Any], names: Collection[str]) -> tuple[str, ...]:
    """Allow for an encoder alone, and for the mask embedding that transformers may not make."""
    may_lack: tuple[str, ...] = ()
    if not any("lm_head." in name for name in names):
        may_lack += ("head.weight", "head.bias")
    if not (hf_config.get("mask_time_prob", 0.05) or hf_config.get("mask_feature_prob", 0.0)):
        may_lack += ("masked_embedding",)
    return may_lack


def _read_settings(folder: Path, config: Wav2Vec2Config, hf_config: Mapping[str, Any]) -> Settings:
    preprocessor = read_json(folder / "preprocessor_config.json", needed=False)
    tokenizer = _read_tokenizer(folder, config.vocab_size)
    blank_id = hf_config.get("pad_token_id", 0) if tokenizer is None else tokenizer.blank_id
    frontend = Waveform(normalize=preprocessor.get("do_normalize", True))
    return Settings(tokenizer, asdict(frontend), {"blank_id": blank_id})


def _read_tokenizer(folder: Path, vocab_size: int) -> SymbolTokenizer | None:
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
    symbols = symbols_by_id({"|" if symbol == space else symbol: i for symbol, i in vocab.items()})
    is_phone = "Phoneme" in settings.get("tokenizer_class", "")
    return SymbolTokenizer("phone" if is_phone else "char", symbols, blank_id=blank_id)


def _write_settings(model: Wav2Vec2, settings: Settings, folder: HuggingFaceFolder) -> None:
    folder.files["preprocessor_config.json"] = _preprocessor(model, settings.frontend)
    if settings.tokenizer is not None:
        folder.files |= _tokenizer_files(settings.tokenizer)


def _preprocessor(model: Wav2Vec2, frontend: Mapping[str, Any]) -> dict[str, Any]:
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


def _tokenizer_files(tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
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
