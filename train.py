"""Fine-tune and prune wav2vec2, HuBERT or whisper: PARP and its baselines, in one loop.

    python train.py --model w2v2-demo --sparsity 0.6 --data demo    # needs no corpus, no weights

``fit`` is the loop; what a method does between steps is in pruning/schedules.py. A run leaves its
options, events, checkpoints, masks and results in the folder ``--out``.
"""

import math
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from data.batching import BatchSampler
from data.corpus import Corpus, Split, TrainingData, load_corpus, write_manifest
from data.files import read_json, remove_left_overs, write_json
from data.inputs import (
    DataOptions,
    batch_sampler,
    check_inputs,
    free_bytes,
    model_input,
    resolve_data,
)
from data.options import command, interrupts, option, parse_options, run_program
from data.phones import PHONE_SETS
from data.run_folder import (
    EventLog,
    describe_environment,
    locate_run,
    open_run_folder,
)
from data.targets import keep_usable, labels_of, target_text
from data.utterance import Utterance, Wanted
from eval import (
    Decoding,
    Scores,
    describe_weights,
    read_inputs,
    results,
    score,
    summary,
    write_alignments,
)
from models import MODEL_NAMES, PRESETS, build_task, family_of
from models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from models.convert import find_weights, load_initial
from models.device import (
    World,
    join_world,
    random_state,
    resolve_device,
    resolve_precision,
    set_random_state,
)
from models.draw import Draw
from models.initial import (
    choose_frozen,
    default_front_end,
    fit_target,
    set_frozen,
    set_regularisation,
)
from models.training.distill import (
    SELF,
    Distillation,
    DistillOptions,
    check_teacher,
    find_teacher,
    takes_same_inputs,
)
from models.training.optim import Optimizer, build_optimizer
from models.training.recipes import FitOptions, recipe_of
from models.training.tasks import Task
from pruning.interface import PruneOptions, Reprune, Schedule, Snapshot, copy_weights
from pruning.mask_file import load_masks_for, save_masks, weights_hash
from pruning.schedules import SCHEDULES, build_schedule
from pruning.scope import choose_scope, select_parameters
from pruning.stages import Stage, finished_stage, load_stage, save_stage

BATCH_SEEDS = 1 << 32  # of a run: more than it has batches
NOT_RECORDED = ("resume", "out", "device", "reuse")  # where and how, not what
MASK_METADATA = ("model", "scope", "sparsity", "target", "method", "seed", "step", "weights_hash")


@dataclass(frozen=True, kw_only=True)
class TrainOptions(DataOptions, FitOptions, DistillOptions, PruneOptions):
    """The run."""

    model: str = option("architecture", choices=tuple(MODEL_NAMES))
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


@dataclass
class Run:
    """Everything that the loop touches; from ``optimizer`` on it is the present stage's."""

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
    log: EventLog
    eval_every: int
    distillation: Distillation | None = None
    optimizer: Optimizer = field(init=False)
    steps: int = 0
    step: int = 0
    best: float = math.inf
    seconds: float = 0.0


def fit(run: Run) -> bool:
    """Train to the last step: the loop. Return False where it was interrupted, its state saved."""
    run.checkpoint.model.train()
    bar = tqdm(total=run.steps, initial=run.step, desc=run.schedule.stage_name, disable=None)
    with interrupts() as interrupted, bar:
        while run.step < run.steps:
            started = time.perf_counter()
            teach_itself(run)
            losses, grad_norm = optimizer_step(run)
            run.step += 1
            reprune = run.schedule.after_step(run.params, run.step)
            if run.step == run.steps:
                reprune = run.schedule.finish(run.params, run.step) or reprune
            if reprune and run.options.zero_moments:
                run.optimizer.zero_moments(run.params, run.schedule.masks)
            log_step(run, losses, grad_norm, reprune)
            run.seconds += time.perf_counter() - started
            bar.update()
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


