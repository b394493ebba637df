"""What a finished run leaves in results.json."""

from collections.abc import Sequence
from dataclasses import asdict, fields

from torch import Tensor

from data.corpus import Split
from data.files import JsonObject
from eval import Decoding, Scores, describe_weights, results, score, write_alignments
from models.checkpoint import load_checkpoint
from models.facts import TrainingCost
from pruning.run.options import recorded_options
from pruning.run.stages import load_stage
from pruning.run.state import Run
from pruning.schedules import MethodOptions


def score_run(run: Run, split: Split, inputs: Sequence[Tensor] | None = None) -> Scores:
    """Score the model as it is now, greedily."""
    return score(run.task, run.checkpoint, split, Decoding(world=run.world), inputs)


def resolved_options(run: Run) -> JsonObject:
    """Return what options came to that may be left open: for ``config.json``, beside them."""
    return {
        "precision": run.task.precision,
        "steps": run.full_steps,
        "eval_every": run.eval_every,
        "corpus": str(run.data.corpus.root.resolve()),
        "model": asdict(run.checkpoint.config),
    }


def final_report(run: Run) -> JsonObject:
    """Score best.pt on dev and test, and describe what became of the weights."""
    run.world.wait()
    device = next(run.checkpoint.model.parameters()).device
    best = load_checkpoint(run.out / "best.pt", device=device)
    run.checkpoint.model.load_state_dict(best.model.state_dict())
    test = score_run(run, run.data.test)
    if run.world.writes:
        write_alignments(run.out / "test.jsonl", test)
    initial = load_checkpoint(run.out / "initial.pt")
    options = asdict(run.options) | recorded_options(run.options)
    teacher = run.checkpoint.run.teacher

    return (
        results(test, best)
        | {
            "dev": results(score_run(run, run.data.dev, run.dev_inputs), best),
            "best_step": best.run.step,
            "skipped_steps": run.optimizer.check(),
            "pruning": {each.name: options[each.name] for each in fields(MethodOptions)}
            | {"scope": best.run.scope, "biases": best.run.biases},
            "teacher": asdict(teacher) if teacher else None,
            "cost": total_cost(run),
        }
        | describe_weights(best, initial)
    )


def total_cost(run: Run) -> TrainingCost:
    """Return what the run has taken, with its earlier stages, its teacher and its initial weights.

    A model that the run both begins with and learns from counts once.
    """
    stages = [load_stage(run.out, name) for name in run.schedule.stages[:-1]]
    cost = TrainingCost(
        fine_tuning_runs=len(run.schedule.stages) if run.steps else 0,
        steps=run.step + sum(stage.steps for stage in stages),
        training_seconds=run.seconds + sum(stage.seconds for stage in stages),
    )
    about = run.checkpoint.run
    before = {about.weights_hash: about.init_cost}
    if about.teacher:
        before[about.teacher.weights_hash] = about.teacher.cost
    for other in filter(None, before.values()):
        cost["fine_tuning_runs"] += other["fine_tuning_runs"]
        cost["steps"] += other["steps"]
        cost["training_seconds"] += other["training_seconds"]
    return cost
