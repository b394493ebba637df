"""Keep the finished stages of a run, and take over those of another run that are the same."""

import pickle
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.files import read_json, write_file
from pruning.interface import PruneOptions

FORMAT = "parp-stage"
# Options that change no weight of a stage.
_PRUNING = {field.name for field in fields(PruneOptions)}
_PRUNING -= {"seed", "rewind_step", "scope", "biases", "pattern"}  # these say what is handed on
_MAY_DIFFER = {"dense": _PRUNING, "round": {"sparsity"}, "parp": set[str]()}
_TEACHING = {"teacher", "distill_task", "distill_logits", "distill_hidden", "temperature"}
_NEVER_MATTER = {"method", "out", "device", "resume", "reuse", "cache", "log_every", "patience"}


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
    path = _stage_path(folder, name)
    weights = {name: weight.detach().cpu().clone() for name, weight in stage.weights.items()}
    content = {"format": FORMAT, "steps": stage.steps, "seconds": stage.seconds}
    write_file(path, lambda file: torch.save(content | {"weights": weights}, file))


def load_stage(folder: Path, name: str) -> Stage:
    """Read a stage; nothing in the file is executed.

    Raises:
        ValueError: If there is none, or it is damaged.
    """
    path = _stage_path(folder, name)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(
            f"cannot read stage file {path} ({type(error).__name__}): begin the run anew in "
            "another folder"
        ) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is no stage file of this program: begin the run anew")
    return Stage(content["weights"], content["steps"], content["seconds"])


def finished_stage(
    folder: Path, name: str, options: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> Stage | None:
    """Return a stage that the run has finished, or that the run given as ``reuse`` has.

    Args:
        folder: The run.
        name: Name of the stage.
        options: All its options.
        defaults: Values of options that are newer than the other run, under which it was begun.

    Raises:
        ValueError: If the other run has such a stage, but would have trained it otherwise.
    """
    if _stage_path(folder, name).is_file():
        return load_stage(folder, name)
    if options["reuse"] is None:
        return None
    other = Path(options["reuse"])
    remedy = "give the run folder of a run to --reuse"
    if not (other / "config.json").is_file():
        raise ValueError(f"{other} has no config.json: {remedy}")
    if not _stage_path(other, name).is_file():
        return None
    config = read_json(other / "config.json", remedy)
    _check_reusable(other, name, options, {**(defaults or {}), **config["options"]})
    if options["rewind_step"]:
        _copy(other / "rewind.pt", folder / "rewind.pt")
    if options["teacher"] == "self" and _is_dense(name):
        _copy(_dense_model(other, config["options"]), folder / "teacher.pt")
    _copy(_stage_path(other, name), _stage_path(folder, name))
    return load_stage(folder, name)


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


def _is_dense(name: str) -> bool:
    """Say whether nothing is pruned in a stage."""
    return name in ("dense", "round-1")


def _dense_model(folder: Path, options: Mapping[str, Any]) -> Path:
    """Return the file of the whole model that the dense stage of a run has left."""
    if options.get("teacher") == "self":
        return folder / "teacher.pt"
    if options["method"] == "dense":
        return folder / "best.pt"
    raise ValueError(
        f"{folder} keeps no whole model of its dense stage to learn from: give a dense run, or one "
        "with --teacher self, to --reuse"
    )


def _check_reusable(
    folder: Path, name: str, options: Mapping[str, Any], other: Mapping[str, Any]
) -> None:
    may_differ = _MAY_DIFFER[name.split("-")[0]] | _NEVER_MATTER
    # A run that is its own teacher learns from none until its dense stage is over.
    untaught = {None, "self"} if _is_dense(name) else {None}
    if {options["teacher"], other.get("teacher")} <= untaught:
        may_differ |= _TEACHING
    differing = [k for k in options if k not in may_differ and options[k] != other.get(k)]
    if differing:
        shown = ", ".join(f"{key} is {other.get(key)!r} there" for key in differing)
        raise ValueError(
            f"stage {name} of {folder} is not what this run would train ({shown}): "
            "give another run to --reuse, or none"
        )


def _stage_path(folder: Path, name: str) -> Path:
    return folder / f"stage-{name}.pt"
