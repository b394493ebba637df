"""Score a checkpoint on a corpus, or transcribe recordings with it.

    python eval.py --ckpt runs/NAME/best.pt
    python eval.py --ckpt runs/NAME/best.pt --audio talk.wav interviews/
    python eval.py --ckpt runs/NAME/best.pt --split dev --decode beam --beam-size 8 --trn out/

The checkpoint carries the model, its tokenizer and its frontend, so nothing about the model is
asked for here. An utterance's hypothesis does not depend on the utterances it is batched with.
"""

import data.start  # noqa: F401  # isort: skip  # Ctrl-C during the imports below

import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from data.audio import SAMPLE_RATE, measure, read_audio
from data.checks import check_lengths, check_references
from data.corpus import Corpus, Split
from data.files import JsonObject, to_json, write_file, write_json
from data.formats import FORMATS
from data.front_ends import front_end_of
from data.inputs import (
    DataOptions,
    batch_sampler,
    check_inputs,
    load_inputs,
    model_input,
    resolve_data,
)
from data.intervals import MIN_UNITS, UNITS, Estimate, estimate
from data.log_mel import FULL_CONTEXT_SECONDS
from data.metrics import (
    METRICS,
    ErrorRate,
    Metric,
    error_rate,
    metrics_of,
    operations,
    worst_utterances,
    write_trn,
)
from data.options import command, option, parse_options, run_program
from data.phones import merge_silence
from data.recordings import as_waveform, cut_at_silence, find_recordings
from data.targets import labels_of
from data.utterance import PHONES, Utterance, Wanted
from models import FAMILIES, build_task
from models.checkpoint import Checkpoint, load_checkpoint
from models.device import World, resolve_device, resolve_precision, use_device
from models.search import GREEDY, Search
from models.tokenizers import Tokenizer
from models.training.tasks import PRECISIONS, Task
from models.transcription import Span, Timed, timed_words
from pruning.analysis import describe_tensors, size_in_bytes
from pruning.mask_file import weights_hash
from pruning.masks import measured_sparsity
from pruning.scope import select_parameters

LEAST_PIECE_SECONDS = 0.5
LONGEST_PIECE_SECONDS = 15.0  # for models that take any length; few corpora have longer utterances
SHORTEST_SHARE = 0.2  # of the longest piece, where pieces are to be single utterances
SHORTEST_PIECE_SAMPLES = 1600  # silence is added to what is shorter: no model has a frame for it
NOT_FOR_AUDIO = ("data", "corpus", "resample", "split", "merge_sil", "trn")


@dataclass(frozen=True, kw_only=True)
class EvalOptions(Search):
    """What is scored."""

    ckpt: str = option("checkpoint: best.pt or last.pt of a run, or converted weights")
    data: str | None = option(
        "corpus, or demo; without it that of the checkpoint's run, then $TIMIT_ROOT, then "
        "data/TIMIT",
        None,
    )
    corpus: str = option("format of --data; auto recognises it", "auto", ("auto", *FORMATS))
    resample: bool = option("take recordings of any sample rate, resampled to 16 kHz", False)
    split: str = option(
        "which utterances: train, dev, test, full-test (all of TIMIT's TEST), or a part that the "
        "corpus has, as test-clean",
        "test",
    )
    batch_seconds: float | None = option(
        "seconds of audio in a batch, padding included; without it "
        + ", ".join(f"{family.decode_seconds:g} for {name}" for name, family in FAMILIES.items()),
        None,
        positive=True,
    )
    precision: str | None = option(
        "inside the model; without it bf16 on CUDA and fp32 on the CPU, where bf16 takes "
        "longer without AMX (amx_bf16 in lscpu)",
        None,
        tuple(PRECISIONS),
    )
    device: str = option("auto, cpu, cuda or cuda:N", "auto")
    fast: bool = option("take the fast paths; --no-fast the plain ones, with the same result", True)
    merge_sil: bool = option("collapse runs of sil in references and hypotheses", False)
    audio: tuple[str, ...] = option(
        "instead of scoring, print what is said in these recordings, of any sample rate, and in "
        "those in these folders: a line for each, its path, a tab and the text",
        (),
    )
    piece_seconds: float | None = option(
        "with --audio: longest piece that is decoded at once; longer recordings are cut where they "
        "are quietest. Without it what the model's context holds, and "
        f"{LONGEST_PIECE_SECONDS:g} where that has no end; best is what training utterances last",
        None,
        positive=True,
    )
    json: str | None = option("file to write the results to, with --audio the times too", None)
    trn: str | None = option("folder to write ref.trn and hyp.trn to", None)


