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
from datetime import datetime
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
    open_run_folder,
    write_json,
)
from data.targets import target_text
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
)
from models import MODEL_NAMES, PRESETS, PRUNE_SCOPES
from models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from models.convert import find_weights, load_weights
from models.initial import fit_architecture, random_checkpoint, set_vocabulary, target_tokenizer
from models.optim import Optimizer
from models.recipes import Recipe, defaults_of, recipe_for
from models.tasks import PRECISIONS, Task, build_task
from pruning.mask_file import load_masks_for, save_masks, weights_hash
from pruning.schedules import SCHEDULES, Reprune, Schedule, Snapshot, build_schedule
from pruning.scope import select_parameters

MASK_METADATA = ("model", "scope", "sparsity", "target", "method", "seed", "weights_hash")


@dataclass(frozen=True)
class TrainOptions:
    """Options of the command line, a flag each; a recipe's fields default to models/recipes.py."""

    model: str = option("architecture", choices=tuple(MODEL_NAMES))
    sparsity: float = option("fraction in [0, 1) of the in-scope weights to drop", 0.0)
    method: str | None = option(
        "when to prune; without it parp, or dense at sparsity 0", None, choices=tuple(SCHEDULES)
    )
    scope: str | None = option(
        "prunable parameters: encoder (w2v2); encoder_decoder, encoder, decoder (whisper); "
        "without it the whole transformer",
        None,
    )
    granularity: str = option("what is ranked together", "global", ("global", "layerwise"))
    prune_every: int = option("optimizer steps between re-prunes", 50, positive=True)
    init_mask: str | None = option("mask file of another run to begin with", None)
    data: str | None = option("TIMIT root, or demo; without it $TIMIT_ROOT, then data/TIMIT", None)
    init: str = option(
        "initial weights: a checkpoint, a folder that models.convert reads, random, or auto "
        "(local weights folder, then the model hub; random for demo models)",
        "auto",
    )
    target: str = option("what to recognise", "phone", choices=("phone", "char", "text", "subword"))
    phones: int = option("phone set to train on; scores are on 39", 39, choices=tuple(PHONE_SETS))
    subword_vocab: int = option("vocabulary size of --target subword", 300, positive=True)
    steps: int | None = option("optimizer steps, in place of --epochs", None, positive=True)
    epochs: float | None = option(f"passes over train; {defaults_of('epochs')}", None, None, True)
    lr: float | None = option(f"peak learning rate; {defaults_of('lr')}", None, None, True)
    head_lr: float | None = option(f"of a new head; {defaults_of('head_lr')}", None, None, True)
    batch_seconds: float | None = option(
        f"audio in a batch, padding included; {defaults_of('batch_seconds')}", None, None, True
    )
    warmup: float = option("share of the steps in which the learning rate rises", 0.1)
    hold: float | None = option(f"share of the steps at the peak; {defaults_of('hold')}", None)
    grad_accum: int = option("batches summed into one optimizer step", 1, positive=True)
    clip: float = option("largest gradient norm", 1.0, positive=True)
    weight_decay: float = option("AdamW's weight decay", 0.0)
    freeze: str | None = option(
        "parameters that stay as they are; without it the feature encoder of pre-trained wav2vec2",
        None,
        choices=("none", "feature_encoder"),
    )
    precision: str | None = option(
        "inside the model; without it bf16 on CUDA, fp32 on the CPU", None, tuple(PRECISIONS)
    )
    device: str = option("auto, cpu, cuda or cuda:N", "auto")
    seed: int = option("seed of weights, data order, dropout and masking", 0)
    out: str | None = option("run folder; without it runs/<time>-<model>-...", None)
    resume: str | None = option("a last.pt to go on from, or auto: the one in --out, if any", None)
    audio_ctx: str = option(
        "whisper's context: full (30 s), auto (the corpus' longest utterance), or seconds", "auto"
    )
    eval_every: int | None = option("steps between dev scores, else an epoch", None, positive=True)
    log_every: int = option("steps between train events", 10, positive=True)
    patience: int = option("non-finite steps in a row before the run stops", 10, positive=True)


@dataclass
class Run:
    """Everything that the loop touches."""

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
    steps: int
    eval_every: int
    step: int = 0
    best: float = math.inf
    seconds: float = 0.0


def fit(run: Run) -> bool:
    """Train to the last step: the loop. Return False where it was interrupted, its state saved."""
    run.checkpoint.model.train()
    bar = tqdm(total=run.steps, initial=run.step, desc="train", disable=None)
    with interrupts() as interrupted, bar:
        while run.step < run.steps:
            started = time.perf_counter()
            loss, grad_norm = optimizer_step(run)
            run.step += 1
            reprune = run.schedule.after_step(run.params, run.step)
            if run.step == run.steps:
                reprune = run.schedule.finish(run.params, run.step) or reprune
            run.seconds += time.perf_counter() - started

            log_step(run, loss, grad_norm, reprune)
            bar.update()
            if run.step % run.eval_every == 0 or run.step == run.steps:
                score_and_save(run)
            if interrupted and run.step < run.steps:
                with run.schedule.pruned(run.params) as snapshot:
                    save(run, "last.pt", snapshot)
                return False
    return True


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
    if reprune is not None:
        run.log.write("reprune", run.step, **asdict(reprune))
    if run.step % run.options.log_every == 0 or run.step == run.steps:
        values = {"loss": loss, "lr": run.optimizer.lr, "grad_norm": grad_norm}
        run.log.write(
            "train", run.step, **values, skipped=run.optimizer.skipped, seconds=run.seconds
        )


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
    run.log.write("dev", run.step, best=run.best, wall_seconds=scores.wall_seconds, **rates)
    shown = ", ".join(f"{name.upper()} {rate:.4f}" for name, rate in rates.items())
    tqdm.write(f"step {run.step}/{run.steps}: dev {shown}{' (best)' if improved else ''}")


