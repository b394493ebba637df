"""How each model is fine-tuned where the command line does not say."""

from dataclasses import dataclass, field, fields, replace
from typing import Any

from models import PRESETS
from models.training.tasks import PRECISIONS
from models.whisper.spec_augment import SpecAugment


@dataclass(frozen=True)
class Recipe:
    """Peak learning rates, amounts of data, and what keeps a model from learning it by heart.

    Attributes:
        lr: Peak learning rate.
        head_lr: Peak learning rate of a new head.
        batch_seconds: Audio in a batch, padding included.
        epochs: Passes over the training set.
        hold: Share of the steps at the peak rate.
        mask_time: Share of frames hidden in training; None is what the preset has, whisper's 0.
        mask_channel: The same of wav2vec2's channels, or whisper's mels.
        dropout: Probability of every dropout; None is what the preset has.
        label_smoothing: Of a sequence-to-sequence loss.
    """

    lr: float
    head_lr: float
    batch_seconds: float
    epochs: float
    hold: float
    mask_time: float | None = None
    mask_channel: float | None = None
    dropout: float | None = None
    label_smoothing: float = 0.0

    @property
    def spec_augment(self) -> SpecAugment:
        """What whisper's training hides of a log-mel."""
        return SpecAugment(self.mask_time or 0.0, self.mask_channel or 0.0)


# By model, else by family and target, else by family. wav2vec2: the rate and the phases of the
# authors' recipes and about 32 TIMIT utterances. whisper: 8 utterances of 8 s, the batch and rate
# at which both dense and PARP fine-tuning did best among those tried (docs/results.md).
RECIPES = {
    "wav2vec2": Recipe(lr=1e-4, head_lr=1e-3, batch_seconds=100.0, epochs=20, hold=0.4),
    "whisper": Recipe(lr=5e-5, head_lr=5e-4, batch_seconds=64.0, epochs=10, hold=0.0),
    "whisper phone": Recipe(lr=1e-4, head_lr=5e-4, batch_seconds=64.0, epochs=10, hold=0.0),
    "w2v2-demo": Recipe(lr=2e-3, head_lr=2e-3, batch_seconds=12.0, epochs=40, hold=0.4),
}


def defaults_of(field: str) -> str:
    """Say what a field is in every recipe, for the command line's help."""
    return ", ".join(f"{name} {getattr(recipe, field):g}" for name, recipe in RECIPES.items())


def _option(help: str, default: Any, choices: Any = None, positive: bool = False) -> Any:
    """Describe a field that train.py makes a flag of."""
    return field(default=default, metadata={"help": help, "choices": choices, "positive": positive})


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How the model is fine-tuned.

    Every field is a flag of train.py; those of a recipe default to it.
    """

    steps: int | None = _option("optimizer steps, in place of --epochs", None, positive=True)
    epochs: float | None = _option(f"passes over train; {defaults_of('epochs')}", None, None, True)
    lr: float | None = _option(f"peak learning rate; {defaults_of('lr')}", None, None, True)
    head_lr: float | None = _option(f"of a new head; {defaults_of('head_lr')}", None, None, True)
    batch_seconds: float | None = _option(
        f"audio in a batch, padding included; {defaults_of('batch_seconds')}", None, None, True
    )
    warmup: float = _option("share of the steps in which the learning rate rises", 0.1)
    hold: float | None = _option(f"share of the steps at the peak; {defaults_of('hold')}", None)
    grad_accum: int = _option("batches summed into one optimizer step", 1, positive=True)
    clip: float = _option("largest gradient norm", 1.0, positive=True)
    weight_decay: float = _option("AdamW's weight decay", 0.0)
    mask_time: float | None = _option(
        "share of frames hidden in training where masks do not overlap; whisper: by SpecAugment, "
        "two masks each up to this share wide; without it what the preset has, whisper's 0",
        None,
    )
    mask_channel: float | None = _option(
        "the same of wav2vec2's channels, or of whisper's mels", None
    )
    dropout: float | None = _option(
        "probability of every dropout in the model; without it what the preset has", None
    )
    label_smoothing: float | None = _option(
        "whisper: share of each target token that the loss spreads over all tokens; "
        f"{defaults_of('label_smoothing')}",
        None,
    )
    freeze: str | None = _option(
        "parameters that stay as they are; without it the feature encoder of pre-trained wav2vec2",
        None,
        choices=("none", "feature_encoder"),
    )
    precision: str | None = _option(
        "inside the model; without it bf16 on CUDA, fp32 on the CPU", None, tuple(PRECISIONS)
    )
    fast: bool = _option(
        "leave the padding out of batches and, on CUDA, replay captured graphs; --no-fast takes "
        "the plain path, with the same numbers but for what dropout draws",
        True,
    )
    patience: int = _option("non-finite steps in a row before the run stops", 10, positive=True)


def recipe_of(model_name: str, target: str, options: FitOptions) -> Recipe:
    """Return the recipe of a model and target, with what ``options`` change.

    Raises:
        ValueError: If options exclude each other or are out of range.
    """
    if options.steps and options.epochs:
        raise ValueError("--steps and --epochs exclude each other: give one of them")
    family = PRESETS[model_name].family
    if options.freeze == "feature_encoder" and family != "wav2vec2":
        raise ValueError(f"--freeze feature_encoder is not for {model_name}: give none")
    names = (model_name, f"{family} {target}", family)
    recipe = next(RECIPES[name] for name in names if name in RECIPES)
    given = {field.name: getattr(options, field.name) for field in fields(Recipe)}
    recipe = replace(recipe, **{name: value for name, value in given.items() if value is not None})
    if min(options.warmup, recipe.hold) < 0 or options.warmup + recipe.hold >= 1:
        raise ValueError("--warmup and --hold are shares of the run: together less than 1")
    _check_regularisation(recipe, family)
    return recipe


def _check_regularisation(recipe: Recipe, family: str) -> None:
    """Raise ValueError where a share is out of range or not for the model's family."""
    for name in ("mask_time", "mask_channel", "dropout", "label_smoothing"):
        share = getattr(recipe, name) or 0.0
        highest = "1" if name.startswith("mask") else "less than 1"
        if not 0 <= share <= 1 or (share == 1 and highest != "1"):
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag} is {share:g}: give a share from 0 to {highest}")
    if recipe.label_smoothing and family == "wav2vec2":
        raise ValueError(
            "--label-smoothing is not for wav2vec2, whose CTC loss has no one label a frame to "
            "smooth: leave it out"
        )
