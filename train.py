"""Fine-tune and prune wav2vec2 or whisper: PARP and its baselines, in one loop.

    python train.py --model w2v2 --sparsity 0.6                        # wav2vec2-base on TIMIT
    python train.py --model whisper-tiny --sparsity 0.5 --target text
    python train.py --model w2v2-demo --sparsity 0.6 --data demo       # needs no corpus, no weights

``fit`` is the loop; what a method does between steps is in pruning/schedules.py. A run leaves its
options, events, checkpoints, masks and results in the folder ``--out``.
"""

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from data.batching import BatchSampler
from data.log_mel import context_seconds
from data.options import option, parse_options
from data.phones import PHONE_SETS
from data.run_folder import (
    EventLog,
    describe_environment,
    interrupts,
    locate_run,
    open_run_folder,
    read_json,
    write_json,
)
from data.subsets import select_subset
from data.targets import keep_usable, target_text
from data.timit import Utterance, check_counts, load_timit, write_manifest
from eval import (
    Scores,
    model_input,
    padded_seconds,
    resolve_data,
    resolve_device,
    resolve_precision,
    results,
    score,
    summary,
    write_alignments,
)
from models import MODEL_NAMES, PRESETS, PRUNE_SCOPES
from models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from models.convert import find_weights, load_weights
from models.initial import fit_architecture, fit_target, random_checkpoint, set_masking
from models.optim import Optimizer, build_optimizer, random_state, set_random_state
from models.recipes import FitOptions, recipe_of
from models.tasks import Task, build_task
from pruning.analysis import describe_tensors, size_in_bytes
from pruning.interface import PruneOptions, Reprune, Schedule, Snapshot, restore_weights
from pruning.mask_file import load_masks_for, save_masks, weights_hash
from pruning.schedules import SCHEDULES, build_schedule
from pruning.scope import select_parameters, without_biases
from pruning.stages import Stage, finished_stage, load_stage, save_stage

STATEFUL = ("optimizer", "schedule", "sampler")
MASK_METADATA = ("model", "scope", "sparsity", "target", "method", "seed", "weights_hash")


@dataclass(frozen=True, kw_only=True)
class TrainOptions(FitOptions, PruneOptions):
    """Options of the command line, a flag each: these, those of the recipe and of the pruning."""

    model: str = option("architecture", choices=tuple(MODEL_NAMES))
    method: str | None = option(
        "when to prune; without it parp, or dense at sparsity 0", None, choices=tuple(SCHEDULES)
    )
    data: str | None = option("TIMIT root, or demo; without it $TIMIT_ROOT, then data/TIMIT", None)
    subset: str | None = option(
        "part of train: sex=f, dialect=1+2, minutes=10, or several joined by commas", None
    )
    init: str = option(
        "initial weights: a checkpoint, a folder that models.convert reads, random, or auto "
        "(local weights folder, then the model hub; random for demo models)",
        "auto",
    )
    target: str = option("what to recognise", "phone", choices=("phone", "char", "text", "subword"))
    phones: int = option("phone set to train on; scores are on 39", 39, choices=tuple(PHONE_SETS))
    subword_vocab: int = option("vocabulary size of --target subword", 300, positive=True)
    device: str = option("auto, cpu, cuda or cuda:N", "auto")
    out: str | None = option("run folder; without it runs/<time>-<model>-...", None)
    resume: str | None = option("a last.pt to go on from, or auto: the one in --out, if any", None)
    audio_ctx: str = option(
        "whisper's context: full (30 s), auto (the corpus' longest utterance), or seconds", "auto"
    )
    eval_every: int | None = option("steps between dev scores, else an epoch", None, positive=True)
    log_every: int = option("steps between train events", 10, positive=True)


@dataclass
class Run:
    """Everything that the loop touches; ``steps`` and what follows it are the present stage's."""

    options: TrainOptions
    out: Path
    checkpoint: Checkpoint
    task: Task
    params: dict[str, Tensor]
    schedule: Schedule
    optimizer: Optimizer
    sampler: BatchSampler
    inputs: list[Tensor]
    targets: list[list[int]]
    dev: list[Utterance]
    log: EventLog
    eval_every: int
    steps: int = 0
    step: int = 0
    best: float = math.inf
    seconds: float = 0.0