@dataclass(frozen=True)
class Decoding:
    """How utterances are decoded and compared.

    Attributes:
        search: How hypotheses are searched for.
        batch_seconds: Audio in a batch, padding included; it changes no result. None leaves it to
            the model.
        merge_sil: Collapse runs of sil in references and hypotheses.
        world: The processes that share the utterances.
    """

    search: Search = GREEDY
    batch_seconds: float | None = None
    merge_sil: bool = False
    world: World = World()


@dataclass(frozen=True)
class Scores:
    """Error rates of one model on one split.

    Attributes:
        rates: By their names in METRICS, the one that decides which checkpoint is best first.
        intervals: Interval of each rate.
        split: What was scored; its utterances are in the order of the token lists.
        references: Tokens of the rate that decides.
        hypotheses: Tokens of the rate that decides.
        decoding: How the hypotheses were obtained.
        wall_seconds: Time that reading and decoding took.
    """

    rates: dict[str, ErrorRate]
    intervals: dict[str, Estimate]
    split: Split
    references: list[list[str]]
    hypotheses: list[list[str]]
    decoding: Decoding
    wall_seconds: float

    @property
    def metric(self) -> str:
        """Name of the rate that decides which checkpoint is best."""
        return next(iter(self.rates))

    @property
    def rate(self) -> float:
        """The rate that decides which checkpoint is best."""
        return self.rates[self.metric].rate


def read_inputs(
    task: Task,
    checkpoint: Checkpoint,
    utterances: Sequence[Utterance],
    options: DataOptions,
    out: Path,
) -> Sequence[Tensor]:
    """Return the model's inputs, those of a frozen feature encoder its features.

    Args:
        task: Knows what can be computed once.
        checkpoint: For its frontend and config.
        utterances: What to read.
        options: Whether to compute once, and where a cache is.
        out: The run folder; what no memory holds is kept in it.
    """
    frontend = checkpoint.frontend
    about: JsonObject = {"frontend": frontend}
    weights = task.prepares_with() if options.precompute else {}
    if weights:
        about |= {"config": asdict(checkpoint.config), "precision": task.precision}
        about |= {"weights": weights_hash(weights)}

    def compute(some: Sequence[Utterance]) -> Sequence[Tensor]:
        sources = [model_input(utterance, frontend) for utterance in some]
        return task.prepare(sources) if weights else sources

    device = next(checkpoint.model.parameters()).device
    cache = Path(options.cache) if options.cache else None
    return load_inputs(utterances, compute, about, device, out / "inputs", cache)


def transcribe(
    task: Task,
    checkpoint: Checkpoint,
    utterances: Sequence[Utterance],
    decoding: Decoding,
    inputs: Sequence[Tensor] | None = None,
) -> list[str]:
    """Decode utterances, in batches of similar length; return one text each, in their order."""
    tokenizer, frontend = checkpoint.tokenizer, checkpoint.frontend
    assert tokenizer is not None
    mine = decoding.world.share(range(len(utterances)))
    ordered = sorted(mine, key=lambda i: utterances[i].seconds)  # texts of a batch end together
    batch_seconds = decoding.batch_seconds or FAMILIES[checkpoint.model.family].decode_seconds
    texts: dict[int, str] = {}
    was_training = task.model.training
    task.model.eval()
    batches: list[list[int]] = []
    if mine:
        sampled = [utterances[i] for i in ordered]
        batches = batch_sampler(sampled, frontend, batch_seconds, shuffle=False).epoch_batches(0)
    for positions in tqdm(batches, "decode", disable=None, leave=False):
        batch = [ordered[position] for position in positions]
        read = [inputs[i] if inputs else model_input(utterances[i], frontend) for i in batch]
        for i, ids in zip(batch, task.search(read, decoding.search), strict=True):
            texts[i] = tokenizer.decode(ids)
    task.model.train(was_training)
    return decoding.world.gather([texts[i] for i in mine])


