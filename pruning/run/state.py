"""The state of a run: what the training loop touches, and how it is saved and taken up again."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.batching import BatchSampler
from data.checks import check_lengths
from data.corpus import TrainingData
from data.files import Schema, check_fields, shown
from data.inputs import batch_sampler
from data.run_folder import EventLog
from data.targets import keep_usable, target_text
from data.utterance import Utterance
from eval import read_inputs
from models import build_task
from models.checkpoint import (
    Checkpoint,
    is_checkpoint_file,
    load_checkpoint,
    save_checkpoint,
)
from models.device import World, random_state, set_random_state
from models.initial import set_frozen
from models.training.distill import Distillation
from models.training.optim import (
    FlatGradients,
    Optimizer,
    build_optimizer,
    trained_parameters,
)
from models.training.recipes import recipe_of
from models.training.shapes import MOST_SHAPES
from models.training.tasks import Task
from pruning.interface import Params, Schedule, Snapshot, check_fit, copy_weights
from pruning.mask_file import MaskFile, check_masks, load_masks_for, save_masks
from pruning.run.options import TrainOptions
from pruning.run.plan import Plan, initial_checkpoint
from pruning.run.stages import stage_path
from pruning.scope import select_parameters

SCORES_OF_A_RUN = 10  # at most, on dev: a short epoch on a GPU takes less than to score and save it
DAMAGED = "put an undamaged one there, or begin anew in another folder"
_TRAINING: Schema = {
    "steps": "id",
    "step": "id",
    "seconds": "number",
    "optimizer": {"adam": "dict of any", "scaler": "dict of any", "skipped": "any"},
    "schedule": {"stage": "id", "num_steps": "id", "first_masks": "any", "masks": "any"},
    "sampler": {"epoch": "id", "position": "id"},
    "adjusted": "any",
    "best": "any",
    "rng": "any",
    "cuda_rng": "any",
}
"""What a last.pt holds to go on with; see ``save``."""
MASK_METADATA = ("model", "scope", "sparsity", "target", "method", "seed", "step", "weights_hash")


@dataclass
class Run:
    """Everything that the loop touches; from ``log`` on it is set when a stage begins.

    ``latest`` is what is shown of it: loss, lr, sparsity and dev, once they are known.
    """

    options: TrainOptions
    out: Path
    checkpoint: Checkpoint
    task: Task
    params: dict[str, Tensor]
    schedule: Schedule
    sampler: BatchSampler
    train: list[Utterance]
    inputs: Sequence[Tensor]
    targets: list[list[int]]
    data: TrainingData
    dev_inputs: Sequence[Tensor]
    world: World
    eval_every: int
    full_steps: int
    gradients: FlatGradients
    distillation: Distillation | None = None
    log: EventLog = field(init=False)
    optimizer: Optimizer = field(init=False)
    latest: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    step: int = 0
    best: float = math.inf
    seconds: float = 0.0


def build_run(plan: Plan) -> Run:
    """Read or draw the weights and put together what the loop needs.

    Raises:
        ValueError: If the file to go on from holds no training state, no utterance can be trained
            on, or there are fewer than processes.
    """
    torch.manual_seed(plan.options.seed)
    checkpoint = load_checkpoint(plan.last) if plan.last else initial_checkpoint(plan)
    if plan.last:
        _check_resumable(checkpoint, plan.last)
    model = checkpoint.model.to(plan.device)
    set_frozen(model, checkpoint.run.freeze or "none")
    recipe = plan.recipe
    drawn = (recipe.spec_augment, recipe.label_smoothing)
    task = build_task(model, checkpoint.decoding, plan.precision, plan.options.fast, *drawn)

    train, targets = _usable_targets(plan, checkpoint, task)
    check_lengths([*plan.data.dev.utterances, *plan.data.test.utterances], task.min_samples)
    # CUDA captures a step for each shape of batch, so there it gets batches of few lengths.
    num_lengths = MOST_SHAPES if plan.device.type == "cuda" else None
    sampler = batch_sampler(
        train,
        checkpoint.frontend,
        recipe.batch_seconds,
        plan.options.seed,
        num_lengths=num_lengths,
    )
    steps_per_epoch = math.ceil(sampler.count_batches(1) / plan.options.grad_accum)
    steps = plan.options.steps
    steps = math.ceil(recipe.epochs * steps_per_epoch) if steps is None else steps
    checkpoint.run = replace(checkpoint.run, steps=steps)

    pattern = checkpoint.run.scope_pattern
    assert pattern is not None, "every run has a scope"
    options, out, dev = plan.options, plan.out, plan.data.dev.utterances
    params = select_parameters(dict(model.named_parameters()), pattern)
    if plan.last:
        _check_training(checkpoint.training, params, plan.schedule, plan.last)
    return Run(
        options=options,
        out=out,
        checkpoint=checkpoint,
        task=task,
        params=params,
        schedule=plan.schedule,
        sampler=sampler,
        train=train,
        inputs=read_inputs(task, checkpoint, train, options, out),
        targets=targets,
        data=plan.data,
        dev_inputs=read_inputs(task, checkpoint, dev, options, out),
        world=plan.world,
        eval_every=options.eval_every or max(steps_per_epoch, math.ceil(steps / SCORES_OF_A_RUN)),
        full_steps=steps,
        gradients=FlatGradients(list(trained_parameters(model).values())),
    )


def _check_resumable(checkpoint: Checkpoint, path: Path) -> None:
    """Raise where a file is none of a run to go on with."""
    if "schedule" not in (checkpoint.training or {}):
        raise ValueError(f"{path} holds no training state: resume from a last.pt")
    facts = {name: getattr(checkpoint.run, name) for name in ("scope", "scope_pattern")}
    missing = [name for name, value in facts.items() if value is None]
    if checkpoint.tokenizer is None or missing:
        raise ValueError(f"{path} lacks {(*missing, 'tokenizer')[0]}: {DAMAGED}")


def _check_training(training: Any, params: Params, schedule: Schedule, path: Path) -> None:
    """Raise where the state to go on from does not fit the run; the optimizer checks its own."""
    check_fields(training, _TRAINING, path, DAMAGED, "training")
    state = training["schedule"]
    try:
        if state["stage"] >= len(schedule.stages):
            raise ValueError(f"stage {state['stage']} is none of {', '.join(schedule.stages)}")
        if type(training["best"]) is not float or training["best"] < 0:
            raise ValueError(f"best is {shown(training['best'])}, expected an error rate")
        check_fit(training["adjusted"], params, "adjusted")
        for kind in ("first_masks", "masks"):
            check_fit(state[kind], params, kind, torch.bool)
    except ValueError as error:
        raise ValueError(f"{path}: training: {error}: {DAMAGED}") from None


def _usable_targets(
    plan: Plan, checkpoint: Checkpoint, task: Task
) -> tuple[list[Utterance], list[list[int]]]:
    """Return the utterances that can be trained on and their target ids."""
    options, utterances = plan.options, plan.data.train.utterances
    assert checkpoint.tokenizer is not None
    texts = [target_text(each, options.target, options.phones) for each in utterances]
    encoded = [checkpoint.tokenizer.encode(text) for text in texts]
    train, targets = keep_usable(utterances, encoded, task.why_unusable)
    if plan.world.size > len(train):
        raise ValueError(f"{plan.world.size} processes for {len(train)} utterances: start fewer")
    return train, targets


def build_stage_optimizer(run: Run) -> None:
    """Begin with a fresh optimizer for the steps of the stage."""
    recipe = recipe_of(run.options.model, run.options.target, run.options)
    restarts = []
    if run.options.lr_restart:
        restarts = [step for step in range(1, run.steps) if run.schedule.prunes_at(step)]
    run.optimizer = build_optimizer(
        run.checkpoint.model,
        run.options,
        recipe,
        run.checkpoint.run.new_head,
        run.steps,
        restarts,
        run.schedule.rate_phases,
        run.gradients,
    )
    run.schedule.optimizer = run.optimizer


def save(run: Run, name: str, snapshot: Snapshot) -> None:
    """Write the model, re-pruned, to ``name``; last.pt also holds what resuming needs."""
    if not run.world.writes:
        return
    training: dict[str, Any] | None = None
    if name == "last.pt":
        training = {key: getattr(run, key) for key in ("steps", "step", "best", "seconds")}
        parts = ("optimizer", "schedule", "sampler")
        training |= {part: getattr(run, part).state_dict() for part in parts}
        training |= {"adjusted": snapshot.adjusted, **random_state()}
    about = replace(run.checkpoint.run, step=run.step)
    checkpoint = replace(run.checkpoint, masks=snapshot.masks, run=about, training=training)
    save_checkpoint(run.out / name, checkpoint)
    if name == "best.pt":
        metadata = {key: getattr(about, key) for key in MASK_METADATA}
        metadata |= {"source_run": run.out.name}
        save_masks(run.out / "masks.pt", snapshot.masks, metadata)


def restore(run: Run) -> None:
    """Restore the training state of last.pt, which the run's model was read from."""
    training = run.checkpoint.training
    assert training is not None
    run.checkpoint.training = None
    _check_needed_later(run, training)

    copy_weights(run.params, training["adjusted"])
    run.schedule.load_state_dict(training["schedule"], run.params)
    run.sampler.load_state_dict(training["sampler"])
    for key in ("steps", "step", "best", "seconds"):
        setattr(run, key, training[key])

    build_stage_optimizer(run)
    try:
        run.optimizer.load_state_dict(training["optimizer"])
        set_random_state(training)
    except ValueError as error:
        raise ValueError(f"{run.out / 'last.pt'}: training: {error}: {DAMAGED}") from None
    run.world.seed(run.options.seed + run.step)


