"""The record of HuBERT, its presets, and its Hugging Face folders: wav2vec 2.0's but for names."""

from dataclasses import replace

from models.family import Preset
from models.hubert.model import Hubert, HubertConfig
from models.wav2vec2 import family as wav2vec2
from models.wav2vec2 import hugging_face

XLARGE = wav2vec2.PRE_NORM | {"d_model": 1280, "num_layers": 48, "num_heads": 16, "ffn_dim": 5120}

HUGGING_FACE = replace(
    hugging_face.HUGGING_FACE,
    model_type="hubert",
    architecture="HubertForCTC",
    keys=replace(hugging_face.KEYS, prefix="hubert.", dropped=("mask_time_emb_vector",)),
    config=(*hugging_face.CONFIG, ("feat_proj_layer_norm", "projection_norm", "bool", True)),
    required={**hugging_face.REQUIRED, "conv_pos_batch_norm": False},
)

FAMILY = replace(
    wav2vec2.FAMILY,
    model=Hubert,
    config=HubertConfig,
    old_config_fields=(),
    presets={
        "hubert": Preset(hub_id="facebook/hubert-base-ls960"),
        "hubert-large": Preset(wav2vec2.LARGE, "facebook/hubert-large-ll60k"),
        "hubert-xlarge": Preset(XLARGE, "facebook/hubert-xlarge-ll60k"),
        "hubert-demo": Preset(wav2vec2.DEMO, recipe=wav2vec2.DEMO_RECIPE),
    },
    hugging_face=HUGGING_FACE,
    formats=(),
)