def score(
    task: Task,
    checkpoint: Checkpoint,
    split: Split,
    decoding: Decoding,
    inputs: Sequence[Tensor] | None = None,
) -> Scores:
    """Decode the utterances of ``split`` and hold them against their references.

    Args:
        task: Loss and decoding of the checkpoint's model.
        checkpoint: For its tokenizer and frontend.
        split: What to decode.
        decoding: How.
        inputs: Prepared inputs of the utterances; without them the recordings are read.
    """
    utterances = split.utterances
    started = time.perf_counter()
    texts = transcribe(task, checkpoint, utterances, decoding, inputs)
    wall_seconds = time.perf_counter() - started
    assert checkpoint.tokenizer is not None
    label = labels_of(checkpoint.tokenizer.kind)

    tokens = {
        name: (
            _tokens(metric, [utterance.label(label) for utterance in utterances], decoding),
            _tokens(metric, texts, decoding),
        )
        for name, metric in metrics_of(label).items()
    }
    rates = {name: error_rate(*sides) for name, sides in tokens.items()}

    utt_ids = [utterance.utt_id for utterance in utterances]
    speakers = [utterance.speaker for utterance in utterances]
    intervals = {
        name: estimate(rate.utterance_edits, rate.utterance_tokens, utt_ids, speakers)
        for name, rate in rates.items()
    }
    references, hypotheses = next(iter(tokens.values()))
    return Scores(rates, intervals, split, references, hypotheses, decoding, wall_seconds)


def _tokens(metric: Metric, texts: Sequence[str], decoding: Decoding) -> list[list[str]]:
    """Cut references, or hypotheses, into the tokens that are compared."""
    tokens = [metric.tokens(text) for text in texts]
    if decoding.merge_sil and metric.label == PHONES:
        return [merge_silence(phones) for phones in tokens]
    return tokens


def sparsity_report(checkpoint: Checkpoint) -> dict[str, float]:
    """Count the zeros of a model: sparsity asked for, in scope, and of the whole model."""
    parameters = dict(checkpoint.model.named_parameters())
    pattern = checkpoint.run.scope_pattern
    scope = select_parameters(parameters, pattern) if pattern else parameters
    return {
        "target": checkpoint.run.sparsity or 0.0,
        "in_scope": measured_sparsity(scope),
        "whole_model": measured_sparsity(parameters),
    }


def protocol_line(scores: Scores, checkpoint: Checkpoint) -> str:
    """Say in one line under what rules the rates were obtained."""
    tokenizer, decoding = checkpoint.tokenizer, scores.decoding
    assert tokenizer is not None

    units = METRICS[scores.metric].units
    if METRICS[scores.metric].label == PHONES:
        units += ", runs of sil merged" if decoding.merge_sil else ", every sil kept"
    context = front_end_of(checkpoint.frontend).padding
    if "max_tokens" in checkpoint.decoding:
        context += f", at most {checkpoint.decoding['max_tokens']} tokens"

    utterances = scores.split.utterances
    if rates := sorted({utterance.sample_rate for utterance in utterances} - {SAMPLE_RATE}):
        context += f"; resampled to 16 kHz from {', '.join(map(str, rates))} Hz"
    names = {utterance.speaker for utterance in utterances}
    speakers = "unknown speakers" if "" in names else f"{len(names)} speaker{'s'[: len(names) > 1]}"
    return (
        f"{scores.metric.upper()} on {scores.split.described}: {len(utterances)} utterances, "
        f"{speakers}, {scores.rates[scores.metric].reference_tokens} reference tokens; "
        f"{units}; {tokenizer.kind} targets; {decoding.search.describe()}, no language model; "
        f"{context}; {_interval_rule(scores, '' not in names)}"
    )


def _interval_rule(scores: Scores, speakers_known: bool) -> str:
    """Say what the interval was drawn from, and why where that is not speakers."""
    unit = scores.intervals[scores.metric].unit
    if unit is None:
        return f"no interval, which takes {MIN_UNITS} utterances"
    few = f", for speakers are under {MIN_UNITS}" if unit != "speaker" and speakers_known else ""
    return f"95 % interval by bootstrap over {UNITS[unit]}{few}"


def results(scores: Scores, checkpoint: Checkpoint) -> JsonObject:
    """Return what results.json holds about ``scores``."""
    run, utterances = checkpoint.run, scores.split.utterances
    audio_seconds = sum(utterance.seconds for utterance in utterances)
    report: JsonObject = {key: getattr(run, key) for key in ("model", "method", "target")}
    report |= {"split": scores.split.name}
    report |= {key: getattr(run, key) for key in ("seed", "steps", "init")}
    report["sparsity"] = sparsity_report(checkpoint)

    for name, rate in scores.rates.items():
        report[name] = {
            "rate": rate.rate,
            "substitutions": rate.substitutions,
            "deletions": rate.deletions,
            "insertions": rate.insertions,
            "reference_tokens": rate.reference_tokens,
            "ci95": list(scores.intervals[name].interval or ()) or None,
            "ci_unit": scores.intervals[name].unit,
        }

    return report | {
        "utterances": len(utterances),
        "audio_seconds": audio_seconds,
        "decode": scores.decoding.search.describe(),
        "protocol": protocol_line(scores, checkpoint),
        "wall_seconds": scores.wall_seconds,
        "real_time_factor": scores.wall_seconds / audio_seconds,
    }


