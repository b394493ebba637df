"""Items about wav2vec2: a train step against the peers', and what PARP adds to it."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from benchmarks.common import Contender, Report, Settings, alternate, in_batches, leave_out
from benchmarks.training import (
    TOKENS_PER_SECOND,
    autocast,
    begin_training,
    hf_twin,
    loss_tolerance,
    our_optimizer,
    our_step,
    peer_step,
    random_targets,
    random_waveforms,
    timit_like_seconds,
    torchaudio_twin,
)
from models import build_model
from models.training.tasks import CTCTask
from models.wav2vec2 import PRUNE_SCOPES, Wav2Vec2
from pruning.masks import measured_sparsity
from pruning.schedules import AdjustOptions, build_schedule
from pruning.scope import select_parameters

BLANK, VOCAB_SIZE = 0, 40  # 39 phones and the blank
SPARSITY = 0.6
Targets = list[list[int]]


@dataclass(frozen=True)
class Peer:
    """Another library's model with our weights.

    Attributes:
        name: Of the library.
        model: The model.
        loss: Maps waveforms, targets and a precision to the CTC loss summed over the batch.
    """

    name: str
    model: Any
    loss: Callable[[Sequence[Tensor], Targets, str], Tensor]


def build(settings: Settings, preset: str) -> Wav2Vec2:
    """Build the model on its device, in train mode, with the conv encoder frozen.

    No layer is ever dropped, for then the steps would differ in their work.
    """
    model = build_model(preset, vocab_size=VOCAB_SIZE, layer_drop=0.0)
    assert isinstance(model, Wav2Vec2)
    model.feature_encoder.requires_grad_(False)
    return model.to(settings.device).train()


def make_batch(seconds: Sequence[float], device: torch.device) -> tuple[list[Tensor], Targets]:
    """Draw waveforms on the device, where train.py keeps them, and phone-like targets."""
    counts = [max(1, round(TOKENS_PER_SECOND * s)) for s in seconds]
    return random_waveforms(seconds, device), random_targets(counts, BLANK + 1, VOCAB_SIZE)


def step_item(settings: Settings, utterances: int, batches: int = 1) -> list[Report]:
    """Time train steps of ours, as train.py takes them and without its short cuts, and the peers'.

    Ours computes the features of the frozen conv encoder once, before; from waveforms it does so in
    the step as the peers do; plain it also computes with padding and replays no graphs. The peers
    take their batches as they come, ours are of similar length.

    Args:
        settings: Device, precision, repetitions.
        utterances: In a batch.
        batches: Steps in a repetition.
    """
    utterances = 1 if settings.smoke and batches > 1 else utterances
    seconds = [1.2, 0.8] if settings.smoke else timit_like_seconds(utterances * batches)
    inputs, targets = make_batch(seconds, settings.device)
    model = build(settings, "w2v2-demo" if settings.smoke else "w2v2")
    task = CTCTask(model, BLANK, settings.precision)
    peers = build_peers(settings, model)
    report = Report(
        f"train steps of {utterances} utterances, {sum(seconds):.1f} s of audio, conv encoder "
        f"frozen, {settings.precision}"
    )
    for name in ("transformers", "torchaudio"):
        if name not in [peer.name for peer in peers]:
            leave_out(report, name)
    features = [task.prepare([waveform])[0] for waveform in inputs]
    check_losses(report, settings, model, peers, (inputs, targets), features)
    as_they_come = list(in_batches(range(len(seconds)), utterances))
    ranking = sorted(range(len(seconds)), key=seconds.__getitem__)
    by_length = list(in_batches(ranking, utterances))
    plain = CTCTask(copy.deepcopy(model), BLANK, settings.precision, fast=False)

    # One model has one place for its gradients, so both ways share an optimizer.
    fast_optimizer = begin_training(task, features, targets, by_length)
    plain_optimizer = our_optimizer(plain.model)

    def ours(name: str, task: CTCTask, given: Sequence[Tensor]) -> Contender:
        optimizer = plain_optimizer if task is plain else fast_optimizer

        def run() -> None:
            for batch in by_length:
                our_step(task, optimizer, [given[i] for i in batch], [targets[i] for i in batch])

        return Contender(name, run)

    contenders = [
        ours("ours", task, features),
        ours("ours, waveforms", task, inputs),
        ours("ours, plain", plain, inputs),
    ]
    contenders += [peer_contender(settings, peer, inputs, targets, as_they_come) for peer in peers]
    report.rows = alternate(contenders, settings.repeats or 10, settings.warmup, settings.device)
    for row in report.rows:
        row.figures = {"audio-s/s": sum(seconds) / row.median} | row.figures
    return [report]


def build_peers(settings: Settings, model: Wav2Vec2) -> list[Peer]:
    """Return the peers that are installed, their conv encoders frozen."""
    peers = []
    twin = hf_twin(model, settings.device, decoding={"blank_id": BLANK})
    if twin is not None:
        twin.freeze_feature_encoder()
        peers.append(Peer("transformers", twin, _hf_loss(settings, twin)))
    audio_twin = torchaudio_twin(model, settings.device)
    if audio_twin is not None:
        audio_twin.feature_extractor.requires_grad_(False)
        peers.append(Peer("torchaudio", audio_twin, _torchaudio_loss(settings, audio_twin)))
    return peers


def check_losses(
    report: Report,
    settings: Settings,
    model: Wav2Vec2,
    peers: Sequence[Peer],
    batch: tuple[Sequence[Tensor], Targets],
    features: Sequence[Tensor],
) -> None:
    """Check in eval mode and float32 that all have the same loss.

    The peers get each utterance on its own: their group norm sees the padding of a batch, ours not.
    """
    inputs, targets = batch
    tolerance = loss_tolerance(settings)
    task = CTCTask(model, BLANK, "fp32")
    model.eval()
    with torch.no_grad():
        expected = float(task.loss(inputs, targets))
        cached = float(task.loss([rows.float() for rows in features], targets))
        bound = tolerance if settings.precision == "fp32" else 2e-2  # they are kept as computed
        report.check_close("loss of ours, of waveforms and features", expected, cached, bound)
        for peer in peers:
            peer.model.eval()
            pairs = zip(inputs, targets, strict=True)
            total = sum(float(peer.loss([one], [target], "fp32")) for one, target in pairs)
            report.check_close(f"loss of ours and {peer.name}", expected, total, tolerance)
            peer.model.train()
    model.train()


def peer_contender(
    settings: Settings,
    peer: Peer,
    inputs: Sequence[Tensor],
    targets: Targets,
    batches: Sequence[Sequence[int]],
) -> Contender:
    """Return train steps of a peer; it pads its batch within the step, as ours does."""
    take_step = peer_step(peer.model)

    def run() -> None:
        for batch in batches:
            wanted = [targets[i] for i in batch]
            loss = peer.loss([inputs[i] for i in batch], wanted, settings.precision)
            take_step(loss / sum(map(len, wanted)))

    return Contender(peer.name, run)


def _pad(inputs: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the waveforms padded with zeros (B, S) and their lengths (B,) on a device."""
    lengths = torch.tensor([len(waveform) for waveform in inputs], device=device)
    return pad_sequence(list(inputs), batch_first=True).to(device), lengths


