"""Fine-tune and prune wav2vec2, HuBERT or whisper: PARP and its baselines, in one loop.

    python train.py --model w2v2-demo --sparsity 0.6 --data demo    # needs no corpus, no weights

``fit`` is the loop; what a method does between steps is in pruning/schedules.py. A run leaves its
options, events, checkpoints, masks and results in the folder ``--out``.
"""

import data.start  # noqa: F401  # isort: skip  # Ctrl-C during the imports below

import math
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from data.files import remove_left_overs, write_file, write_json
from data.options import command, interrupts, parse_options, run_program
from data.run_folder import (
    EventLog,
    describe_environment,
    hold_run_folder,
    leave_nothing_unbegun,
    locate_run,
    open_run_folder,
    read_results,
)
from data.run_manifest import write_manifest
from eval import summary
from models.checkpoint import load_checkpoint, save_checkpoint
from models.device import random_state, set_random_state
from models.draw import Draw
from models.training.distill import SELF, find_teacher
from pruning.interface import Reprune, Snapshot
from pruning.run.board import BoardLog
from pruning.run.calibration import collect_inputs
from pruning.run.options import TrainOptions, as_recorded_now, recorded_options
from pruning.run.plan import Plan, check_corpus, make_plan
from pruning.run.progress import Progress, check_disk, describe_start
from pruning.run.results import final_report, resolved_options, score_run
from pruning.run.stages import Stage, finished_stage, save_stage
from pruning.run.state import (
    Run,
    build_run,
    build_stage_optimizer,
    masks_to_begin_with,
    restore,
    save,
)
from pruning.run.teacher import learn_from, teach_itself
from pruning.schedules import prunes

NEEDED_TO_RESUME = ("last.pt", "rewind.pt", "teacher.pt")
BATCH_SEEDS = 1 << 32  # of a run: more than it has batches


def fit(run: Run) -> bool:
    """Train to the last step: the loop. Return False where it was interrupted, its state saved."""
    if not run.steps:
        prune_untrained(run)
        return True
    run.checkpoint.model.train()
    with interrupts() as interrupted, Progress(run) as progress:
        while run.step < run.steps:
            started = time.perf_counter()
            teach_itself(run)
            losses, grad_norm = optimizer_step(run)
            run.step += 1

            # Pruning happens here and nowhere else: between two optimizer steps.
            reprune = run.schedule.after_step(run.params, run.step)
            if run.step == run.steps:
                reprune = run.schedule.finish(run.params, run.step) or reprune
            if reprune and run.options.zero_moments:
                run.optimizer.zero_moments(run.params, run.schedule.masks)

            log_step(run, losses, grad_norm, reprune)
            run.seconds += time.perf_counter() - started
            progress.update()

            at = (run.schedule.stage, run.step)
            if at == (0, run.options.rewind_step) and run.schedule.rewinds:
                save(run, "rewind.pt", Snapshot({}, {}))
            if run.step % run.eval_every == 0 or run.step == run.steps:
                score_and_save(run)

            # Processes that would have to agree in every step agree where they log.
            asks = run.world.size == 1 or run.step % run.options.log_every == 0
            if asks and run.world.any(bool(interrupted)) and run.step < run.steps:
                with run.schedule.pruned(run.params) as snapshot:
                    save(run, "last.pt", snapshot)
                return False
        return not run.world.any(bool(interrupted))


def prune_untrained(run: Run) -> None:
    """Do what follows the last step, where there is none: the last prune, and the scores."""
    reprune = run.schedule.finish(run.params, 0)
    if reprune is not None:
        run.log.write("reprune", run.schedule.stage, 0, asdict(reprune))
    score_and_save(run)


def fit_stages(run: Run) -> bool:
    """Fit once for each stage of the method, most have one. Return False where interrupted."""
    while True:
        name = run.schedule.stage_name
        is_last = name == run.schedule.stages[-1]
        stage = None
        if not is_last:
            stage = finished_stage(run.out, run.schedule, run.options, run.params)
        if stage is None:
            if not fit(run):
                return False
            run.world.wait()
            best = dict(load_checkpoint(run.out / "best.pt").model.named_parameters())
            stage = Stage({name: best[name] for name in run.params}, run.step, run.seconds)
            if run.world.writes:
                if run.options.teacher == SELF and run.schedule.stage == 0 and not is_last:
                    write_file(run.out / "teacher.pt", (run.out / "best.pt").read_bytes())
                save_stage(run.out, name, stage)
        if is_last:
            return True
        begin_stage(run, run.schedule.stage + 1, stage.weights)