def fit(run: Run) -> bool:
    """Train to the last step: the loop. Return False where it was interrupted, its state saved."""
    run.checkpoint.model.train()
    bar = tqdm(total=run.steps, initial=run.step, desc=stage_name(run), disable=None)
    with interrupts() as interrupted, bar:
        while run.step < run.steps:
            started = time.perf_counter()
            loss, grad_norm = optimizer_step(run)
            run.step += 1
            reprune = run.schedule.after_step(run.params, run.step)
            if run.step == run.steps:
                reprune = run.schedule.finish(run.params, run.step) or reprune
            if reprune and run.options.zero_moments:
                run.optimizer.zero_moments(run.params, run.schedule.masks)
            run.seconds += time.perf_counter() - started

            log_step(run, loss, grad_norm, reprune)
            bar.update()
            at = (run.schedule.stage, run.step)
            if at == (0, run.options.rewind_step) and run.schedule.rewinds:
                save(run, "rewind.pt", Snapshot({}, {}))
            if run.step % run.eval_every == 0 or run.step == run.steps:
                score_and_save(run)
            if interrupted and run.step < run.steps:
                with run.schedule.pruned(run.params) as snapshot:
                    save(run, "last.pt", snapshot)
                return False
    return True


def fit_stages(run: Run) -> bool:
    """Fit once for each stage of the method, most have one. Return False where interrupted."""
    while True:
        name = stage_name(run)
        is_last = name == run.schedule.stages[-1]
        stage = None if is_last else finished_stage(run.out, name, asdict(run.options))
        if stage is None:
            if not fit(run):
                return False
            best = dict(load_checkpoint(run.out / "best.pt").model.named_parameters())
            stage = Stage({name: best[name] for name in run.params}, run.step, run.seconds)
            save_stage(run.out, name, stage)
        if is_last:
            return True
        begin_stage(run, run.schedule.stage + 1, stage.weights)


def stage_name(run: Run) -> str:
    """Return the name of the stage under way."""
    return run.schedule.stages[run.schedule.stage]


def begin_stage(run: Run, stage: int, previous: dict[str, Tensor] | None = None) -> None:
    """Put the initial weights, or those to rewind to, back and prune as ``stage`` begins."""
    options, about, model = run.options, run.checkpoint.run, run.checkpoint.model
    initial = load_checkpoint(run.out / "initial.pt")
    assert initial.training is not None
    if stage and options.rewind_step:
        model.load_state_dict(load_checkpoint(run.out / "rewind.pt").model.state_dict())
    else:
        model.load_state_dict(initial.model.state_dict())
    set_random_state(initial.training)
    path, model_scope = options.init_mask, (about["model"], about["scope"])
    masks = load_masks_for(path, run.params, *model_scope) if path and stage == 0 else None
    if previous is not None:
        previous = {name: previous[name].to(param.device) for name, param in run.params.items()}
    run.steps = run.schedule.stage_steps(stage, about["steps"])
    run.schedule.start(run.params, run.steps, stage, previous, masks)
    run.optimizer = build_optimizer(model, options, about, run.steps)
    run.sampler.load_state_dict({"epoch": 0, "position": 0})
    run.step, run.best, run.seconds = 0, math.inf, 0.0


def optimizer_step(run: Run) -> tuple[float, float]:
    """Take one step; return the loss per target token and the gradient norm before clipping."""
    batches = [run.sampler.next_batch() for _ in range(run.options.grad_accum)]
    num_tokens = sum(max(1, len(run.targets[i])) for batch in batches for i in batch)
    loss_per_token = 0.0
    for batch in batches:
        loss = run.task.loss([run.inputs[i] for i in batch], [run.targets[i] for i in batch])
        run.optimizer.backward(loss / num_tokens)
        loss_per_token += float(loss.detach()) / num_tokens
    return loss_per_token, run.optimizer.step(run.step, loss_per_token)


def log_step(run: Run, loss: float, grad_norm: float, reprune: Reprune | None) -> None:
    """Write the events of the step just taken."""
    at = (run.schedule.stage, run.step)
    if reprune is not None:
        run.log.write("reprune", *at, asdict(reprune))
    if run.step % run.options.log_every == 0 or run.step == run.steps:
        values = {"loss": loss, "lr": run.optimizer.lr, "grad_norm": grad_norm}
        values |= {"skipped": run.optimizer.skipped, "seconds": run.seconds}
        run.log.write("train", *at, values)