def score_run(run: Run, utterances: Sequence[Utterance]) -> Scores:
    """Score the model as it is now, greedily."""
    tokenizer, frontend = run.checkpoint.tokenizer, run.checkpoint.frontend
    assert tokenizer is not None
    return score(run.task, tokenizer, frontend, utterances)


def save(run: Run, name: str, snapshot: Snapshot) -> None:
    """Write the model, re-pruned, to ``name``; last.pt also holds what resuming needs."""
    training = None
    if name == "last.pt":
        cuda = next(run.checkpoint.model.parameters()).is_cuda
        training = {
            "step": run.step,
            "best": run.best,
            "seconds": run.seconds,
            "adjusted": snapshot.adjusted,
            "optimizer": run.optimizer.state_dict(),
            "schedule": run.schedule.state_dict(),
            "sampler": run.sampler.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state() if cuda else None,
        }
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
    with torch.no_grad():
        for name, adjusted in training["adjusted"].items():
            run.params[name].copy_(adjusted)
    run.optimizer.load_state_dict(training["optimizer"])
    run.schedule.load_state_dict(training["schedule"], run.params)
    run.sampler.load_state_dict(training["sampler"])
    torch.set_rng_state(training["rng"].cpu())
    if training["cuda_rng"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(training["cuda_rng"].cpu())
    run.step, run.best, run.seconds = training["step"], training["best"], training["seconds"]


def build_run(options: TrainOptions, out: Path, last: Path | None) -> Run:
    """Read the corpus and the weights and put together what the loop needs."""
    torch.manual_seed(options.seed)
    device = resolve_device(options.device)
    precision = resolve_precision(options.precision, device)
    root = resolve_data(options.data)
    train, dev = load_splits(root)
    checkpoint = load_checkpoint(last) if last else initial_checkpoint(options, root, train)
    about, frontend, training = checkpoint.run, checkpoint.frontend, checkpoint.training
    if last and training is None:
        raise ValueError(f"{last} holds no training state: resume from a last.pt")
    checkpoint.training = None
    model = checkpoint.model.to(device)
    if about["freeze"] == "feature_encoder":
        model.feature_encoder.requires_grad_(False)
    task = build_task(model, checkpoint.decoding, precision)
    train, targets = usable(train, checkpoint, task, options)
    recipe = recipe_of(options)
    lengths = [padded_seconds(utterance, frontend) for utterance in train]
    sampler = BatchSampler(lengths, recipe.batch_seconds, seed=options.seed)
    steps_per_epoch = math.ceil(sampler.count_batches(1) / options.grad_accum)
    about["steps"] = options.steps or math.ceil(recipe.epochs * steps_per_epoch)
    params = select_parameters(dict(model.named_parameters()), about["scope_pattern"])
    schedule = build_schedule(
        about["method"], about["sparsity"], options.granularity, options.prune_every
    )
    if training is None:
        path, model_scope = options.init_mask, (about["model"], about["scope"])
        schedule.start(params, load_masks_for(path, params, *model_scope) if path else None)
    optimizer = Optimizer(
        model,
        recipe.lr,
        recipe.head_lr,
        about["new_head"],
        steps=about["steps"],
        warmup=options.warmup,
        hold=recipe.hold,
        clip=options.clip,
        weight_decay=options.weight_decay,
        scale_loss=precision == "fp16",
        patience=options.patience,
    )
    run = Run(
        options=options,
        out=out,
        checkpoint=checkpoint,
        task=task,
        params=params,
        schedule=schedule,
        optimizer=optimizer,
        sampler=sampler,
        inputs=[model_input(u, frontend) for u in tqdm(train, "read", disable=None)],
        targets=targets,
        dev=dev,
        log=EventLog(out / "metrics.jsonl", training["step"] if training else 0),
        steps=about["steps"],
        eval_every=options.eval_every or steps_per_epoch,
    )
    if training is not None:
        restore(run, training)
    write_manifest([*train, *dev], out / "manifest.tsv")
    return run


def load_splits(root: str) -> tuple[list[Utterance], list[Utterance]]:
    """List train and dev; warn where TIMIT's counts are not met."""
    splits = {split: load_timit(root, split) for split in ("train", "dev")}
    for warning in (text for pair in splits.items() for text in check_counts(*pair)):
        tqdm.write(f"train.py: warning: {warning}", file=sys.stderr)
    return splits["train"], splits["dev"]


def recipe_of(options: TrainOptions) -> Recipe:
    """Return the model's recipe with what the command line changes."""
    given = {field.name: getattr(options, field.name) for field in fields(Recipe)}
    return recipe_for(options.model, options.target, **given)


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
    tokenizer = target_tokenizer(
        options.target, checkpoint, texts, PHONE_SETS[options.phones], options.subword_vocab
    )
    longest = max(len(tokenizer.encode(text)) for text in texts)
    new_head = set_vocabulary(checkpoint, tokenizer, max_tokens=2 * longest + 8)
    scopes = PRUNE_SCOPES[preset.family]
    scope = options.scope or next(iter(scopes))
    if scope not in scopes:
        raise ValueError(f"--scope {scope} is not for {options.model}: give {' or '.join(scopes)}")
    method = options.method or ("parp" if options.sparsity else "dense")
    pretrained_cnn = preset.family == "wav2vec2" and source != "random"
    checkpoint.masks, checkpoint.training = {}, None
    checkpoint.run = {
        **{k: getattr(options, k) for k in ("model", "target", "phones", "seed", "data")},
        "method": method,
        "sparsity": 0.0 if method == "dense" else options.sparsity,
        "scope": scope,
        "scope_pattern": scopes[scope],
        "init": source,
        "freeze": options.freeze or ("feature_encoder" if pretrained_cnn else "none"),
        "new_head": new_head,
        "weights_hash": weights_hash(dict(checkpoint.model.named_parameters())),
    }
    return checkpoint


def usable(
    train: list[Utterance], checkpoint: Checkpoint, task: Task, options: TrainOptions
) -> tuple[list[Utterance], list[list[int]]]:
    """Return the utterances that can be trained on with their target ids; name the others.

    Raises:
        ValueError: If none can.
    """
    assert checkpoint.tokenizer is not None
    texts = [target_text(utterance, options.target, options.phones) for utterance in train]
    targets = [checkpoint.tokenizer.encode(text) for text in texts]
    reasons = [task.why_unusable(u.num_samples, t) for u, t in zip(train, targets, strict=True)]
    for utterance, reason in zip(train, reasons, strict=True):
        if reason:
            tqdm.write(f"train.py: left out {utterance.utt_id}: {reason}", file=sys.stderr)
    kept = [i for i, reason in enumerate(reasons) if reason is None]
    if not kept:
        raise ValueError(
            f"none of the {len(train)} training utterances can be used, the first because "
            f"{reasons[0]}: check the corpus, or give a --target with fewer tokens"
        )
    return [train[i] for i in kept], [targets[i] for i in kept]


def check_options(options: TrainOptions) -> None:
    """Check what concerns several options, before anything is read.

    Raises:
        ValueError: If options are out of range or do not go together, or corpus or weights are
            missing; then the message names both.
    """
    build_schedule(options.method or "dense", options.sparsity, prune_every=options.prune_every)
    if options.steps and options.epochs:
        raise ValueError("--steps and --epochs exclude each other: give one of them")
    hold = recipe_of(options).hold
    if min(options.warmup, hold) < 0 or options.warmup + hold >= 1:
        raise ValueError("--warmup and --hold are shares of the run: together less than 1")
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
    method = options.method or "parp"
    name = f"{options.model}-{options.target}-{method}-{options.sparsity:g}-seed{options.seed}"
    out = Path(options.out or f"runs/{datetime.now():%Y%m%d-%H%M%S}-{name}")
    last: Path | None = None
    if options.resume == "auto":
        last = out / "last.pt" if (out / "last.pt").is_file() else None
    elif options.resume:
        last = Path(options.resume)
        out = Path(options.out or last.parent)
    chosen = {k: v for k, v in asdict(options).items() if k not in ("resume", "out", "device")}
    open_run_folder(out, chosen, resuming=last is not None)
    run = build_run(options, out, last)
    device = next(run.checkpoint.model.parameters()).device
    write_json(
        out / "config.json",
        {
            "options": chosen,
            "recipe": asdict(recipe_of(options)),
            "run": run.checkpoint.run,
            **describe_environment(str(device)),
        },
    )
    if not fit(run):
        tqdm.write(f"interrupted at step {run.step}; go on with --resume {out / 'last.pt'}")
        return 130
    report = final_report(run)
    write_json(out / "results.json", report)
    print(summary(report["dev"]))
    print(summary(report))
    print(report["protocol"])
    print(f"python eval.py --ckpt {out / 'best.pt'}")
    return 0


def final_report(run: Run) -> dict[str, Any]:
    """Score best.pt on dev and test."""
    device = next(run.checkpoint.model.parameters()).device
    best = load_checkpoint(run.out / "best.pt", device=device)
    run.task.model = run.checkpoint.model = best.model
    root = resolve_data(run.options.data)
    reports = [
        results(score_run(run, utterances), best, split)
        for split, utterances in (("test", load_timit(root, "test")), ("dev", run.dev))
    ]
    training = {"training_seconds": run.seconds, "skipped_steps": run.optimizer.skipped}
    return reports[0] | {"dev": reports[1], "best_step": best.run["step"]} | training


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
