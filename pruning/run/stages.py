"""Keep the finished stages of a run, and take over those of another run that are the same."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.files import Schema, check_fields, read_archive, write_file
from data.run_folder import read_config
from models.training.distill import SELF, DistillOptions
from pruning.interface import Params, Schedule, check_fit
from pruning.run.options import TrainOptions, as_recorded_now, recorded_options
from pruning.schedules import SCHEDULES, MethodOptions

FORMAT = "parp-stage"
ANEW = "begin the run anew in another folder"
NEVER_MATTER = {"method", "out", "device", "resume", "reuse", "cache", "log_every", "patience"}
PRUNING = {field.name for field in fields(MethodOptions)}
TEACHING = {field.name for field in fields(DistillOptions)}
_CONTENT: Schema = {"weights": "dict of any", "steps": "id", "seconds": "number"}


@dataclass(frozen=True)
class Stage:
    """What a finished stage hands on.

    Attributes:
        weights: Its best in-scope weights by native name, pruned as the stage prunes.
        steps: Optimizer steps that it took.
        seconds: Time that those took.
    """

    weights: dict[str, Tensor]
    steps: int
    seconds: float


def save_stage(folder: Path, name: str, stage: Stage) -> None:
    """Write ``stage`` to the run folder, whole or not at all; "final" ones hand on nothing."""
    if name == "final":
        return
    path = stage_path(folder, name)
    weights = {name: weight.detach().cpu().clone() for name, weight in stage.weights.items()}
    content = {"format": FORMAT, "steps": stage.steps, "seconds": stage.seconds}
    write_file(path, lambda file: torch.save(content | {"weights": weights}, file))


def load_stage(folder: Path, name: str, params: Params | None = None) -> Stage:
    """Read a stage; nothing in the file is executed.

    Args:
        folder: The run.
        name: Name of the stage.
        params: In-scope parameters, which its weights have to fit.

    Raises:
        ValueError: If there is none, it is damaged, or its weights do not fit.
    """
    path = stage_path(folder, name)
    content = read_archive(path, "a stage of a run", ANEW)
    found = content.get("format") if isinstance(content, dict) else None
    if not isinstance(found, str) or found != FORMAT:
        raise ValueError(f"{path} is no stage file of this program: {ANEW}")
    check_fields(content, _CONTENT, path, ANEW)
    if params is not None:
        check_fit(content["weights"], params, f"{path}: weights")
        if missing := params.keys() - content["weights"].keys():
            raise ValueError(f"{path} lacks the weights of {min(missing)}: {ANEW}")
    return Stage(content["weights"], content["steps"], content["seconds"])


def finished_stage(
    folder: Path, schedule: Schedule, options: TrainOptions, params: Params
) -> Stage | None:
    """Return the stage under way if the run has finished it, or the run given as ``reuse`` has.

    Args:
        folder: The run.
        schedule: Its method.
        options: All its options.
        params: In-scope parameters, which its weights have to fit.

    Raises:
        ValueError: If the other run has such a stage, but would have trained it otherwise, or a
            file of it is damaged.
    """
    name = schedule.stage_name
    if stage_path(folder, name).is_file():
        return load_stage(folder, name, params)
    if options.reuse is None:
        return None

    other = Path(options.reuse)
    remedy = "give the run folder of a run to --reuse"
    if not (other / "config.json").is_file():
        raise ValueError(f"{other} has no config.json: {remedy}")
    if not stage_path(other, name).is_file():
        return None
    config = read_config(other / "config.json", remedy)
    begun = as_recorded_now(config["options"])
    _check_reusable(other, schedule, recorded_options(options), begun)

    stage = load_stage(other, name, params)  # before anything of it is taken over
    if options.rewind_step:
        _copy(other / "rewind.pt", folder / "rewind.pt")
    if options.teacher == SELF and _is_dense(schedule):
        _copy(_dense_model(other, begun, schedule), folder / "teacher.pt")
    _copy(stage_path(other, name), stage_path(folder, name))
    return stage


def _copy(source: Path, path: Path) -> None:
    """Copy a file whole or not at all, unless it is there already."""
    if path.is_file():
        return
    try:
        original = source.open("rb")
    except OSError as error:
        raise ValueError(
            f"cannot take over {source} ({error.strerror or error}): give another run to --reuse"
        ) from None
    with original:
        write_file(path, lambda file: shutil.copyfileobj(original, file))


def _is_dense(schedule: Schedule) -> bool:
    """Return whether nothing is pruned in the stage under way."""
    return schedule.rewinds and schedule.stage == 0


def _dense_model(folder: Path, options: Mapping[str, Any], schedule: Schedule) -> Path:
    """Return the file of the whole model that the dense stage of a run has left."""
    if options["teacher"] == SELF:
        return folder / "teacher.pt"
    if schedule.first_run and SCHEDULES.get(options["method"]) is schedule.first_run:
        return folder / "best.pt"
    raise ValueError(
        f"{folder} keeps no whole model of its dense stage to learn from: give a dense run, or one "
        "with --teacher self, to --reuse"
    )


def _check_reusable(
    folder: Path, schedule: Schedule, options: Mapping[str, Any], other: Mapping[str, Any]
) -> None:
    may_differ = NEVER_MATTER | PRUNING - schedule.stage_options(schedule.stage)
    # A run that is its own teacher learns from none until its dense stage is over.
    untaught = {None, SELF} if _is_dense(schedule) else {None}
    if {options["teacher"], other["teacher"]} <= untaught:
        may_differ |= TEACHING

    differing = [k for k in options if k not in may_differ and options[k] != other.get(k)]
    if differing:
        shown = ", ".join(f"{key} is {other.get(key)!r} there" for key in differing)
        raise ValueError(
            f"stage {schedule.stage_name} of {folder} is not what this run would train ({shown}): "
            "give another run to --reuse, or none"
        )


def stage_path(folder: Path, name: str) -> Path:
    """Return the file of a finished stage of the run in ``folder``."""
    return folder / f"stage-{name}.pt"