def score_and_save(run: Run) -> None:
    """Score the re-pruned model on dev and save it; the weights in training stay as they are."""
    with run.schedule.pruned(run.params) as snapshot:
        scores = score_run(run, run.dev)
        improved = scores.rate < run.best
        run.best = min(run.best, scores.rate)
        if improved:
            save(run, "best.pt", snapshot)
            save_run_masks(run, snapshot)
        save(run, "last.pt", snapshot)
    rates = {name: rate.rate for name, rate in scores.rates.items()}
    at = (run.schedule.stage, run.step)
    run.log.write("dev", *at, {"best": run.best, "wall_seconds": scores.wall_seconds} | rates)
    shown = ", ".join(f"{name.upper()} {rate:.4f}" for name, rate in rates.items())
    tqdm.write(f"step {run.step}/{run.steps}: dev {shown}{' (best)' if improved else ''}")


def score_run(run: Run, utterances: Sequence[Utterance]) -> Scores:
    """Score the model as it is now, greedily."""
    tokenizer, frontend = run.checkpoint.tokenizer, run.checkpoint.frontend
    assert tokenizer is not None
    return score(run.task, tokenizer, frontend, utterances)


def save(run: Run, name: str, snapshot: Snapshot) -> None:
    """Write the model, re-pruned, to ``name``; last.pt also holds what resuming needs."""
    training: dict[str, Any] | None = None
    if name == "last.pt":
        training = {key: getattr(run, key) for key in ("steps", "step", "best", "seconds")}
        training |= {part: getattr(run, part).state_dict() for part in STATEFUL}
        training |= {"adjusted": snapshot.adjusted, **random_state()}
    metadata = run.checkpoint.run | {"step": run.step}
    save_checkpoint(
        run.out / name,
        replace(run.checkpoint, masks=snapshot.masks, run=metadata, training=training),
    )


def save_run_masks(run: Run, snapshot: Snapshot) -> None:
    """Write the masks of the model in best.pt to masks.pt."""
    about = run.checkpoint.run
    metadata = {k: about[k] for k in MASK_METADATA}
    metadata |= {"source_run": run.out.name, "step": run.step}
    save_masks(run.out / "masks.pt", snapshot.masks, metadata)


def restore(run: Run, training: dict[str, Any]) -> None:
    """Take up the state of last.pt, whose model ``run`` was built from."""
    restore_weights(run.params, training["adjusted"])
    run.schedule.load_state_dict(training["schedule"], run.params)
    run.sampler.load_state_dict(training["sampler"])
    for key in ("steps", "step", "best", "seconds"):
        setattr(run, key, training[key])
    about = run.checkpoint.run
    run.optimizer = build_optimizer(run.checkpoint.model, run.options, about, run.steps)
    run.optimizer.load_state_dict(training["optimizer"])
    set_random_state(training)


