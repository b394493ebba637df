"""How each model is fine-tuned where the command line does not say."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

from data.options import option
from models import FAMILIES, PRESETS, family_of
from models.family import Family, Recipe
from models.training.tasks import PRECISIONS


def _named_recipes() -> Iterator[tuple[str, Recipe]]:
    """Yield every recipe with what it is for: a family, a family's target, or a preset."""
    for family in FAMILIES.values():
        yield family.name, family.recipe
        for target, recipe in family.target_recipes.items():
            yield f"{family.name} {target}", recipe
        for name, preset in family.presets.items():
            if preset.recipe is not None:
                yield name, preset.recipe


def defaults_of(field: str) -> str:
    """Say what a field is in every recipe, for the command line's help."""
    return ", ".join(f"{name} {getattr(recipe, field):g}" for name, recipe in _named_recipes())


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How the model is fine-tuned.

    Every field is a flag of train.py; those of a recipe default to it.
    """

    steps: int | None = option(
        "optimizer steps, in place of --epochs; 0 prunes and scores without training", None
    )
    epochs: float | None = option(f"passes over train; {defaults_of('epochs')}", None, None, True)
    lr: float | None = option(f"peak learning rate; {defaults_of('lr')}", None, None, True)
    head_lr: float | None = option(f"of a new head; {defaults_of('head_lr')}", None, None, True)
    batch_seconds: float | None = option(
        f"audio in a batch, padding included; {defaults_of('batch_seconds')}", None, None, True
    )
    warmup: float = option("share of the steps in which the learning rate rises", 0.1)
    hold: float | None = option(f"share of the steps at the peak; {defaults_of('hold')}", None)
    grad_accum: int = option("batches summed into one optimizer step", 1, positive=True)
    clip: float = option("largest gradient norm", 1.0, positive=True)
    weight_decay: float = option("AdamW's weight decay", 0.0)
    mask_time: float | None = option(
        "share of frames hidden in training where masks do not overlap; of log-mels by "
        "SpecAugment, two masks each up to this share wide; without it what the preset has",
        None,
    )
    mask_channel: float | None = option("the same of channels, or of mels", None)
    dropout: float | None = option(
        "probability of every dropout in the model; without it what the preset has", None
    )
    label_smoothing: float | None = option(
        "sequence to sequence: share of each target token that the loss spreads over all tokens; "
        f"{defaults_of('label_smoothing')}",
        None,
    )
    freeze: str | None = option(
        "what stays as it is; without it the feature encoder if it is pre-trained, else none",
        None,
        choices=("none", *dict.fromkeys(part for f in FAMILIES.values() for part in f.freezable)),
    )
    precision: str | None = option(
        "inside the model; without it bf16 on CUDA and fp32 on the CPU, where bf16 takes "
        "longer without AMX (amx_bf16 in lscpu)",
        None,
        tuple(PRECISIONS),
    )
    fast: bool = option(
        "leave the padding out of batches and, on CUDA, replay captured graphs; --no-fast takes "
        "the plain path, with the same numbers but for what dropout draws",
        True,
    )
    patience: int = option("non-finite steps in a row before the run stops", 10, positive=True)


def recipe_of(model_name: str, target: str, options: FitOptions) -> Recipe:
    """Return the recipe of a model and target, with what ``options`` change.

    Raises:
        ValueError: If options exclude each other or are out of range.
    """
    if options.steps is not None and options.steps < 0:
        raise ValueError(f"--steps is {options.steps}: give 0, to train nothing, or more")
    if options.steps is not None and options.epochs:
        raise ValueError("--steps and --epochs exclude each other: give one of them")
    family = family_of(model_name)
    if options.freeze not in (None, "none", *family.freezable):
        choice = " or ".join(("none", *family.freezable))
        raise ValueError(f"--freeze {options.freeze} is not for {model_name}: give {choice}")
    recipe = PRESETS[model_name].recipe or family.target_recipes.get(target, family.recipe)
    given = {field.name: getattr(options, field.name) for field in fields(Recipe)}
    recipe = replace(recipe, **{name: value for name, value in given.items() if value is not None})
    if min(options.warmup, recipe.hold) < 0 or options.warmup + recipe.hold >= 1:
        raise ValueError("--warmup and --hold are shares of the run: together less than 1")
    _check_regularisation(recipe, family)
    return recipe


def _check_regularisation(recipe: Recipe, family: Family) -> None:
    """Raise ValueError where a share is out of range or not for the model's family."""
    for name in ("mask_time", "mask_channel", "dropout", "label_smoothing"):
        share = getattr(recipe, name) or 0.0
        highest = "1" if name.startswith("mask") else "less than 1"
        if not 0 <= share <= 1 or (share == 1 and highest != "1"):
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag} is {share:g}: give a share from 0 to {highest}")
    if recipe.label_smoothing and not family.seq2seq:
        raise ValueError(
            f"--label-smoothing is not for {family.name}, whose CTC loss has no one label a frame "
            "to smooth: leave it out"
        )