def fit_stages(run: Run) -> bool:
    """Fit once for each stage of the method, most have one. Return False where interrupted."""
    while True:
        name = run.schedule.stage_name
        is_last = name == run.schedule.stages[-1]
        stage = None
        if not is_last:
            stage = finished_stage(run.out, name, asdict(run.options), default_options())
        if stage is None:
            if not fit(run):
                return False
            run.world.wait()
            best = dict(load_checkpoint(run.out / "best.pt").model.named_parameters())
            stage = Stage({name: best[name] for name in run.params}, run.step, run.seconds)
            if run.world.writes:
                if run.options.teacher == SELF and run.schedule.stage == 0 and not is_last:
                    shutil.copyfile(run.out / "best.pt", run.out / "teacher.pt")
                save_stage(run.out, name, stage)
        if is_last:
            return True
        begin_stage(run, run.schedule.stage + 1, stage.weights)


def begin_stage(run: Run, stage: int, previous: dict[str, Tensor] | None = None) -> None:
    """Put the initial weights, or those to rewind to, in place and prune as ``stage`` begins."""
    options, about, model = run.options, run.checkpoint.run, run.checkpoint.model
    if stage:  # the first begins with what was just drawn or loaded
        start = initial = load_checkpoint(run.out / "initial.pt")
        if options.rewind_step and run.schedule.rewinds:
            start = load_checkpoint(run.out / "rewind.pt")
        model.load_state_dict(start.model.state_dict())
        assert initial.training is not None
        set_random_state(initial.training)
    run.world.seed(options.seed)
    path, model_scope = options.init_mask, (about["model"], about["scope"])
    masks = load_masks_for(path, run.params, *model_scope) if path and stage == 0 else None
    if previous is not None:
        previous = {name: previous[name].to(param.device) for name, param in run.params.items()}
    run.steps = run.schedule.stage_steps(stage, about["steps"])
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


def build_stage_optimizer(run: Run) -> None:
    """Begin with a fresh optimizer for the steps of the stage."""
    about, restarts = run.checkpoint.run, []
    if run.options.lr_restart:
        restarts = [step for step in range(1, run.steps) if run.schedule.prunes_at(step)]
    run.optimizer = build_optimizer(run.checkpoint.model, run.options, about, run.steps, restarts)
    run.schedule.optimizer = run.optimizer


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
    run.world.sum_gradients(run.optimizer.gradients())
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


def learn_from(run: Run, path: Path) -> None:
    """Let the run learn from the model in the checkpoint ``path`` too, from its next step on.

    Raises:
        ValueError: If it can't, or has begun with another teacher.
    """
    options, student = run.options, run.checkpoint
    device = next(student.model.parameters()).device
    teacher = load_checkpoint(path, device=device)
    lengths = [utterance.num_samples for utterance in run.train]
    check_teacher(str(path), teacher, student, lengths, options.distill_hidden > 0)

    about = {
        "path": options.teacher,
        "weights_hash": weights_hash(dict(teacher.model.named_parameters())),
        "cost": teacher_cost(path, teacher) if options.teacher != SELF else None,
    }
    begun_with = student.run.get("teacher") or about
    if begun_with["weights_hash"] != about["weights_hash"]:
        raise ValueError(
            f"{path} has other weights than the teacher that this run began with: put those back, "
            "or begin anew in another folder"
        )
    student.run["teacher"] = begun_with

    task = build_task(teacher.model, teacher.decoding, run.task.precision, options.fast)
    shares = takes_same_inputs(teacher, student)
    check_inputs(run.train, teacher.frontend)

    def input_of(i: int) -> Tensor:
        return run.inputs[i] if shares else model_input(run.train[i], teacher.frontend)

    memory = free_bytes(device) / 4
    run.distillation = Distillation(run.task, task, input_of, run.targets, options, memory)


def teacher_cost(path: Path, teacher: Checkpoint) -> dict[str, Any]:
    """Return what training a teacher has taken, as far as its folder and its file tell."""
    if (path.parent / "results.json").is_file():
        cost: dict[str, Any] = read_json(path.parent / "results.json")["cost"]
        return cost
    steps = teacher.run.get("step", 0)
    return {"fine_tuning_runs": int(steps > 0), "steps": steps, "training_seconds": 0.0}


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