def build_run(options: TrainOptions, out: Path, last: Path | None) -> Run:
    """Read the corpus and the weights and put together what the loop needs."""
    torch.manual_seed(options.seed)
    device = resolve_device(options.device)
    root = resolve_data(options.data)
    train, dev = load_splits(root, options.subset)
    checkpoint = load_checkpoint(last) if last else initial_checkpoint(options, root, train)
    about, frontend, training = checkpoint.run, checkpoint.frontend, checkpoint.training
    if last and training is None:
        raise ValueError(f"{last} holds no training state: resume from a last.pt")
    checkpoint.training = None
    model = checkpoint.model.to(device)
    if about["freeze"] == "feature_encoder":
        model.feature_encoder.requires_grad_(False)
    precision = resolve_precision(options.precision, device)
    task = build_task(model, checkpoint.decoding, precision)
    assert checkpoint.tokenizer is not None
    texts = [target_text(utterance, options.target, options.phones) for utterance in train]
    encoded = [checkpoint.tokenizer.encode(text) for text in texts]
    train, targets = keep_usable(train, encoded, task.why_unusable)
    recipe = recipe_of(options.model, options.target, options)
    lengths = [padded_seconds(utterance, frontend) for utterance in train]
    sampler = BatchSampler(lengths, recipe.batch_seconds, seed=options.seed)
    steps_per_epoch = math.ceil(sampler.count_batches(1) / options.grad_accum)
    about["steps"] = options.steps or math.ceil(recipe.epochs * steps_per_epoch)
    write_manifest([*train, *dev], out / "manifest.tsv")
    at = (training["schedule"]["stage"], training["step"]) if training else (0, 0)
    run = Run(
        options=options,
        out=out,
        checkpoint=checkpoint,
        task=task,
        params=select_parameters(dict(model.named_parameters()), about["scope_pattern"]),
        schedule=build_schedule(about["method"], options),
        optimizer=build_optimizer(model, options, about, about["steps"]),
        sampler=sampler,
        inputs=[model_input(u, frontend) for u in tqdm(train, "read", disable=None)],
        targets=targets,
        dev=dev,
        log=EventLog(out / "metrics.jsonl", *at),
        eval_every=options.eval_every or steps_per_epoch,
    )
    if training is None:
        save_checkpoint(out / "initial.pt", replace(checkpoint, training=random_state()))
        begin_stage(run, 0)
    else:
        restore(run, training)
    return run


def load_splits(root: str, subset: str | None) -> tuple[list[Utterance], list[Utterance]]:
    """List train, or a subset of it, and dev; warn where TIMIT's counts are not met."""
    splits = {split: load_timit(root, split) for split in ("train", "dev")}
    for warning in (text for pair in splits.items() for text in check_counts(*pair)):
        tqdm.write(f"train.py: warning: {warning}", file=sys.stderr)
    train = splits["train"]
    return select_subset(train, subset) if subset else train, splits["dev"]


def initial_checkpoint(options: TrainOptions, root: str, train: Sequence[Utterance]) -> Checkpoint:
    """Load or draw the initial weights and fit them to the target."""
    preset = PRESETS[options.model]
    source = options.init
    if source == "auto":
        source = str(find_weights(options.model)) if preset.hub_id else "random"
    if source == "random":
        checkpoint = random_checkpoint(options.model)
    else:
        checkpoint = load_weights(source)
        fit_architecture(checkpoint, options.model, source)
    if checkpoint.frontend["kind"] == "log_mel":
        every = [u for split in ("train", "dev", "full-test") for u in load_timit(root, split)]
        checkpoint.frontend["audio_ctx"] = context_seconds(
            options.audio_ctx, max(utterance.seconds for utterance in every)
        )
    texts = [target_text(utterance, options.target, options.phones) for utterance in train]
    symbols = PHONE_SETS[options.phones]
    new_head = fit_target(checkpoint, options.target, texts, symbols, options.subword_vocab)
    set_masking(checkpoint.model, options.mask_time, options.mask_channel)
    scopes = PRUNE_SCOPES[preset.family]
    scope = options.scope or next(iter(scopes))
    if scope not in scopes:
        raise ValueError(f"--scope {scope} is not for {options.model}: give {' or '.join(scopes)}")
    method = method_of(options)
    biases = options.pattern == "unstructured" if options.biases is None else options.biases
    pretrained_cnn = preset.family == "wav2vec2" and source != "random"
    checkpoint.masks, checkpoint.training = {}, None
    checkpoint.run = {
        **{k: getattr(options, k) for k in ("model", "target", "phones", "seed", "data")},
        "method": method,
        "sparsity": 0.0 if method == "dense" else options.sparsity,
        "biases": biases,
        "scope": scope,
        "scope_pattern": scopes[scope] if biases else without_biases(scopes[scope]),
        "init": source,
        "freeze": options.freeze or ("feature_encoder" if pretrained_cnn else "none"),
        "new_head": new_head,
        "weights_hash": weights_hash(dict(checkpoint.model.named_parameters())),
    }
    return checkpoint


def method_of(options: TrainOptions) -> str:
    """Return the method asked for, by default parp, or dense at sparsity 0."""
    return options.method or ("parp" if options.sparsity else "dense")


