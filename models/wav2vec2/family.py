"""The record of wav2vec 2.0, and its presets."""

from typing import Any

from models.facts import DecodingFacts
from models.family import Family, ForeignFormat, Preset, Recipe, Waveform
from models.tokenizers import Tokenizer
from models.training.tasks import CTCTask
from models.wav2vec2.config import Wav2Vec2Config
from models.wav2vec2.hugging_face import HUGGING_FACE
from models.wav2vec2.model import PRUNE_SCOPES, Wav2Vec2
from models.wav2vec2.other_formats import (
    is_fairseq,
    is_torchaudio,
    load_fairseq,
    load_torchaudio,
)

LARGE_SIZES = {"d_model": 1024, "num_layers": 24, "num_heads": 16, "ffn_dim": 4096}
PRE_NORM = {"conv_norm": "layer", "conv_bias": True, "norm_first": True}
LARGE = PRE_NORM | LARGE_SIZES
DEMO = {
    "conv_dims": (32, 32, 48, 64, 64, 96, 96),
    "conv_kernels": (20, 4, 3, 3, 3, 2, 2),
    "conv_strides": (10, 2, 2, 2, 2, 2, 1),
    "conv_norm": "layer",
    "conv_bias": True,
    "norm_first": True,
    "d_model": 128,
    "num_layers": 3,
    "num_heads": 4,
    "ffn_dim": 512,
    "positional_kernel": 32,
    "positional_groups": 4,
    "activation_dropout": 0.0,
    "layer_drop": 0.0,
    "mask_time_prob": 0.2,
    "mask_channel_prob": 0.1,
}
DEMO_RECIPE = Recipe(lr=2e-3, head_lr=2e-3, batch_seconds=12.0, epochs=40, hold=0.4)


def _task(model: Wav2Vec2, decoding: DecodingFacts, precision: str, fast: bool, *_: Any) -> CTCTask:
    return CTCTask(model, decoding["blank_id"], precision, fast)


def _reset_vocabulary(model: Wav2Vec2, old: Tokenizer | None, new: Tokenizer) -> DecodingFacts:
    """Draw a new head, whatever the old one stood for."""
    assert new.blank_id is not None, "CTC has a blank"
    model.reset_head(new.vocab_size)
    return {"blank_id": new.blank_id}


FAMILY = Family(
    model=Wav2Vec2,
    config=Wav2Vec2Config,
    old_config_fields=("padding",),  # how a batch is computed, which is no part of the model
    presets={
        "w2v2": Preset(hub_id="facebook/wav2vec2-base"),
        "w2v2-large": Preset(LARGE_SIZES, "facebook/wav2vec2-large"),
        "w2v2-large-lv60": Preset(LARGE, "facebook/wav2vec2-large-lv60"),
        "xlsr-53": Preset(LARGE, "facebook/wav2vec2-large-xlsr-53"),
        "xls-r-300m": Preset(LARGE, "facebook/wav2vec2-xls-r-300m"),
        "w2v2-demo": Preset(DEMO, recipe=DEMO_RECIPE),
    },
    prune_scopes=PRUNE_SCOPES,
    head=("head.weight", "head.bias"),
    freezable=("feature_encoder",),
    front_end=lambda config: Waveform(),
    seq2seq=False,
    targets=("phone", "char", "subword"),
    task=_task,
    reset_vocabulary=_reset_vocabulary,
    # The rate and the phases of the authors' recipes, and about 32 TIMIT utterances.
    recipe=Recipe(lr=1e-4, head_lr=1e-3, batch_seconds=100.0, epochs=20, hold=0.4),
    decode_seconds=120.0,
    hugging_face=HUGGING_FACE,
    formats=(
        ForeignFormat(
            "fairseq",
            "a file with the weights under model",
            lambda path, content: is_fairseq(content),
            load_fairseq,
        ),
        ForeignFormat(
            "torchaudio",
            "a state dict of Wav2Vec2Model",
            lambda path, content: is_torchaudio(content),
            load_torchaudio,
        ),
    ),
)
