"""How each model is fine-tuned where the command line does not say."""

from dataclasses import dataclass, replace

from models import PRESETS


@dataclass(frozen=True)
class Recipe:
    """Peak learning rates and amounts of data.

    Attributes:
        lr: Peak learning rate.
        head_lr: Peak learning rate of a new head.
        batch_seconds: Audio in a batch, padding included.
        epochs: Passes over the training set.
        hold: Share of the steps at the peak rate.
    """

    lr: float
    head_lr: float
    batch_seconds: float
    epochs: float
    hold: float


# By model, else by family and target, else by family. wav2vec2: the rate and the phases of the
# authors' recipes and about 32 TIMIT utterances. whisper: 8 utterances of 8 s, the batch and rate
# at which both dense and PARP fine-tuning did best among those tried (docs/results.md).
RECIPES = {
    "wav2vec2": Recipe(lr=1e-4, head_lr=1e-3, batch_seconds=100.0, epochs=20, hold=0.4),
    "whisper": Recipe(lr=5e-5, head_lr=5e-4, batch_seconds=64.0, epochs=10, hold=0.0),
    "whisper phone": Recipe(lr=1e-4, head_lr=5e-4, batch_seconds=64.0, epochs=10, hold=0.0),
    "w2v2-demo": Recipe(lr=2e-3, head_lr=2e-3, batch_seconds=12.0, epochs=40, hold=0.4),
}


def recipe_for(model_name: str, target: str, **given: float | None) -> Recipe:
    """Return the recipe of a model and target, with the fields in ``given`` that are not None."""
    family = PRESETS[model_name].family
    names = (model_name, f"{family} {target}", family)
    recipe = next(RECIPES[name] for name in names if name in RECIPES)
    return replace(recipe, **{name: value for name, value in given.items() if value is not None})


def defaults_of(field: str) -> str:
    """Say what a field is in every recipe, for the command line's help."""
    return ", ".join(f"{name} {getattr(recipe, field):g}" for name, recipe in RECIPES.items())
