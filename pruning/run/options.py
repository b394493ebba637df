"""Everything that can be said of a run on train.py's command line."""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from data.inputs import DataOptions
from data.options import option
from models import MODEL_NAMES
from models.training.distill import DistillOptions
from models.training.recipes import FitOptions
from pruning.interface import PruneOptions
from pruning.schedules import SCHEDULES

NOT_RECORDED = ("resume", "out", "device", "reuse")  # where and how, not what
CHANGES_NOTHING = ("cache", "log_every")  # options that leave the results as they are


@dataclass(frozen=True, kw_only=True)
class TrainOptions(DataOptions, FitOptions, DistillOptions, PruneOptions):
    """The run."""

    model: str = option(
        f"{', '.join(MODEL_NAMES)}; or weights of any other size, as --init takes them, which are "
        "then what training begins with"
    )
    method: str | None = option(
        "when to prune; without it parp, or dense at sparsity 0", None, choices=tuple(SCHEDULES)
    )
    init: str = option(
        "initial weights: a checkpoint, a folder that models.convert reads, random, or auto "
        "(local weights folder, then the model hub; random for demo models)",
        "auto",
    )
    device: str = option("auto, cpu, cuda or cuda:N", "auto")
    out: str | None = option("run folder; without it runs/<time>-<model>-...", None)
    resume: str | None = option("a last.pt to go on from, or auto: the one in --out, if any", None)
    eval_every: int | None = option("steps between dev scores, else an epoch", None, positive=True)
    log_every: int = option("steps between train events", 10, positive=True)


def method_of(options: TrainOptions) -> str:
    """Return the method asked for, by default parp, or dense at sparsity 0."""
    return options.method or ("parp" if options.sparsity else "dense")


def recorded_options(options: TrainOptions) -> dict[str, Any]:
    """Return the options that say what a run is, as config.json and reports hold them.

    What the method decides where it is not given is recorded as decided.
    """
    chosen = decided(asdict(options) | {"method": method_of(options)})
    return {name: value for name, value in chosen.items() if name not in NOT_RECORDED}


def decided(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with what the method decides where it is not given."""
    chosen = dict(options)
    if chosen.get("cooldown") is None and chosen.get("method") in SCHEDULES:
        chosen["cooldown"] = SCHEDULES[chosen["method"]].default_cooldown
    return chosen


def default_options() -> dict[str, Any]:
    """Return what options are where they are not given; those that must be are left out."""
    return {each.name: each.default for each in fields(TrainOptions) if each.default is not MISSING}