def begin_stage(run: Run, stage: int, previous: dict[str, Tensor] | None = None) -> None:
    """Put the initial weights, or those to rewind to, in place and prune as ``stage`` begins."""
    options = run.options
    about = run.checkpoint.run
    model = run.checkpoint.model
    if stage:  # the first begins with what was just drawn or loaded
        start = initial = load_checkpoint(run.out / "initial.pt")
        if initial.training is None:
            raise ValueError(f"{run.out / 'initial.pt'} is damaged: begin anew in another folder")
        if options.rewind_step and run.schedule.rewinds:
            start = load_checkpoint(run.out / "rewind.pt")
        model.load_state_dict(start.model.state_dict())
        set_random_state(initial.training)
    run.world.seed(options.seed)

    masks = None
    if options.init_mask and stage == 0:
        assert about.scope is not None, "every run has a scope"
        masks = masks_to_begin_with(options.init_mask, run.params, options.model, about.scope)
    if previous is not None:
        previous = {name: previous[name].to(param.device) for name, param in run.params.items()}
    run.steps = run.schedule.stage_steps(stage, run.full_steps)
    run.schedule.start(run.params, run.steps, stage, previous, masks)
    has_dense_steps = run.schedule.dense_steps > 0 or len(run.schedule.stages) > 1
    if options.teacher == SELF and not has_dense_steps:
        raise ValueError(
            f"--teacher self: the dense phase has none of the {run.steps} steps; raise "
            "--dense-share, or --steps"
        )
    build_stage_optimizer(run)
    run.sampler.load_state_dict({"epoch": 0, "position": 0})
    run.step, run.best, run.seconds = 0, math.inf, 0.0


def optimizer_step(run: Run) -> tuple[Tensor, Tensor]:
    """Take one step; return the losses per target token and the gradient norm before clipping.

    Both stay on the device: they are read when they are logged. The first loss is the one that is
    minimised; with a teacher those follow that it is made of, see ``loss_names``.
    """
    batches = [run.sampler.next_batch() for _ in range(run.options.grad_accum)]
    num_tokens = sum(max(1, len(run.targets[i])) for batch in batches for i in batch)
    losses = torch.zeros(len(loss_names(run)), device=next(iter(run.params.values())).device)
    with run.schedule.forward_weights(run.params, run.step + 1):
        for number, batch in enumerate(batches):
            if rows := run.world.share(range(len(batch))):
                losses = losses + add_gradients(run, number, batch, rows, num_tokens)
    run.world.sum(run.optimizer.gradients.vector)
    losses = run.world.sum(losses)
    return losses, run.optimizer.step(run.step, losses[0])


def add_gradients(
    run: Run, number: int, batch: Sequence[int], rows: Sequence[int], num_tokens: int
) -> Tensor:
    """Add the gradients of some rows of a batch to those of the step; return their losses.

    Raises:
        ValueError: If the device has too little memory for the batch.
    """
    mine = [batch[row] for row in rows]
    seed = BATCH_SEEDS * run.options.seed + run.step * run.options.grad_accum + number
    try:
        inputs, targets = [run.inputs[i] for i in mine], [run.targets[i] for i in mine]
        draw = Draw(seed, rows)
        if run.distillation is None:
            losses = run.task.loss(inputs, targets, draw)[None] / num_tokens
        else:
            losses = run.distillation.losses(mine, inputs, draw) / num_tokens
        run.optimizer.backward(losses[0])
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise  # a CPU without memory has no type of its own
        longest = max(run.sampler.lengths[i] for i in mine)
        raise ValueError(
            f"out of memory at step {run.step + 1}, on {len(mine)} utterances of up to "
            f"{longest:.1f} s: lower --batch-seconds (and raise --grad-accum)"
        ) from None
    return losses.detach()


def loss_names(run: Run) -> tuple[str, ...]:
    """Return what the losses of a step are called in its event."""
    return run.distillation.names if run.distillation else ("loss",)


def log_step(run: Run, losses: Tensor, grad_norm: Tensor, reprune: Reprune | None) -> None:
    """Write the events of the step just taken; raise ValueError where training has broken down."""
    at = (run.schedule.stage, run.step)
    if reprune is not None:
        run.log.write("reprune", *at, asdict(reprune))
        run.latest["sparsity"] = reprune.sparsity
    if run.step % run.options.log_every == 0 or run.step == run.steps:
        values = dict(zip(loss_names(run), losses.tolist(), strict=True))
        values |= {"lr": run.optimizer.lr, "grad_norm": float(grad_norm)}
        values |= {"skipped": run.optimizer.check(), "seconds": run.seconds}
        run.log.write("train", *at, values)
        run.latest |= {name: values[name] for name in ("loss", "lr")}


def score_and_save(run: Run) -> None:
    """Score the re-pruned model on dev and save it; the weights in training stay as they are."""
    with run.schedule.pruned(run.params) as snapshot:
        scores = score_run(run, run.data.dev, run.dev_inputs)
        improved = scores.rate < run.best
        run.best = min(run.best, scores.rate)
        rates = {name: rate.rate for name, rate in scores.rates.items()}
        values = {"best": run.best, "wall_seconds": scores.wall_seconds, **rates}
        run.log.write("dev", run.schedule.stage, run.step, values)  # before last.pt: never lost
        run.latest["dev"] = scores.rate
        if improved:
            save(run, "best.pt", snapshot)
        save(run, "last.pt", snapshot)
    shown = ", ".join(f"{name.upper()} {rate:.4f}" for name, rate in rates.items())
    tqdm.write(f"step {run.step}/{run.steps}: dev {shown}{' (best)' if improved else ''}")


