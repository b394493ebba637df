"""Whisper weights as openai-whisper saves them: sizes under ``dims`` and ``model_state_dict``."""

from pathlib import Path
from typing import Any

from models.facts import DecodingFacts
from models.family import LogMel, Settings, front_end_facts
from models.fields import Field, JsonFile, take_fields
from models.tokenizers import ByteBPETokenizer
from models.weights import KeyMap, build_renamed
from models.whisper.config import WhisperConfig
from models.whisper.model import Whisper

_LEAVES = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
_BLOCK = {
    **{f"attn.{theirs}": f"self_attn.{ours}" for theirs, ours in _LEAVES.items()},
    "attn_ln": "attn_norm",
    "mlp.0": "ffn.fc1",
    "mlp.2": "ffn.fc2",
    "mlp_ln": "ffn_norm",
}
_CROSS = {
    **{f"cross_attn.{theirs}": f"cross_attn.{ours}" for theirs, ours in _LEAVES.items()},
    "cross_attn_ln": "cross_attn_norm",
}


def _side(side: str, block: dict[str, str]) -> dict[str, str]:
    return {f"{side}.blocks.{{}}.{a}": f"{side}.layers.{{}}.{b}" for a, b in block.items()} | {
        f"{side}.positional_embedding": f"{side}.positions"
    }


_KEYS = KeyMap(
    prefix="",
    pairs={
        "encoder.conv1": "encoder.conv1",
        "encoder.conv2": "encoder.conv2",
        "encoder.ln_post": "encoder.final_norm",
        "decoder.token_embedding": "decoder.token_embedding",
        "decoder.ln": "decoder.final_norm",
        **_side("encoder", _BLOCK),
        **_side("decoder", _BLOCK | _CROSS),
    },
    dropped=("decoder.mask",),  # the causal mask, in the first releases
)
_SIZES = {
    "n_mels": "num_mels",
    "n_audio_ctx": "audio_positions",
    "n_text_ctx": "text_positions",
    "n_audio_state": "d_model",
    "n_audio_layer": "encoder_layers",
    "n_text_layer": "decoder_layers",
    "n_audio_head": "encoder_heads",
    "n_text_head": "decoder_heads",
    "n_vocab": "vocab_size",
}
# Start and end ids by size of the vocabulary: English, multilingual, and that of large-v3.
_SPECIAL_IDS = {
    51864: ([50257, 50362], 50256),
    51865: ([50258, 50259, 50359, 50363], 50257),
    51866: ([50258, 50259, 50360, 50364], 50257),
}


def is_openai(content: Any) -> bool:
    """Return whether a file's content has the form of openai-whisper's."""
    return isinstance(content, dict) and {"dims", "model_state_dict"} <= content.keys()


def load_openai(path: Path, content: Any) -> tuple[Whisper, Settings]:
    """Read openai-whisper's weights.

    The file holds no tokenizer; a ``tokenizer.json`` of Hugging Face beside it is taken. Without
    one, the start and end ids are known by the size of the vocabulary.

    Args:
        path: The file.
        content: What it holds.

    Raises:
        ValueError: If a size or a weight is missing or does not fit.
    """
    sizes = content["dims"]
    tensors = content["model_state_dict"]
    if not isinstance(sizes, dict) or not isinstance(tensors, dict):
        raise ValueError(f"{path}: dims and model_state_dict are no tables: the file is damaged")
    found = take_fields({name: Field("size", 0) for name in _SIZES}, JsonFile(path, sizes))
    config = WhisperConfig(
        **{ours: found[theirs] for theirs, ours in _SIZES.items()},
        encoder_ffn_dim=4 * found["n_audio_state"],
        decoder_ffn_dim=4 * found["n_audio_state"],
    )
    model = build_renamed(Whisper, config, tensors, _KEYS)

    file = path.parent / "tokenizer.json"
    tokenizer = ByteBPETokenizer.from_json(file) if file.is_file() else None
    if tokenizer is not None and tokenizer.vocab_size != config.vocab_size:
        raise ValueError(
            f"{file} has {tokenizer.vocab_size} ids, and the weights {config.vocab_size}: remove "
            "it, or put the model's own there"
        )
    decoding: DecodingFacts = {}
    start_ids, eos_id = _SPECIAL_IDS.get(config.vocab_size, (None, None))
    if tokenizer is not None:
        start_ids = list(tokenizer.start_ids)
        eos_id = tokenizer.eos_id
    if start_ids is not None and eos_id is not None:
        decoding = {
            "start_ids": start_ids,
            "eos_id": eos_id,
            "suppress_ids": [],
            "begin_suppress_ids": [],
            "max_tokens": config.text_positions,
        }
    audio_ctx = None if config.audio_positions == 1500 else config.audio_positions / 50
    front_end = LogMel(num_mels=config.num_mels, audio_ctx=audio_ctx)
    return model, Settings(tokenizer, front_end_facts(front_end), decoding)