def _hf_loss(settings: Settings, twin: Any) -> Callable[[Sequence[Tensor], Targets, str], Tensor]:
    def loss(inputs: Sequence[Tensor], targets: Targets, precision: str) -> Tensor:
        padded, lengths = _pad(inputs, settings.device)
        mask = (torch.arange(padded.shape[1], device=settings.device) < lengths[:, None]).long()
        rows = [torch.tensor(target) for target in targets]
        labels = pad_sequence(rows, batch_first=True, padding_value=-100).to(settings.device)
        with autocast(settings.device, precision):
            total: Tensor = twin(padded, attention_mask=mask, labels=labels).loss
        return total

    return loss


def _torchaudio_loss(
    settings: Settings, twin: Any
) -> Callable[[Sequence[Tensor], Targets, str], Tensor]:
    def loss(inputs: Sequence[Tensor], targets: Targets, precision: str) -> Tensor:
        padded, lengths = _pad(inputs, settings.device)
        with autocast(settings.device, precision):
            logits, num_frames = twin(padded, lengths)
        return F.ctc_loss(
            logits.float().log_softmax(-1).transpose(0, 1),
            torch.tensor([i for target in targets for i in target], device=settings.device),
            num_frames,
            torch.tensor([len(target) for target in targets], device=settings.device),
            blank=BLANK,
            reduction="sum",
            zero_infinity=True,
        )

    return loss


def parp_item(settings: Settings, utterances: int, prune_every: int = 50) -> list[Report]:
    """Time blocks of steps under PARP, one re-prune in each, against blocks of dense steps."""
    seconds = [0.8, 1.2] if settings.smoke else timit_like_seconds(utterances)
    waveforms, targets = make_batch(seconds, settings.device)
    interval = 3 if settings.smoke else prune_every
    dense = build(settings, "w2v2-demo" if settings.smoke else "w2v2")
    encode = CTCTask(dense, BLANK, settings.precision).prepare
    inputs = encode(waveforms)
    pruned = copy.deepcopy(dense)
    params = select_parameters(dict(pruned.named_parameters()), PRUNE_SCOPES["encoder"])
    options = AdjustOptions(sparsity=SPARSITY, prune_every=interval)
    schedule = build_schedule("parp", options)
    schedule.start(params, num_steps=1_000_000)
    steps_taken = 0

    def block(model: Wav2Vec2, after_step: Callable[[], Any]) -> Callable[[], None]:
        task = CTCTask(model, BLANK, settings.precision)
        optimizer = begin_training(task, inputs, targets, [range(len(inputs))])

        def run() -> None:
            for _ in range(interval):
                our_step(task, optimizer, inputs, targets)
                after_step()

        return run

    def after_step() -> None:
        nonlocal steps_taken
        steps_taken += 1
        schedule.after_step(params, steps_taken)

    contenders = [
        Contender("dense", block(dense, lambda: None)),
        Contender("parp", block(pruned, after_step)),
    ]
    rows = alternate(contenders, settings.repeats or 5, settings.warmup, settings.device)
    report = Report(
        f"{interval} train steps of {len(seconds)} utterances, PARP re-pruning once, "
        f"{settings.precision}",
        rows,
    )
    for row in rows:
        row.figures["ms/step"] = 1e3 * row.median / interval
    rows[1].figures["overhead %"] = 100 * (rows[1].median / rows[0].median - 1)
    total = sum(param.numel() for param in params.values())
    found = measured_sparsity(params) * total
    wanted = round(SPARSITY * total)
    report.check(f"{wanted} weights are zero after the last block: {found:.0f}", found == wanted)
    return [report]