def summary(report: JsonObject) -> str:
    """Return the rates and sparsity of a result in one line."""
    rates = []
    for name in METRICS:
        if rate := report.get(name):
            bounds = rate["ci95"]
            interval = f"[{bounds[0]:.4f}, {bounds[1]:.4f}]" if bounds else "(no interval)"
            rates.append(
                f"{name.upper()} {rate['rate']:.4f} {interval} "
                f"(S {rate['substitutions']} D {rate['deletions']} I {rate['insertions']})"
            )
    sparsity = report["sparsity"]
    return (
        f"{report['split']}: {', '.join(rates)}; sparsity {sparsity['target']:g} asked, "
        f"{sparsity['in_scope']:.6f} in scope, {sparsity['whole_model']:.4f} of the model"
    )


def evaluate(options: EvalOptions) -> JsonObject:
    """Score a checkpoint as ``options`` say; write what they ask for; return the results."""
    device = resolve_device(options.device)
    use_device(device)
    checkpoint = load_checkpoint(options.ckpt, device=device)
    _tokenizer_of(checkpoint)
    precision = resolve_precision(options.precision, device)
    task = build_task(checkpoint.model, checkpoint.decoding, precision, options.fast)
    search = Search.of(options)
    search.check(task.search_options, checkpoint.model.family)

    corpus = find_corpus(options, checkpoint)
    split = corpus.read(options.split)
    check_inputs(split.utterances, checkpoint.frontend)
    check_lengths(split.utterances, task.min_samples)
    check_references([split], labels_of(_tokenizer_of(checkpoint).kind))

    decoding = Decoding(search, options.batch_seconds, options.merge_sil)
    scores = score(task, checkpoint, split, decoding)
    report = results(scores, checkpoint)
    if options.trn:
        utt_ids = [utterance.utt_id for utterance in split.utterances]
        for name, side in (("ref", scores.references), ("hyp", scores.hypotheses)):
            write_trn(Path(options.trn) / f"{name}.trn", list(zip(utt_ids, side, strict=True)))
    if options.json:
        write_json(Path(options.json), report)
    report_scores(report, scores)  # last: nobody may be reading what is printed
    return report


def _tokenizer_of(checkpoint: Checkpoint) -> Tokenizer:
    if checkpoint.tokenizer is None:
        raise ValueError(
            "the checkpoint has no tokenizer, so its head has no meaning yet: fine-tune it with "
            "train.py --init"
        )
    return checkpoint.tokenizer


@dataclass(frozen=True)
class Transcript:
    """What is said in a recording.

    Attributes:
        text: In one line.
        seconds: Length of the recording.
        pieces: What was decoded at once: the parts that a long recording was cut into.
        words: Words, or phones of a phone model, with times; () where the model tells none, as
            sequence-to-sequence models.
    """

    text: str
    seconds: float
    pieces: tuple[Timed, ...]
    words: tuple[Timed, ...]


