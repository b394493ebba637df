"""The model that a run begins with: where its weights come from and what its head stands for."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from data.files import JsonObject
from models import FAMILIES, PRESETS, Family, SpeechModel, build_from_config, build_model, family_of
from models.checkpoint import Checkpoint
from models.facts import FrontEndFacts
from models.family import front_end_facts
from models.tokenizers import Tokenizer
from models.tokenizers.subword import SubwordTokenizer
from models.tokenizers.symbols import SymbolTokenizer
from models.training.recipes import Recipe


def random_checkpoint(model_name: str) -> Checkpoint:
    """Build ``model_name`` with random weights from torch's global generator, without tokenizer."""
    return Checkpoint(build_model(model_name), frontend=default_front_end(model_name))


def default_front_end(model_name: str) -> FrontEndFacts:
    """Return the fields of the front end that a preset has where no weights say otherwise."""
    family = family_of(model_name)
    config = family.config(**PRESETS[model_name].config)
    return front_end_facts(family.front_end(config))


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
    differing = [k for k in sorted(wanted.keys() | sizes) if wanted.get(k) != sizes.get(k)]
    if differing or model.family != loaded.family:
        what = f"a {FAMILIES[loaded.family].name}"
        if differing:
            name = differing[0]
            found, expected = sizes.get(name, "missing"), wanted.get(name, "none")
            what = f"{name} is {found}, expected {expected}"
        fitting = presets_like(loaded)
        meant = f"--model {fitting[0]}" if fitting else f"the weights themselves, --model {source}"
        raise ValueError(f"{source} holds another model than {model_name}: {what}; give {meant}")
    model.load_state_dict(loaded.state_dict())
    checkpoint.model = model


def presets_like(model: SpeechModel) -> list[str]:
    """Return the presets that have the sizes of a model, whatever is dropped or hidden in training.

    Args:
        model: Of any vocabulary.
    """
    family = FAMILIES[model.family]

    def sizes(config: object) -> dict[str, object]:
        return {
            name: value
            for name, value in vars(config).items()
            if not isinstance(value, float) and not name.startswith("mask_")
        }

    built = {
        name: family.config(**{**preset.config, "vocab_size": model.config.vocab_size})
        for name, preset in family.presets.items()
    }
    return [name for name, config in built.items() if sizes(config) == sizes(model.config)]


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
    family = FAMILIES[checkpoint.model.family]
    if target not in family.targets:
        fitting = f"{', '.join(family.targets[:-1])} or {family.targets[-1]}"
        raise ValueError(f"--target {target} is not for {family.name}: give {fitting}")
    if target == "text":
        if checkpoint.tokenizer is None or checkpoint.tokenizer.kind != "bpe":
            raise ValueError(
                f"--target text needs {family.name} weights with their own vocabulary, which these "
                "do not have: give other weights with --init, or another --target"
            )
        return checkpoint.tokenizer
    if target == "subword":
        return SubwordTokenizer.train(texts, size, seq2seq=family.seq2seq)
    build = SymbolTokenizer.for_seq2seq if family.seq2seq else SymbolTokenizer.for_ctc
    return build(target, symbols if target == "phone" else sorted(set("".join(texts))))


def fit_target(
    checkpoint: Checkpoint, target: str, texts: Sequence[str], symbols: Sequence[str], size: int
) -> list[str]:
    """Make ``checkpoint`` ready for a target, in place; return the names of a new head.

    Arguments and errors are those of :func:`target_tokenizer`. Decoding may take twice the tokens
    of the longest training transcript; of text, which is not a closed set and which other programs
    decode too, all that the model has places for.
    """
    tokenizer = target_tokenizer(target, checkpoint, texts, symbols, size)
    longest = max(len(tokenizer.encode(text)) for text in texts)
    max_tokens = sys.maxsize if target == "text" else 2 * longest + 8
    return set_vocabulary(checkpoint, tokenizer, max_tokens)


