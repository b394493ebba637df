"""The record of Whisper, and its presets."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from models.facts import DecodingFacts
from models.family import Family, ForeignFormat, LogMel, Preset, Recipe
from models.spec_augment import SpecAugment
from models.tokenizers import Tokenizer
from models.training.tasks import Seq2SeqTask
from models.whisper.config import DecodingOptions, WhisperConfig
from models.whisper.ctranslate2 import load_ctranslate2
from models.whisper.ctranslate2_export import EXPORT
from models.whisper.decoding import generate
from models.whisper.graphed_decoding import GreedyGraphs
from models.whisper.hugging_face import HUGGING_FACE
from models.whisper.model import PRUNE_SCOPES, Whisper
from models.whisper.openai import is_openai, load_openai


def _size(d_model: int, layers: int, decoder_layers: int | None = None) -> dict[str, int]:
    """Return the fields of a published size: heads of 64, and four times the width inside."""
    sides = {"encoder": layers, "decoder": decoder_layers or layers}
    config = {"d_model": d_model}
    for side, num_layers in sides.items():
        config[f"{side}_layers"] = num_layers
        config[f"{side}_heads"] = d_model // 64
        config[f"{side}_ffn_dim"] = 4 * d_model
    return config


SIZES = {
    "tiny": _size(384, 4),
    "base": _size(512, 6),
    "small": _size(768, 12),
    "medium": _size(1024, 24),
    "large": _size(1280, 32),
}
V3 = {"num_mels": 128, "vocab_size": 51866}
PUBLISHED = {
    **SIZES,
    **{f"{name}.en": SIZES[name] | {"vocab_size": 51864} for name in SIZES if name != "large"},
    "large-v2": SIZES["large"],
    "large-v3": SIZES["large"] | V3,
    "large-v3-turbo": _size(1280, 32, decoder_layers=4) | V3,
}
"""Config fields by the name that openai gave each size; a further one is a line."""

DEMO = {
    "d_model": 96,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_heads": 2,
    "decoder_heads": 2,
    "encoder_ffn_dim": 384,
    "decoder_ffn_dim": 384,
    "vocab_size": 64,
}
EMBEDDING_STD = 0.02


def _task(
    model: Whisper,
    decoding: DecodingFacts,
    precision: str,
    fast: bool,
    spec_augment: SpecAugment | None,
    label_smoothing: float,
) -> Seq2SeqTask:
    if not {"start_ids", "eos_id"} <= decoding.keys():
        raise ValueError(
            "the weights came without the ids that text begins and ends with: convert them again "
            "with their tokenizer.json beside them, or train with another --target"
        )
    options = DecodingOptions(
        start_ids=tuple(decoding["start_ids"]),
        eos_id=decoding["eos_id"],
        max_tokens=decoding["max_tokens"],
        suppress_ids=tuple(decoding["suppress_ids"]),
        begin_suppress_ids=tuple(decoding["begin_suppress_ids"]),
    )
    is_on_gpu = model.decoder.positions.device.type == "cuda"
    graphs = GreedyGraphs() if fast and is_on_gpu else None  # kept from one batch to the next

    def search(log_mel: Tensor, settings: Mapping[str, Any]) -> list[list[int]]:
        return generate(model, log_mel, replace(options, **settings), fast, graphs)

    search_options = frozenset(each.name for each in fields(DecodingOptions))
    regularisation = (spec_augment, label_smoothing)
    return Seq2SeqTask(model, search, search_options, decoding, precision, fast, *regularisation)


def _reset_vocabulary(model: Whisper, old: Tokenizer | None, new: Tokenizer) -> DecodingFacts:
    """Give the tied embedding a row for each symbol of ``new``.

    A row is the mean of the rows of the symbol's spelling in ``old``, or random where there was
    none. Nothing is suppressed in decoding.
    """
    model.reset_vocabulary(_new_embedding(model, old, new))
    assert new.eos_id is not None, "text that a decoder writes has an end"
    return {
        "start_ids": list(new.start_ids or ()),
        "eos_id": new.eos_id,
        "suppress_ids": [],
        "begin_suppress_ids": [],
    }


def _new_embedding(model: Whisper, old: Tokenizer | None, new: Tokenizer) -> Tensor:
    weight = model.decoder.token_embedding.weight.detach()
    embedding = torch.randn(new.vocab_size, weight.shape[1]) * EMBEDDING_STD
    if old is None:
        return embedding
    for i in range(new.vocab_size):
        if spelling := old.encode(" " + new.decode([i])):
            embedding[i] = weight[spelling].mean(0)
    if old.eos_id is not None and new.eos_id is not None:
        embedding[new.eos_id] = weight[old.eos_id]
    if old.start_ids and new.start_ids:
        embedding[new.start_ids[0]] = weight[old.start_ids[0]]
    return embedding


FAMILY = Family(
    model=Whisper,
    config=WhisperConfig,
    presets={
        **{
            f"whisper-{name}": Preset(config, f"openai/whisper-{name}")
            for name, config in PUBLISHED.items()
        },
        "whisper-demo": Preset(DEMO),
    },
    prune_scopes=PRUNE_SCOPES,
    head=("decoder.token_embedding.weight",),
    front_end=lambda config: LogMel(num_mels=config.num_mels),
    seq2seq=True,
    targets=("phone", "text", "subword"),
    task=_task,
    reset_vocabulary=_reset_vocabulary,
    # 8 utterances of 8 s, the batch and rate at which both dense and PARP fine-tuning did best
    # among those tried (docs/results.md).
    recipe=Recipe(lr=5e-5, head_lr=5e-4, batch_seconds=64.0, epochs=10, hold=0.0),
    target_recipes={
        "phone": Recipe(lr=1e-4, head_lr=5e-4, batch_seconds=64.0, epochs=10, hold=0.0)
    },
    decode_seconds=960.0,  # 32 utterances of 30 s
    hugging_face=HUGGING_FACE,
    formats=(
        ForeignFormat(
            "CTranslate2",
            "a folder with model.bin",
            lambda path, content: (path / "model.bin").is_file(),
            lambda path, content: load_ctranslate2(path),
            EXPORT,
        ),
        ForeignFormat(
            "openai-whisper",
            "a file with dims and model_state_dict",
            lambda path, content: is_openai(content),
            load_openai,
        ),
    ),
)