def log_step(run: Run, losses: Tensor, grad_norm: Tensor, reprune: Reprune | None) -> None:
    """Write the events of the step just taken; raise ValueError where training has broken down."""
    at = (run.schedule.stage, run.step)
    if reprune is not None:
        run.log.write("reprune", *at, asdict(reprune))
    if run.step % run.options.log_every == 0 or run.step == run.steps:
        values = dict(zip(loss_names(run), losses.tolist(), strict=True))
        values |= {"lr": run.optimizer.lr, "grad_norm": float(grad_norm)}
        values |= {"skipped": run.optimizer.check(), "seconds": run.seconds}
        run.log.write("train", *at, values)


def score_and_save(run: Run) -> None:
    """Score the re-pruned model on dev and save it; the weights in training stay as they are."""
    with run.schedule.pruned(run.params) as snapshot:
        scores = score_run(run, run.data.dev, run.dev_inputs)
        improved = scores.rate < run.best
        run.best = min(run.best, scores.rate)
        rates = {name: rate.rate for name, rate in scores.rates.items()}
        values = {"best": run.best, "wall_seconds": scores.wall_seconds, **rates}
        run.log.write("dev", run.schedule.stage, run.step, values)  # before last.pt: never lost
        if improved:
            save(run, "best.pt", snapshot)
        save(run, "last.pt", snapshot)
    shown = ", ".join(f"{name.upper()} {rate:.4f}" for name, rate in rates.items())
    tqdm.write(f"step {run.step}/{run.steps}: dev {shown}{' (best)' if improved else ''}")


def score_run(run: Run, split: Split, inputs: Sequence[Tensor] | None = None) -> Scores:
    """Score the model as it is now, greedily."""
    return score(run.task, run.checkpoint, split, Decoding(world=run.world), inputs)


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
    about = run.checkpoint.run | {"step": run.step}
    checkpoint = replace(run.checkpoint, masks=snapshot.masks, run=about, training=training)
    save_checkpoint(run.out / name, checkpoint)
    if name == "best.pt":
        metadata = {key: about[key] for key in MASK_METADATA} | {"source_run": run.out.name}
        save_masks(run.out / "masks.pt", snapshot.masks, metadata)


def restore(run: Run, training: dict[str, Any]) -> None:
    """Take up the state of last.pt, whose model ``run`` was built from."""
    copy_weights(run.params, training["adjusted"])
    run.schedule.load_state_dict(training["schedule"], run.params)
    run.sampler.load_state_dict(training["sampler"])
    for key in ("steps", "step", "best", "seconds"):
        setattr(run, key, training[key])
    build_stage_optimizer(run)
    run.optimizer.load_state_dict(training["optimizer"])
    set_random_state(training)
    run.world.seed(run.options.seed + run.step)


def build_run(
    options: TrainOptions, data: TrainingData, out: Path, last: Path | None, world: World
) -> Run:
    """Read the weights and put together what the loop needs."""
    torch.manual_seed(options.seed)
    device = resolve_device(options.device)
    checkpoint = load_checkpoint(last) if last else initial_checkpoint(options, data)
    about, training = checkpoint.run, checkpoint.training
    if last and "schedule" not in (training or {}):
        raise ValueError(f"{last} holds no training state: resume from a last.pt")
    checkpoint.training = None
    model = checkpoint.model.to(device)
    set_frozen(model, about["freeze"])
    precision = resolve_precision(options.precision, device)
    recipe = recipe_of(options.model, options.target, options)
    drawn = (recipe.spec_augment, recipe.label_smoothing)
    task = build_task(model, checkpoint.decoding, precision, options.fast, *drawn)
    assert checkpoint.tokenizer is not None
    texts = [target_text(each, options.target, options.phones) for each in data.train.utterances]
    encoded = [checkpoint.tokenizer.encode(text) for text in texts]
    train, targets = keep_usable(data.train.utterances, encoded, task.why_unusable)
    if world.size > len(train):
        raise ValueError(f"{world.size} processes for {len(train)} utterances: start fewer")
    sampler = batch_sampler(train, checkpoint.frontend, recipe.batch_seconds, options.seed)
    steps_per_epoch = math.ceil(sampler.count_batches(1) / options.grad_accum)
    about["steps"] = options.steps or math.ceil(recipe.epochs * steps_per_epoch)
    at = (training["schedule"]["stage"], training["step"]) if training else (0, 0)
    run = Run(
        options=options,
        out=out,
        checkpoint=checkpoint,
        task=task,
        params=select_parameters(dict(model.named_parameters()), about["scope_pattern"]),
        schedule=build_schedule(about["method"], options),
        sampler=sampler,
        train=train,
        inputs=read_inputs(task, checkpoint, train, options, out),
        targets=targets,
        data=data,
        dev_inputs=read_inputs(task, checkpoint, data.dev.utterances, options, out),
        world=world,
        log=EventLog(out / "metrics.jsonl", at, world.writes),
        eval_every=options.eval_every or steps_per_epoch,
    )
    if options.teacher and options.teacher != SELF:
        learn_from(run, find_teacher(options.teacher, out))
    if world.writes:
        used = replace(data.train, utterances=train)
        write_manifest([used, data.dev], data.corpus.root, out / "manifest.tsv")
    if training is not None:
        restore(run, training)
        return run
    if world.writes:
        save_checkpoint(out / "initial.pt", replace(checkpoint, training=random_state()))
    world.wait()
    begin_stage(run, 0)
    return run