def set_vocabulary(checkpoint: Checkpoint, tokenizer: Tokenizer, max_tokens: int) -> list[str]:
    """Make ``tokenizer`` the one that the model's outputs stand for, in place.

    A checkpoint that already has an equal tokenizer keeps its head. A CTC head trained on the same
    kind of symbols keeps the rows of those that both have, case aside, and gets new rows for the
    others; ``checkpoint.run.head_rows`` then says so in words.

    Args:
        checkpoint: Model and, if it has one, tokenizer; changed.
        tokenizer: The target's tokenizer.
        max_tokens: Decoding stops at this many ids, start ids included (sequence-to-sequence).

    Returns:
        Native names of the head's parameters where any row of it is new, else none.
    """
    old = checkpoint.tokenizer
    model = checkpoint.model
    family = FAMILIES[model.family]

    is_new = old is None or old.spec() != tokenizer.spec()
    if is_new:
        rows = {} if family.seq2seq else _same_symbols(old, tokenizer)
        trained = [model.get_parameter(name).detach().clone() for name in family.head]
        checkpoint.decoding = family.reset_vocabulary(model, old, tokenizer)
        _copy_rows(model, family.head, trained, rows)
        is_new = len(rows) < tokenizer.vocab_size
        if rows:
            said = _said_of_rows(tokenizer, rows)
            checkpoint.run = dataclasses.replace(checkpoint.run, head_rows=said)
    if family.seq2seq:
        checkpoint.decoding["max_tokens"] = min(max_tokens, model.config.text_positions)
    checkpoint.tokenizer = tokenizer
    return list(family.head) if is_new else []


def _same_symbols(old: Tokenizer | None, new: Tokenizer) -> dict[int, int]:
    """Map ids of ``new`` to those of ``old`` that stand for the same symbol, the blank too."""
    if not isinstance(old, SymbolTokenizer) or not isinstance(new, SymbolTokenizer):
        return {}
    if old.kind != new.kind or old.blank_id is None or new.blank_id is None:
        return {}
    exact = {symbol: i for i, symbol in enumerate(old.symbols) if i != old.blank_id}
    folded = {symbol.casefold(): i for symbol, i in exact.items()}
    rows = {new.blank_id: old.blank_id}
    for i, symbol in enumerate(new.symbols):
        found = exact.get(symbol, folded.get(symbol.casefold()))
        if i != new.blank_id and found is not None:
            rows[i] = found
    return rows if len(rows) > 1 else {}  # the blank alone is no head


def _copy_rows(
    model: SpeechModel, names: Sequence[str], trained: Sequence[Tensor], rows: Mapping[int, int]
) -> None:
    with torch.no_grad():
        for name, old in zip(names, trained, strict=True):
            new = model.get_parameter(name)
            for i, source in rows.items():
                new[i] = old[source]


def _said_of_rows(tokenizer: Tokenizer, rows: Mapping[int, int]) -> str:
    assert isinstance(tokenizer, SymbolTokenizer)
    fresh = [symbol for i, symbol in enumerate(tokenizer.symbols) if i not in rows]
    kept = f"kept {len(rows)} of {tokenizer.vocab_size} rows of the trained CTC head"
    return kept + (f", new are {' '.join(fresh)}" if fresh else "")


def choose_frozen(family: Family, freeze: str | None, source: str) -> str:
    """Return the name of the module that training leaves as it is, or "none".

    Args:
        family: Of the model.
        freeze: What is asked for; None leaves it to the family.
        source: Where the weights come from; random ones are never frozen by default.
    """
    if freeze is None and source != "random" and family.freezable:
        return family.freezable[0]
    return freeze or "none"


def set_frozen(model: SpeechModel, name: str) -> None:
    """Stop training the module that `choose_frozen` named."""
    if name != "none":
        model.get_submodule(name).requires_grad_(False)


def set_regularisation(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Make a recipe's dropout and training masks those of the model, in place, where it has any.

    Masks on log-mels are not here: they lie on the model's inputs, so its task draws them.
    """
    config: JsonObject = dataclasses.asdict(checkpoint.config)
    if recipe.dropout is not None:
        config |= {name: recipe.dropout for name in config if name.endswith("dropout")}
    for name, share in (("time", recipe.mask_time), ("channel", recipe.mask_channel)):
        if share is not None and f"mask_{name}_prob" in config:
            config[f"mask_{name}_prob"] = share
    with torch.random.fork_rng(devices=[]):
        model = build_from_config(checkpoint.model.family, config)
    model.load_state_dict(checkpoint.model.state_dict())
    checkpoint.model = model