def _check_needed_later(run: Run, training: Mapping[str, Any]) -> None:
    """Raise where a file is gone that the run reads at its end or as its next stage begins."""
    stages = run.schedule.stages[: training["schedule"]["stage"]]
    needed = [run.out / "initial.pt", *(stage_path(run.out, name) for name in stages)]
    if training["best"] < math.inf:
        needed.append(run.out / "best.pt")
    if gone := [path for path in needed if not path.is_file()]:
        raise ValueError(
            f"{gone[0]} is gone, without which the run can't be finished: put it back, or begin "
            "anew in another folder"
        )


def masks_to_begin_with(
    path: str, params: Mapping[str, Tensor], model: str, scope: str
) -> dict[str, Tensor]:
    """Read the masks of ``--init-mask``: a mask file, or a checkpoint of a pruned model.

    Raises:
        ValueError: If it is neither, or made for another model, scope or shapes.
    """
    if not is_checkpoint_file(path):
        return load_masks_for(path, params, model, scope)
    checkpoint = load_checkpoint(path)
    if not checkpoint.masks:
        raise ValueError(f"{path} is of a dense model, and has no masks: give a pruned one")
    about = {"model": checkpoint.run.model, "scope": checkpoint.run.scope}
    check_masks(MaskFile(checkpoint.masks, about), params, model, scope)
    return {name: mask.to(params[name].device) for name, mask in checkpoint.masks.items()}