def begin(run: Run) -> None:
    """Restore the state that the run was interrupted in, or begin its first stage."""
    training = run.checkpoint.training
    at = (training["schedule"]["stage"], training["step"]) if training else (0, 0)
    log = BoardLog if run.options.tensorboard else EventLog
    run.log = log(run.out / "metrics.jsonl", at, run.world.writes)
    if training is not None:
        restore(run)
        return
    if run.world.writes:
        initial = replace(run.checkpoint, training=random_state())
        save_checkpoint(run.out / "initial.pt", initial)
    run.world.wait()
    begin_stage(run, 0)


def capture_steps(run: Run) -> None:
    """Let CUDA capture the steps that come, those on batches of each shape: nothing elsewhere."""
    if run.distillation and run.distillation.compares_states:
        return  # a captured step gives logits alone
    stages = range(len(run.schedule.stages))
    steps = max(run.schedule.stage_steps(stage, run.full_steps) for stage in stages)
    batches = run.sampler.first_batches(steps * run.options.grad_accum)
    run.task.capture(run.inputs, run.targets, filter(None, map(run.world.share, batches)))


def train(options: TrainOptions) -> int:
    """Run what ``options`` ask for; return the exit status."""
    plan = make_plan(options)
    with hold_run_folder(plan.out) if plan.world.writes else nullcontext():
        return train_in_folder(plan)


def train_in_folder(plan: Plan) -> int:
    """Do what ``train`` does, in a folder that no other process writes to; return the status."""
    options, out, writes = plan.options, plan.out, plan.world.writes
    if locate_run(str(out), options.resume)[1] != plan.last:
        raise ValueError(f"another process has just trained in {out}: give the command again")
    if writes:
        chosen = recorded_options(options)
        open_run_folder(out, chosen, options.resume is not None, as_recorded_now)
        remove_left_overs(out)
    check_corpus(plan)
    if writes and prunes(plan.method) and not options.sparsity:
        said = f"{plan.method} prunes nothing at sparsity 0: give --sparsity, 0.6 for 60 percent"
        print(said, file=sys.stderr)
    if (out / "results.json").is_file():
        if writes:  # the process may have been killed before it came to that
            remove_what_is_done_with(out, options.keep)
        print(summary(read_results(out / "results.json")), f"{out} is finished", sep="\n")
        return 0

    with leave_nothing_unbegun(out) if writes else nullcontext():
        return run_plan(plan)


def run_plan(plan: Plan) -> int:
    """Train, score and report as planned; return the exit status."""
    options, out, writes = plan.options, plan.out, plan.world.writes
    config = {"options": recorded_options(options), "recipe": asdict(plan.recipe)}
    config |= describe_environment(str(plan.device))
    if writes and plan.last is None:
        write_json(out / "config.json", config)  # tells whose a folder is that has nothing else
    run = build_run(plan)
    run.schedule.collect_inputs = lambda: collect_inputs(run)
    if options.teacher and options.teacher != SELF:
        learn_from(run, find_teacher(options.teacher, out))
    check_disk(run)
    begin(run)
    capture_steps(run)
    if writes:
        tqdm.write(describe_start(run))
        write_manifest(
            [run.data.train, run.data.dev, run.data.test],
            run.data.corpus.root,
            out / "manifest.tsv",
            {each.utt_id for each in run.data.train.utterances} - {u.utt_id for u in run.train},
        )
        begun_with = replace(run.checkpoint.run, step=None, steps=None)  # also where it goes on
        described = {"resolved": resolved_options(run), "run": begun_with.stored()}
        write_json(out / "config.json", config | described)

    if not fit_stages(run):
        tqdm.write(f"interrupted at step {run.step}; go on with --resume {out / 'last.pt'}")
        return 130

    report = final_report(run)
    if not writes:
        return 0
    write_json(out / "results.json", report)
    remove_what_is_done_with(out, options.keep)
    print(summary(report["dev"]), summary(report), report["protocol"], sep="\n")
    print(f"{command('eval')} --ckpt {out / 'best.pt'}")
    return 0


def remove_what_is_done_with(out: Path, keep: str) -> None:
    """Remove from the folder of a finished run what only its training needed."""
    (out / "initial.pt").unlink(missing_ok=True)
    shutil.rmtree(out / "inputs", ignore_errors=True)
    if keep == "best":
        for name in NEEDED_TO_RESUME:
            (out / name).unlink(missing_ok=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    name, description = command("train"), (__doc__ or "").split("\n")[0]
    return run_program(name, lambda: train(parse_options(TrainOptions, argv, description, name)))


if __name__ == "__main__":
    sys.exit(main())