class Transcriber:
    """Says what is said in waveforms.

    Args:
        checkpoint: Any with a tokenizer.
        search: How hypotheses are searched for.
        batch_seconds: Audio decoded at once, padding included; None leaves it to the model.
        piece_seconds: Longest piece of a recording; None is what the model's context holds, and
            ``LONGEST_PIECE_SECONDS`` where that has no end.
        precision: "fp32", "bf16" or "fp16".
        fast: Whether to take the fast paths.

    Raises:
        ValueError: If the checkpoint has no tokenizer, or the pieces are longer than the context.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        search: Search = GREEDY,
        batch_seconds: float | None = None,
        piece_seconds: float | None = None,
        precision: str = "fp32",
        fast: bool = True,
    ) -> None:
        self.checkpoint = checkpoint
        self.tokenizer = _tokenizer_of(checkpoint)
        self.task = build_task(checkpoint.model.eval(), checkpoint.decoding, precision, fast)
        self.search = search
        family = FAMILIES[checkpoint.model.family]
        self.batch_seconds = batch_seconds or family.decode_seconds
        self._front_end = front_end_of(checkpoint.frontend)
        context = self._front_end.longest_seconds
        if piece_seconds and piece_seconds < LEAST_PIECE_SECONDS:
            raise ValueError(
                f"--piece-seconds {piece_seconds:g} holds no word: give {LEAST_PIECE_SECONDS:g} or "
                "more"
            )
        if piece_seconds and piece_seconds > context:
            raise ValueError(
                f"--piece-seconds {piece_seconds:g} is longer than the model's audio context of "
                f"{context:g} s: give less, or leave it out"
            )
        longest = piece_seconds or (LONGEST_PIECE_SECONDS if math.isinf(context) else context)
        self._longest = int(longest * SAMPLE_RATE)
        # A model of 30 s hears the better the more it hears; one that learned from single
        # utterances may stop after the first.
        share = 0.5 if context == FULL_CONTEXT_SECONDS else SHORTEST_SHARE
        self._shortest = int(share * self._longest)

    def transcribe(self, samples: object, sample_rate: int = SAMPLE_RATE) -> Transcript:
        """Transcribe one recording of any length.

        Args:
            samples: One channel, see :func:`data.recordings.as_waveform`.
            sample_rate: In Hz; others than 16,000 are resampled.

        Raises:
            ValueError: If the samples cannot be used.
        """
        return self.transcribe_all([as_waveform(samples, sample_rate)])[0]

    def transcribe_all(self, waveforms: Sequence[Tensor], times: bool = True) -> list[Transcript]:
        """Transcribe waveforms (S,) as ``as_waveform`` gives them; one result each.

        Args:
            waveforms: Of any length.
            times: Whether to find those of words, which takes a second pass through the model.
        """
        cuts = [cut_at_silence(waveform, self._longest, self._shortest) for waveform in waveforms]
        pieces = [(i, start, stop) for i, spans in enumerate(cuts) for start, stop in spans]
        found = self._decode([waveforms[i][start:stop] for i, start, stop in pieces], times)
        parts: list[list[Timed]] = [[] for _ in waveforms]
        words: list[list[Timed]] = [[] for _ in waveforms]
        for (i, start, stop), (ids, spans) in zip(pieces, found, strict=True):
            begin, end = start / SAMPLE_RATE, stop / SAMPLE_RATE
            parts[i].append(Timed(begin, end, " ".join(self.tokenizer.decode(ids).split())))
            if spans is not None:
                words[i] += timed_words(self.tokenizer, ids, spans, begin)
        return [
            Transcript(
                " ".join(part.text for part in parts[i] if part.text),
                len(waveform) / SAMPLE_RATE,
                tuple(parts[i]),
                tuple(words[i]),
            )
            for i, waveform in enumerate(waveforms)
        ]

    def _decode(
        self, pieces: Sequence[Tensor], times: bool
    ) -> list[tuple[list[int], list[Span] | None]]:
        """Return ids and their spans of each piece."""
        described = [
            Utterance(utt_id=str(i), path=Path(), num_samples=len(piece))
            for i, piece in enumerate(pieces)
        ]
        sampler = batch_sampler(
            described, self.checkpoint.frontend, self.batch_seconds, shuffle=False
        )
        found: dict[int, tuple[list[int], list[Span] | None]] = {}
        for batch in tqdm(sampler.epoch_batches(0), "decode", disable=None, leave=False):
            short = [max(0, SHORTEST_PIECE_SAMPLES - len(pieces[i])) for i in batch]
            inputs = [
                self._front_end.of(F.pad(pieces[i], (0, missing)))
                for i, missing in zip(batch, short, strict=True)
            ]
            ids = self.task.search(inputs, self.search)
            spans = self.task.spans(inputs, ids) if times else None
            for place, i in enumerate(batch):
                found[i] = ids[place], spans[place] if spans is not None else None
        return [found[i] for i in range(len(pieces))]


def transcribe_recordings(options: EvalOptions) -> None:
    """Print what is said in the recordings that ``options`` name; write times where asked for."""
    defaults = {each.name: each.default for each in fields(EvalOptions)}
    for name in NOT_FOR_AUDIO:
        if getattr(options, name) != defaults[name]:
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"{flag} is for scoring, and --audio not: leave one of them out")
    paths = find_recordings(options.audio)
    # Before any is decoded.
    lengths = [measure(path, resample=True, mix=True).num_samples for path in paths]
    device = resolve_device(options.device)
    use_device(device)
    checkpoint = load_checkpoint(options.ckpt, device=device)
    search, precision = Search.of(options), resolve_precision(options.precision, device)
    sizes = (options.batch_seconds, options.piece_seconds)
    transcriber = Transcriber(checkpoint, search, *sizes, precision, options.fast)
    search.check(transcriber.task.search_options, checkpoint.model.family)

    unit = "phones" if transcriber.tokenizer.kind == "phone" else "words"
    described: list[JsonObject] = []
    for group in _groups(lengths, transcriber.batch_seconds):
        waveforms = [read_audio(paths[i], resample=True, mix=True) for i in group]
        transcripts = transcriber.transcribe_all(waveforms, times=options.json is not None)
        for i, transcript in zip(group, transcripts, strict=True):
            if not options.json:
                print(f"{paths[i]}\t{transcript.text}", flush=True)
            about = asdict(transcript)
            timed = {unit: words} if (words := about.pop("words")) else {}
            described.append({"path": str(paths[i]), **about, **timed})
    if options.json:
        about = {"model": checkpoint.run.model, "decode": search.describe()}
        write_json(Path(options.json), about | {"recordings": described})
        for recording in described:  # after the file: nobody may be reading what is printed
            print(f"{recording['path']}\t{recording['text']}")


def _groups(lengths: Sequence[int], seconds: float) -> Iterator[list[int]]:
    """Yield recordings, in their order, that are read together: a batch's audio, or one."""
    group: list[int] = []
    for i, length in enumerate(lengths):
        if group and sum(lengths[j] for j in group) + length > seconds * SAMPLE_RATE:
            yield group
            group = []
        group.append(i)
    yield group


