"""A run before it begins: everything resolved and checked once, and the weights to begin with."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from data.checks import check_recordings, check_references
from data.corpus import Corpus, TrainingData, load_corpus
from data.inputs import resolve_data
from data.phones import PHONE_SETS
from data.run_folder import locate_run
from data.run_manifest import check_manifest
from data.targets import labels_of, target_text
from data.utterance import Wanted
from models import PRESETS, family_of
from models.checkpoint import Checkpoint
from models.convert import find_weights, know_model, load_initial
from models.device import World, join_world, resolve_device, resolve_precision
from models.facts import RunFacts
from models.family import Recipe
from models.initial import choose_frozen, default_front_end, fit_target, set_regularisation
from models.training.distill import SELF, find_teacher, training_cost
from models.training.recipes import recipe_of
from pruning.interface import Schedule
from pruning.mask_file import weights_hash
from pruning.run.board import check_tensorboard
from pruning.run.options import TrainOptions, method_of
from pruning.schedules import build_schedule
from pruning.scope import choose_scope


@dataclass(frozen=True)
class Plan:
    """What a run will do, with nothing left open.

    Attributes:
        options: As given.
        method: The method, by name.
        schedule: The method, new.
        recipe: How the model is fine-tuned.
        data: What it trains on and is scored on.
        device: Where it computes.
        precision: In what precision.
        world: The processes that share the run.
        out: The run folder.
        last: The last.pt that it goes on from; None begins anew.
    """

    options: TrainOptions
    method: str
    schedule: Schedule
    recipe: Recipe
    data: TrainingData
    device: torch.device
    precision: str
    world: World
    out: Path
    last: Path | None


def make_plan(options: TrainOptions) -> Plan:
    """Resolve ``options`` and check them against one another, before anything is written.

    Raises:
        ValueError: If options are out of range or do not go together, or corpus or weights are
            missing; then the message names both.
    """
    if know_model(options.model) and options.init == "auto":
        options = replace(options, init=options.model)
    method = method_of(vars(options))
    schedule = build_schedule(method, options)
    recipe = recipe_of(options.model, options.target, options)
    out, _ = locate_run(options.out, options.resume)
    _check_teacher(options, method, schedule, out)
    if options.tensorboard:
        check_tensorboard()
    data = _find_data_and_weights(options)

    device = resolve_device(options.device)
    precision = resolve_precision(options.precision, device)
    world = join_world(device)

    # A generated name holds the time, on which processes have to agree.
    model = options.model.strip("/").replace("/", "-")
    name = f"{model}-{options.target}-{method}-{options.sparsity:g}-seed{options.seed}"
    out, last = world.gather([locate_run(options.out, options.resume, name)])[0]
    return Plan(
        options=options,
        method=method,
        schedule=schedule,
        recipe=recipe,
        data=data,
        device=device,
        precision=precision,
        world=world,
        out=out,
        last=last,
    )


def _check_teacher(options: TrainOptions, method: str, schedule: Schedule, out: Path) -> None:
    if options.teacher and options.steps == 0:
        raise ValueError("--teacher teaches nothing in 0 steps: give more, or leave it out")
    if options.teacher == SELF and not schedule.has_dense_phase:
        raise ValueError(
            f"--teacher self is not for {method}, which has no dense phase before its end: give a "
            "finished dense run"
        )
    if options.teacher and options.teacher != SELF:
        find_teacher(options.teacher, out)


def _find_data_and_weights(options: TrainOptions) -> TrainingData:
    """Return what to train on; where corpus and weights are both missing, say both."""
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
    elif options.audio_ctx != "auto":
        said = f"--audio-ctx is of log-mels, and {options.model} hears waveforms; left out"
        tqdm.write(said, file=sys.stderr)
    check_references([data.train, data.dev, data.test], labels_of(options.target))
    return data


def check_corpus(plan: Plan) -> None:
    """Check that the corpus still is what a run to go on with, or to reuse stages of, has seen.

    What is read late in a run comes first among the recordings that are read through.

    Raises:
        ValueError: If labels, lengths, recordings or splits differ, or a recording is damaged.
    """
    data, reuse = plan.data, plan.options.reuse
    manifest = plan.out / "manifest.tsv"
    if manifest.is_file() and (plan.last or (plan.out / "results.json").is_file()):
        remedy = "put it back, or begin anew in another folder"
        check_manifest([data.train, data.dev, data.test], manifest, remedy)
    if reuse and (manifest := Path(reuse) / "manifest.tsv").is_file():
        remedy = "give a run on the same data to --reuse, or none"
        check_manifest([data.train, data.dev], manifest, remedy)
    splits = (data.test, data.dev, data.train)
    check_recordings([each for split in splits for each in split.utterances])


def _say_what_is_new(facts: RunFacts, source: str) -> None:
    """Say on stderr which parameters do not come from the weights as they were."""
    if facts.head_rows:
        tqdm.write(facts.head_rows, file=sys.stderr)
    if facts.drawn:
        tqdm.write(f"{source} lacks {', '.join(facts.drawn)}: drawn anew", file=sys.stderr)


def initial_checkpoint(plan: Plan) -> Checkpoint:
    """Load or draw the weights that a run begins with, and fit them to its target.

    Randomness: torch's global generator, for weights and a new head.

    Raises:
        ValueError: If the weights are of another model, or not for the target.
    """
    options, data = plan.options, plan.data
    family = family_of(options.model)
    checkpoint, source = load_initial(options.model, options.init)
    cost = training_cost(Path(source), checkpoint)
    if "audio_ctx" in checkpoint.frontend:
        checkpoint.frontend["audio_ctx"] = data.audio_context(options.audio_ctx)

    texts = [target_text(each, options.target, options.phones) for each in data.train.utterances]
    symbols = PHONE_SETS[options.phones]
    new_head = fit_target(checkpoint, options.target, texts, symbols, options.subword_vocab)
    set_regularisation(checkpoint, plan.recipe)
    if plan.world.writes:
        _say_what_is_new(checkpoint.run, source)

    checkpoint.masks = {}
    checkpoint.training = None
    as_given = ("model", "target", "phones", "seed", "data", "corpus", "resample")
    checkpoint.run = RunFacts(
        **{name: getattr(options, name) for name in as_given},
        method=plan.method,
        sparsity=options.sparsity,
        **choose_scope(tuple(family.prune_scopes), family.scope_pattern, options),
        init=source,
        init_cost=cost if cost["steps"] else None,
        freeze=choose_frozen(family, options.freeze, source),
        new_head=tuple(new_head),
        weights_hash=weights_hash(dict(checkpoint.model.named_parameters())),
    )
    return checkpoint