def initial_checkpoint(options: TrainOptions, data: TrainingData) -> Checkpoint:
    """Load or draw the initial weights and fit them to the target."""
    family = family_of(options.model)
    checkpoint, source = load_initial(options.model, options.init)
    if "audio_ctx" in checkpoint.frontend:
        checkpoint.frontend["audio_ctx"] = data.audio_context(options.audio_ctx)
    texts = [target_text(each, options.target, options.phones) for each in data.train.utterances]
    symbols = PHONE_SETS[options.phones]
    new_head = fit_target(checkpoint, options.target, texts, symbols, options.subword_vocab)
    set_regularisation(checkpoint, recipe_of(options.model, options.target, options))
    method = method_of(options)
    checkpoint.masks, checkpoint.training = {}, None
    checkpoint.run = {
        **{k: getattr(options, k) for k in ("model", "target", "phones", "seed")},
        **{k: getattr(options, k) for k in ("data", "corpus", "resample")},
        "method": method,
        "sparsity": 0.0 if method == "dense" else options.sparsity,
        **choose_scope(family.prune_scopes, options),
        "init": source,
        "freeze": choose_frozen(family, options.freeze, source),
        "new_head": new_head,
        "weights_hash": weights_hash(dict(checkpoint.model.named_parameters())),
    }
    return checkpoint


def method_of(options: TrainOptions) -> str:
    """Return the method asked for, by default parp, or dense at sparsity 0."""
    return options.method or ("parp" if options.sparsity else "dense")


def recorded_options(options: TrainOptions) -> dict[str, Any]:
    """Return the options that say what a run is, as config.json and reports hold them."""
    chosen = asdict(options) | {"method": method_of(options)}
    return {name: value for name, value in chosen.items() if name not in NOT_RECORDED}


def default_options() -> dict[str, Any]:
    """Return what options are where they are not given; those that must be are left out."""
    return {each.name: each.default for each in fields(TrainOptions) if each.default is not MISSING}


def check_options(options: TrainOptions) -> TrainingData:
    """Check options against one another, before anything is written; return what to train on.

    Raises:
        ValueError: If options are out of range or do not go together, or corpus or weights are
            missing; then the message names both.
    """
    schedule = build_schedule(method_of(options), options)
    if options.init_mask and not schedule.takes_masks:
        able = ", ".join(name for name, cls in SCHEDULES.items() if cls.takes_masks)
        raise ValueError(f"--init-mask is not for {method_of(options)}: use it with {able}")
    recipe_of(options.model, options.target, options)
    out, _ = locate_run(options.out, options.resume)
    if options.teacher == SELF and not schedule.has_dense_phase:
        raise ValueError(
            f"--teacher self is not for {method_of(options)}, which has no dense phase before its "
            "end: give a finished dense run"
        )
    if options.teacher and options.teacher != SELF:
        find_teacher(options.teacher, out)
    problems = []
    try:
        wanted = Wanted(labels={labels_of(options.target)}, resample=options.resample)
        corpus = Corpus(resolve_data(options.data), options.corpus, wanted)
        data = load_corpus(corpus, options.subset, options.splits)
    except ValueError as error:
        problems.append(str(error))
    try:
        if options.init == "auto" and PRESETS[options.model].hub_id:
            find_weights(options.model)
    except ValueError as error:
        problems.append(str(error))
    if problems:
        raise ValueError("; and ".join(problems))
    if "audio_ctx" in default_front_end(options.model):
        data.audio_context(options.audio_ctx)
    return data