def check_options(options: TrainOptions) -> None:
    """Check what concerns several options, before anything is read.

    Raises:
        ValueError: If options are out of range or do not go together, or corpus or weights are
            missing; then the message names both.
    """
    schedule = build_schedule(method_of(options), options)
    if options.init_mask and not schedule.takes_masks:
        able = ", ".join(name for name, cls in SCHEDULES.items() if cls.takes_masks)
        raise ValueError(f"--init-mask is not for {method_of(options)}: use it with {able}")
    recipe_of(options.model, options.target, options)
    if options.resume == "auto" and options.out is None:
        raise ValueError("--resume auto needs --out, the folder of the run to go on with")
    problems = []
    try:
        load_timit(resolve_data(options.data), "train")
    except ValueError as error:
        problems.append(str(error))
    try:
        if options.init == "auto" and PRESETS[options.model].hub_id:
            find_weights(options.model)
    except ValueError as error:
        problems.append(str(error))
    if problems:
        raise ValueError("; and ".join(problems))


def train(options: TrainOptions) -> int:
    """Run what ``options`` ask for; return the exit status."""
    check_options(options)
    seed = f"seed{options.seed}"
    name = f"{options.model}-{options.target}-{method_of(options)}-{options.sparsity:g}-{seed}"
    out, last = locate_run(options.out, options.resume, name)
    hidden = ("resume", "out", "device", "reuse")
    chosen = {k: v for k, v in asdict(options).items() if k not in hidden}
    chosen["method"] = method_of(options)
    open_run_folder(out, chosen, resuming=options.resume is not None)
    if (out / "results.json").is_file():
        print(summary(read_json(out / "results.json")))
        print(f"the run in {out} is finished: there is nothing to go on with")
        return 0
    config = {
        "options": chosen,
        "recipe": asdict(recipe_of(options.model, options.target, options)),
    }
    config |= describe_environment(str(resolve_device(options.device)))
    write_json(out / "config.json", config)
    run = build_run(options, out, last)
    write_json(out / "config.json", config | {"run": run.checkpoint.run})
    if not fit_stages(run):
        go_on = f"--resume {out / 'last.pt'}"
        tqdm.write(f"interrupted at step {run.step} of stage {stage_name(run)}; go on with {go_on}")
        return 130
    report = final_report(run)
    write_json(out / "results.json", report)
    (out / "initial.pt").unlink(missing_ok=True)
    print(summary(report["dev"]))
    print(summary(report))
    print(report["protocol"])
    print(f"python eval.py --ckpt {out / 'best.pt'}")
    return 0


def final_report(run: Run) -> dict[str, Any]:
    """Score best.pt on dev and test, and describe what became of the weights."""
    device = next(run.checkpoint.model.parameters()).device
    best = load_checkpoint(run.out / "best.pt", device=device)
    run.task.model = run.checkpoint.model = best.model
    test = score_run(run, load_timit(resolve_data(run.options.data), "test"))
    write_alignments(run.out / "test.jsonl", test)
    pattern = best.run["scope_pattern"]
    params = select_parameters(dict(best.model.named_parameters()), pattern)
    initial = load_checkpoint(run.out / "initial.pt").model
    before = select_parameters(dict(initial.named_parameters()), pattern)
    stages = [load_stage(run.out, name) for name in run.schedule.stages[:-1]]
    options = asdict(run.options)
    return results(test, best, "test") | {
        "dev": results(score_run(run, run.dev), best, "dev"),
        "best_step": best.run["step"],
        "skipped_steps": run.optimizer.skipped,
        "pruning": {field.name: options[field.name] for field in fields(PruneOptions)}
        | {key: best.run[key] for key in ("scope", "biases")}
        | {key: options[key] for key in ("init_mask", "zero_moments")},
        "cost": {
            "fine_tuning_runs": len(run.schedule.stages),
            "steps": run.step + sum(stage.steps for stage in stages),
            "training_seconds": run.seconds + sum(stage.seconds for stage in stages),
        },
        "tensors": describe_tensors(params, before),
        "bytes": size_in_bytes(dict(best.model.state_dict()), best.masks),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    try:
        return train(parse_options(TrainOptions, argv, (__doc__ or "").split("\n")[0]))
    except ValueError as error:
        print(f"train.py: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before the loop, which catches signals itself
        return 130


if __name__ == "__main__":
    sys.exit(main())
