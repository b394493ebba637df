"""Everything that can be said of a run on train.py's command line."""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, ClassVar

from data.files import JsonObject
from data.inputs import DataOptions
from data.options import option
from models import MODEL_NAMES
from models.training.distill import DistillOptions
from models.training.recipes import FitOptions
from pruning.schedules import OPTIONS_TAKEN, SCHEDULES, MethodOptions, methods_taking

NOT_RECORDED = (
    "resume",
    "out",
    "device",
    "reuse",
    "keep",
    "tensorboard",
)  # where and how, not what
CHANGES_NOTHING = ("cache", "log_every")  # options that leave the results as they are


def _takers() -> dict[str, str]:
    """Return by option which methods take it, where not all do."""
    notes = {}
    for each in fields(MethodOptions):
        taking = methods_taking(each.name).split(", ")
        others = [name for name in SCHEDULES if name not in taking]
        if others:
            few = len(taking) <= len(SCHEDULES) / 2
            notes[each.name] = ", ".join(taking) if few else f"not {', '.join(others)}"
    return notes


@dataclass(frozen=True, kw_only=True)
class TrainOptions(DataOptions, FitOptions, DistillOptions, MethodOptions):
    """The run."""

    notes: ClassVar[Mapping[str, str]] = _takers()

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
    resume: str | None = option(
        "a last.pt to go on from, or its folder, or auto: the one in --out, if any", None
    )
    eval_every: int | None = option(
        "steps between dev scores, else an epoch or, where that is more, a tenth of the run",
        None,
        positive=True,
    )
    log_every: int = option("steps between train events", 10, positive=True)
    keep: str = option(
        "what a finished run leaves: all, or best, without last.pt, which only resuming needs",
        "all",
        ("all", "best"),
    )
    tensorboard: bool = option("write every event for TensorBoard too, in --out", False)

    def __post_init__(self) -> None:
        """Check the ranges, and that nothing is asked for that would change nothing."""
        super().__post_init__()
        values = vars(self)
        unused = self.unused_options(values)
        for each in fields(self):
            if each.name in unused and values[each.name] != each.default:
                flag = "--" + each.name.replace("_", "-")
                raise ValueError(f"{flag} {unused[each.name]}, or leave it out")

    @classmethod
    def unused_options(cls, values: Mapping[str, Any]) -> dict[str, str]:
        """Return by name why an option changes nothing beside the values of others.

        Args:
            values: Of the options that are not at their defaults, and of any others. A method that
                is not known here is taken to use all.
        """
        method = method_of(values)
        unused = {}
        if method in SCHEDULES:
            names = {each.name for each in fields(MethodOptions)} - OPTIONS_TAKEN[method]
            for name in names:
                unused[name] = f"is not for {method}: use it with {methods_taking(name)}"

        if values.get("teacher") in (None, "none"):
            names = {each.name for each in fields(DistillOptions)} - {"teacher"}
            unused |= dict.fromkeys(names, "is for a run with a teacher: give --teacher")
        target = values.get("target", "phone")
        for name, wanted in (("phones", "phone"), ("subword_vocab", "subword")):
            if target != wanted:
                unused[name] = f"is for another target: give --target {wanted}"
        return unused


def method_of(options: Mapping[str, Any]) -> str:
    """Return the method that options ask for, by default parp, or dense at sparsity 0."""
    return options.get("method") or ("parp" if options.get("sparsity") else "dense")


def used_options(options: Mapping[str, Any], keep_vital: bool = False) -> JsonObject:
    """Return the options without those that change nothing beside the others.

    Args:
        options: By name; what is none of train.py's stays.
        keep_vital: Whether to keep those without which the run would not be what was asked for,
            for train.py to refuse.
    """
    unused = {*TrainOptions.unused_options(options)}
    if keep_vital:
        unused -= {each.name for each in fields(TrainOptions) if each.metadata.get("vital")}
    return {name: value for name, value in options.items() if name not in unused}


def recorded_options(options: TrainOptions) -> JsonObject:
    """Return the options that say what a run is, as config.json and reports hold them.

    What the method decides where it is not given is recorded as decided.
    """
    chosen = as_recorded_now(asdict(options))
    return {name: value for name, value in chosen.items() if name not in NOT_RECORDED}


def as_recorded_now(options: Mapping[str, Any]) -> JsonObject:
    """Return a run's options, of an earlier version too, as a run of today would record them.

    Those that are newer than the run, or change nothing in it, are at their defaults.
    """
    chosen = default_options() | used_options({**options, "method": method_of(options)})
    cls = SCHEDULES.get(chosen["method"])
    return cls.resolve(chosen) if cls else chosen


def default_options() -> JsonObject:
    """Return what options are where they are not given; those that must be are left out."""
    return {each.name: each.default for each in fields(TrainOptions) if each.default is not MISSING}
