"""Join a run to the model that it learns from beside its targets."""

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from data.inputs import check_inputs, free_bytes, model_input
from models import build_task
from models.checkpoint import load_checkpoint, save_checkpoint
from models.facts import TeacherFacts
from models.training.distill import (
    SELF,
    Distillation,
    check_teacher,
    prepares_alike,
    training_cost,
)
from pruning.mask_file import weights_hash
from pruning.run.state import Run


def learn_from(run: Run, path: Path) -> None:
    """Let the run learn from the model in the checkpoint ``path`` too, from its next step on.

    Raises:
        ValueError: If it can't, or has begun with another teacher.
    """
    options = run.options
    student = run.checkpoint
    device = next(student.model.parameters()).device
    teacher = load_checkpoint(path, device=device)
    lengths = [utterance.num_samples for utterance in run.train]
    check_teacher(str(path), teacher, student, lengths, options.distill_hidden > 0)

    assert options.teacher is not None
    about = TeacherFacts(
        path=options.teacher,
        weights_hash=weights_hash(dict(teacher.model.named_parameters())),
        cost=training_cost(path, teacher) if options.teacher != SELF else None,
    )
    begun_with = student.run.teacher or about
    if begun_with.weights_hash != about.weights_hash:
        raise ValueError(
            f"{path} has other weights than the teacher that this run began with: put those back, "
            "or begin anew in another folder"
        )
    student.run = replace(student.run, teacher=begun_with)

    task = build_task(teacher.model, teacher.decoding, run.task.precision, options.fast)
    is_alike = not options.precompute or prepares_alike(task, run.task)
    shares = is_alike and teacher.frontend == student.frontend
    check_inputs(run.train, teacher.frontend)

    def input_of(i: int) -> Tensor:
        return run.inputs[i] if shares else model_input(run.train[i], teacher.frontend)

    memory = free_bytes(device) / 4
    run.distillation = Distillation(run.task, task, input_of, run.targets, options, memory)


def teach_itself(run: Run) -> None:
    """Where this run is its own teacher and past its dense phase, let it learn from that."""
    if run.options.teacher != SELF or run.distillation is not None:
        return
    dense_steps = run.schedule.dense_steps
    if run.schedule.stage == 0 and (run.step < dense_steps or not dense_steps):
        return
    path = run.out / "teacher.pt"
    if run.schedule.stage == 0 and run.step == dense_steps:
        if run.world.writes:
            save_checkpoint(path, replace(run.checkpoint, masks={}, training=None))
        run.world.wait()
    learn_from(run, path)
