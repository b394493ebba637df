"""The model that a run begins with: where its weights come from and what its head stands for."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import PRESETS, build_from_config, build_model
from models.checkpoint import Checkpoint
from models.tokenizers import Tokenizer
from models.tokenizers.subword import SubwordTokenizer
from models.tokenizers.symbols import SymbolTokenizer
from models.training.recipes import Recipe
from models.wav2vec2 import Wav2Vec2
from models.whisper import Whisper

HEADS = ("head.weight", "head.bias", "decoder.token_embedding.weight")
EMBEDDING_STD = 0.02


def random_checkpoint(model_name: str) -> Checkpoint:
    """Build ``model_name`` with random weights from torch's global generator, without tokenizer."""
    model = build_model(model_name)
    if isinstance(model, Wav2Vec2):
        frontend: dict[str, Any] = {"kind": "waveform", "normalize": True}
    else:
        assert isinstance(model, Whisper)
        num_mels = model.config.num_mels
        frontend = {"kind": "log_mel", "num_mels": num_mels, "audio_ctx": None}
    return Checkpoint(
        model=model, tokenizer=None, masks={}, frontend=frontend, decoding={}, run={}, training=None
    )


def fit_architecture(checkpoint: Checkpoint, model_name: str, source: str | Path) -> None:
    """Rebuild the model of ``checkpoint`` as ``model_name``, in place, with the same weights.

    Afterwards everything but weights and vocabulary is the preset's: dropout, masking and padding
    belong to the recipe, not to where the weights came from.

    Raises:
        ValueError: If the weights are of another architecture.
    """
    loaded = checkpoint.model
    sizes = {k: tuple(v.shape) for k, v in loaded.state_dict().items()}
    with torch.random.fork_rng(devices=[]):
        model = build_model(model_name, vocab_size=loaded.config.vocab_size)
    wanted = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    for name in sorted(wanted.keys() | sizes.keys()):
        if wanted.get(name) != sizes.get(name):
            raise ValueError(
                f"{source} holds another model than {model_name}: {name} is "
                f"{sizes.get(name, 'missing')}, expected {wanted.get(name, 'none')}; give the "
                f"--model that it is, one of {', '.join(PRESETS)}"
            )
    model.load_state_dict(loaded.state_dict())
    checkpoint.model = model


def target_tokenizer(
    target: str, checkpoint: Checkpoint, texts: Sequence[str], symbols: Sequence[str], size: int
) -> Tokenizer:
    """Return the tokenizer of a target.

    Args:
        target: "phone", "char", "subword" or "text".
        checkpoint: The initial weights; "text" needs their own tokenizer.
        texts: Training transcripts, from which characters and subwords are taken.
        symbols: The phone set.
        size: Vocabulary size of subwords.

    Raises:
        ValueError: If the model has no such target, or its weights lack the tokenizer.
    """
    ctc = isinstance(checkpoint.model, Wav2Vec2)
    if target in ("char", "text") and ctc != (target == "char"):
        fitting = "phone, char or subword" if ctc else "phone, text or subword"
        raise ValueError(f"--target {target} is not for {checkpoint.model.family}: give {fitting}")
    if target == "text":
        if checkpoint.tokenizer is None or checkpoint.tokenizer.kind != "bpe":
            raise ValueError(
                "--target text needs whisper weights with whisper's own vocabulary, which these "
                "do not have: give other weights with --init, or another --target"
            )
        return checkpoint.tokenizer
    if target == "subword":
        return SubwordTokenizer.train(texts, size, seq2seq=not ctc)
    build = SymbolTokenizer.for_ctc if ctc else SymbolTokenizer.for_seq2seq
    return build(target, symbols if target == "phone" else sorted(set("".join(texts))))


def fit_target(
    checkpoint: Checkpoint, target: str, texts: Sequence[str], symbols: Sequence[str], size: int
) -> list[str]:
    """Make ``checkpoint`` ready for a target, in place; return the names of a new head.

    Arguments and errors are those of :func:`target_tokenizer`. Decoding may take twice the tokens
    of the longest training transcript.
    """
    tokenizer = target_tokenizer(target, checkpoint, texts, symbols, size)
    longest = max(len(tokenizer.encode(text)) for text in texts)
    return set_vocabulary(checkpoint, tokenizer, max_tokens=2 * longest + 8)


def set_vocabulary(checkpoint: Checkpoint, tokenizer: Tokenizer, max_tokens: int) -> list[str]:
    """Make ``tokenizer`` the one that the model's outputs stand for, in place.

    A checkpoint that already has an equal tokenizer keeps its head. Otherwise wav2vec2 gets a new
    random CTC head. Whisper gets a new tied embedding: each row the mean of the rows of the
    symbol's spelling in the old vocabulary, or random where there was none; nothing is suppressed
    in decoding.

    Args:
        checkpoint: Model and, if it has one, tokenizer; changed.
        tokenizer: The target's tokenizer.
        max_tokens: Decoding stops at this many ids, start ids included (sequence-to-sequence).

    Returns:
        Native names of the head's parameters where it is new, else none.
    """
    old, model = checkpoint.tokenizer, checkpoint.model
    is_new = old is None or old.spec() != tokenizer.spec()
    if isinstance(model, Wav2Vec2):
        if is_new:
            model.reset_head(tokenizer.vocab_size)
        checkpoint.decoding = {"blank_id": tokenizer.blank_id}
    else:
        assert isinstance(model, Whisper)
        if is_new:
            model.reset_vocabulary(_new_embedding(model, old, tokenizer))
            checkpoint.decoding = {
                "start_ids": list(tokenizer.start_ids or ()),
                "eos_id": tokenizer.eos_id,
                "suppress_ids": [],
                "begin_suppress_ids": [],
            }
        checkpoint.decoding["max_tokens"] = min(max_tokens, model.config.text_positions)
    checkpoint.tokenizer = tokenizer
    return [name for name in HEADS if is_new and name in model.state_dict()]


def set_regularisation(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Make a recipe's dropout and training masks those of the model, in place, where it has any.

    Whisper's masks are not here: they lie on its inputs, so ``models.tasks`` draws them.
    """
    config: dict[str, Any] = dataclasses.asdict(checkpoint.config)
    if recipe.dropout is not None:
        config |= {name: recipe.dropout for name in config if name.endswith("dropout")}
    for name, share in (("time", recipe.mask_time), ("channel", recipe.mask_channel)):
        if share is not None and f"mask_{name}_prob" in config:
            config[f"mask_{name}_prob"] = share
    with torch.random.fork_rng(devices=[]):
        model = build_from_config(checkpoint.model.family, config)
    model.load_state_dict(checkpoint.model.state_dict())
    checkpoint.model = model


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
