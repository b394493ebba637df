"""Configs of Hugging Face models and our own: one table per family, read in both directions."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from models import SpeechModel, Wav2Vec2, build_from_config

# Hugging Face's name, our name, Hugging Face's default (old files leave defaults out).
_WAV2VEC2 = (
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
_WHISPER = (
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
_TABLES = {"wav2vec2": _WAV2VEC2, "whisper": _WHISPER}
# What changes the function that a model computes, and the only value that ours computes.
_REQUIRED: dict[str, dict[str, Any]] = {
    "wav2vec2": {
        "hidden_act": "gelu",
        "feat_extract_activation": "gelu",
        "add_adapter": False,
        "adapter_attn_dim": None,
    },
    "whisper": {
        "activation_function": "gelu",
        "scale_embedding": False,
        "tie_word_embeddings": True,
    },
}
_ARCHITECTURES = {"wav2vec2": "Wav2Vec2ForCTC", "whisper": "WhisperForConditionalGeneration"}


def build_from_hf_config(config: Mapping[str, Any]) -> SpeechModel:
    """Build the model that a Hugging Face ``config.json`` describes, with random weights.

    Settings of no consequence for the model are ignored. ``apply_spec_augment: false`` becomes
    mask probabilities of 0.

    Raises:
        ValueError: If the model type, or a setting that changes the numbers, is not implemented.
    """
    family = config.get("model_type", "")
    if family not in _TABLES:
        raise ValueError(
            f"model_type {family!r} is not implemented: only {' and '.join(_TABLES)} are"
        )
    for name, wanted in _REQUIRED[family].items():
        if config.get(name, wanted) != wanted:
            raise ValueError(f"{name} = {config[name]!r} is not implemented, only {wanted!r} is")
    native = {ours: config.get(theirs, default) for theirs, ours, default in _TABLES[family]}
    if family == "wav2vec2":
        if not config.get("apply_spec_augment", True):
            native |= {"mask_time_prob": 0.0, "mask_channel_prob": 0.0}
    return build_from_config(family, native)


def hf_config(model: SpeechModel, decoding: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of ``config.json`` for ``model``.

    Args:
        model: Any model of ours.
        decoding: As a checkpoint holds it; {} leaves the special ids undefined.
    """
    family, native = model.family, asdict(model.config)
    config = {theirs: native[ours] for theirs, ours, _ in _TABLES[family]}
    config |= _REQUIRED[family]
    config |= {"model_type": family, "architectures": [_ARCHITECTURES[family]], "dtype": "float32"}
    if isinstance(model, Wav2Vec2):
        config["num_feat_extract_layers"] = len(model.config.conv_dims)
        config["apply_spec_augment"] = bool(native["mask_time_prob"] or native["mask_channel_prob"])
        if not config["apply_spec_augment"]:
            # transformers gives a model without mask probabilities no mask embedding to load.
            del config["mask_time_prob"]
        special = {"pad": decoding.get("blank_id"), "bos": None, "eos": None}
    else:
        eos_id = decoding.get("eos_id")
        special = {"pad": eos_id, "bos": eos_id, "eos": eos_id}
        config["is_encoder_decoder"] = True
        if decoding.get("start_ids"):
            config["decoder_start_token_id"] = decoding["start_ids"][0]
    return config | {f"{name}_token_id": value for name, value in special.items()}