def train(options: TrainOptions) -> int:
    """Run what ``options`` ask for; return the exit status."""
    data = check_options(options)
    method = method_of(options)
    name = f"{options.model}-{options.target}-{method}-{options.sparsity:g}-seed{options.seed}"
    world = join_world(device := resolve_device(options.device))
    out, last = world.gather([locate_run(options.out, options.resume, name)])[0]
    chosen = recorded_options(options)
    if world.writes:
        open_run_folder(out, chosen, options.resume is not None, default_options())
        remove_left_overs(out)
    if (out / "results.json").is_file():
        print(summary(read_json(out / "results.json")), f"{out} is finished", sep="\n")
        return 0
    recipe = asdict(recipe_of(options.model, options.target, options))
    config = {"options": chosen, "recipe": recipe, **describe_environment(str(device))}
    if world.writes:
        write_json(out / "config.json", config)
    run = build_run(options, data, out, last, world)
    if world.writes:
        write_json(out / "config.json", config | {"run": run.checkpoint.run})
    if not fit_stages(run):
        tqdm.write(f"interrupted at step {run.step}; go on with --resume {out / 'last.pt'}")
        return 130
    report = final_report(run)
    if not world.writes:
        return 0
    write_json(out / "results.json", report)
    (out / "initial.pt").unlink(missing_ok=True)
    shutil.rmtree(out / "inputs", ignore_errors=True)
    print(summary(report["dev"]), summary(report), report["protocol"], sep="\n")
    print(f"{command('eval')} --ckpt {out / 'best.pt'}")
    return 0


def final_report(run: Run) -> dict[str, Any]:
    """Score best.pt on dev and test, and describe what became of the weights."""
    run.world.wait()
    device = next(run.checkpoint.model.parameters()).device
    best = load_checkpoint(run.out / "best.pt", device=device)
    run.checkpoint.model.load_state_dict(best.model.state_dict())
    test = score_run(run, run.data.test)
    if run.world.writes:
        write_alignments(run.out / "test.jsonl", test)
    initial = load_checkpoint(run.out / "initial.pt")
    options = asdict(run.options)
    return (
        results(test, best)
        | {
            "dev": results(score_run(run, run.data.dev, run.dev_inputs), best),
            "best_step": best.run["step"],
            "skipped_steps": run.optimizer.check(),
            "pruning": {each.name: options[each.name] for each in fields(PruneOptions)}
            | {key: best.run[key] for key in ("scope", "biases")},
            "teacher": run.checkpoint.run.get("teacher"),
            "cost": total_cost(run),
        }
        | describe_weights(best, initial)
    )


def total_cost(run: Run) -> dict[str, Any]:
    """Return what the run has taken, its earlier stages and its teacher included."""
    stages = [load_stage(run.out, name) for name in run.schedule.stages[:-1]]
    cost = {
        "fine_tuning_runs": len(run.schedule.stages),
        "steps": run.step + sum(stage.steps for stage in stages),
        "training_seconds": run.seconds + sum(stage.seconds for stage in stages),
    }
    teacher = run.checkpoint.run.get("teacher") or {}
    of_teacher = teacher.get("cost") or {}
    return {key: value + of_teacher.get(key, 0) for key, value in cost.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    name, description = command("train"), (__doc__ or "").split("\n")[0]
    return run_program(name, lambda: train(parse_options(TrainOptions, argv, description, name)))


if __name__ == "__main__":
    sys.exit(main())