def find_corpus(options: EvalOptions, checkpoint: Checkpoint) -> Corpus:
    """Return the corpus to score on: as given, or as the checkpoint's run had it."""
    assert checkpoint.tokenizer is not None
    data, name, resample = options.data, options.corpus, options.resample
    if data is None and (data := checkpoint.run.data):
        name = checkpoint.run.corpus or name
        resample = resample or bool(checkpoint.run.resample)
    wanted = Wanted(labels={labels_of(checkpoint.tokenizer.kind)}, resample=resample)
    return Corpus(resolve_data(data), name, wanted)


def describe_weights(checkpoint: Checkpoint, initial: Checkpoint) -> JsonObject:
    """Return zeros and shift of every tensor in scope, and the model's size on disk."""
    pattern = checkpoint.run.scope_pattern
    assert pattern is not None, "every run has a scope"
    params, before = (
        select_parameters(dict(each.model.named_parameters()), pattern)
        for each in (checkpoint, initial)
    )
    weights = dict(checkpoint.model.state_dict())
    return {
        "tensors": describe_tensors(params, before),
        "bytes": size_in_bytes(weights, checkpoint.masks),
    }


def write_alignments(path: Path, scores: Scores) -> None:
    """Write a JSON line for each utterance: speaker, both token lists and how they align."""
    lines = [
        {
            "utt_id": utterance.utt_id,
            "speaker": utterance.speaker or utterance.utt_id,  # what the report draws
            "reference": reference,
            "hypothesis": hypothesis,
            "operations": operations(reference, hypothesis),
        }
        for utterance, reference, hypothesis in zip(
            scores.split.utterances, scores.references, scores.hypotheses, strict=True
        )
    ]
    write_file(path, "".join(to_json(line) + "\n" for line in lines).encode())


def report_scores(report: JsonObject, scores: Scores, worst: int = 5) -> None:
    """Print the protocol, the rates and the worst utterances."""
    print(report["protocol"])
    print(summary(report))
    utt_ids = [utterance.utt_id for utterance in scores.split.utterances]
    rate = scores.rates[scores.metric]
    for utt_id, edits, tokens in worst_utterances(rate, utt_ids, worst):
        i = utt_ids.index(utt_id)
        print(f"  worst {utt_id}: {edits} errors in {tokens} tokens")
        print(f"    ref {' '.join(scores.references[i])}")
        print(f"    hyp {' '.join(scores.hypotheses[i])}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    name, description = command("eval"), (__doc__ or "").split("\n")[0]

    def work() -> None:
        options = parse_options(EvalOptions, argv, description, name)
        if options.audio:
            transcribe_recordings(options)
        elif options.piece_seconds:
            raise ValueError("--piece-seconds is for recordings: give --audio, or leave it out")
        else:
            evaluate(options)

    return run_program(name, work)


if __name__ == "__main__":
    sys.exit(main())
