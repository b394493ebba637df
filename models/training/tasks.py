"""What training and scoring ask of a model, the same for CTC and sequence-to-sequence.

A task takes a list of inputs (waveforms or log-mels, one tensor an utterance) and returns the
summed loss or the decoded ids, so that train.py and eval.py need not know the architecture.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from models.ctc import align, beam_decode, greedy_decode
from models.device import send
from models.draw import Draw
from models.dropout import set_fast_dropout
from models.facts import DecodingFacts
from models.family import SpeechModel
from models.search import GREEDY, Search
from models.spec_augment import SpecAugment
from models.training.graphed_models import GraphedCTC, GraphedSeq2Seq
from models.training.shapes import Shape
from models.transcription import Span

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Padded:
    """Values at some places of each utterance, padded to the most.

    Attributes:
        values: (B, P, ...) floating; those after an utterance's last place are unspecified.
        lengths: (B,) integer, on the CPU: places of each utterance, at least 1.
    """

    values: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class Outputs:
    """What a model gives for a batch, as precise as it computes.

    Attributes:
        logits: Of every symbol, (B, P, V), at the places that the loss looks at: frames (CTC), or
            what predicts the target tokens and the end (sequence-to-sequence).
        states: What every layer leaves, (B, P, D) each, encoder first: at all frames and, in a
            decoder, at the places of the logits. None where they were not asked for.
    """

    logits: Padded
    states: Sequence[Padded] = ()


class Task(Protocol):
    """Loss and decoding of one model.

    ``inputs`` are float tensors, one an utterance; the task pads, moves and casts.
    """

    model: Any
    precision: str
    search_options: frozenset[str]
    """Names of the options of Search that have an effect here."""
    min_samples: int
    """Samples at 16 kHz of the shortest utterance that can be heard."""

    def prepare(self, sources: Sequence[Tensor]) -> Sequence[Tensor]:
        """Do once what is the same in every step: return inputs to use in place of ``sources``."""
        ...

    def prepares_with(self) -> dict[str, Tensor]:
        """Return the weights that `prepare` computes with, none where it does nothing."""
        ...

    def capture(
        self,
        inputs: Sequence[Tensor],
        targets: Sequence[Sequence[int]],
        batches: Iterable[Sequence[int]],
    ) -> None:
        """Capture training steps for every batch of a run, given by places in the others.

        Does nothing but on CUDA. Gradients, which every parameter in training has, are 0
        afterwards; a batch of another shape is computed plainly.

        Raises:
            ValueError: If there is too little memory, or CUDA refuses.
        """
        ...

    def loss(
        self,
        inputs: Sequence[Tensor],
        targets: Sequence[Sequence[int]],
        draw: Draw | None = None,
    ) -> Tensor:
        """Return the loss summed over all target tokens, a float32 scalar.

        ``draw`` says where the random numbers of what training hides come from, by default torch's
        global CPU generator; dropout has the device's own.
        """
        ...

    def outputs(
        self,
        inputs: Sequence[Tensor],
        targets: Sequence[Sequence[int]],
        draw: Draw | None = None,
        with_states: bool = False,
    ) -> Outputs:
        """Return what the model gives where it is to say ``targets``; arguments as for ``loss``."""
        ...

    def loss_of(self, outputs: Outputs, targets: Sequence[Sequence[int]]) -> Tensor:
        """Return the loss of what the model gave, as ``loss`` does."""
        ...

    def search(self, inputs: Sequence[Tensor], search: Search = GREEDY) -> list[list[int]]:
        """Return the ids of the best hypothesis of each utterance."""
        ...

    def spans(
        self, inputs: Sequence[Tensor], hypotheses: Sequence[Sequence[int]]
    ) -> list[list[Span]] | None:
        """Return start and end of each id in seconds; None where the model does not tell."""
        ...

    def why_unusable(self, num_samples: int, target: Sequence[int]) -> str | None:
        """Return why an utterance can't be trained on, or None."""
        ...


class _PrecisionMixin:
    model: Any
    precision: str
    min_samples = 1

    def _autocast(self) -> AbstractContextManager[None]:
        dtype = PRECISIONS[self.precision]
        return nullcontext() if dtype == torch.float32 else torch.autocast(self._device.type, dtype)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _send(self, batch: Tensor) -> Tensor:
        """Bring inputs to the model; one in float64 takes them in float64."""
        sent = send(batch, self._device)
        is_double = next(self.model.parameters()).dtype == torch.float64
        return sent.double() if is_double else sent

    def prepare(self, sources: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return ``sources``: nothing can be done beforehand."""
        return sources

    def prepares_with(self) -> dict[str, Tensor]:
        """Return {}: `prepare` computes nothing."""
        return {}


class CTCTask(_PrecisionMixin):
    """Connectionist temporal classification.

    Inputs are waveforms (S,), or features (T, C) from :meth:`prepare`.

    What a batch is padded with, and so the batch size, changes no score, in training too: the model
    is set to ``padding="packed"``, or "independent" on the plain path.

    Args:
        model: A family's CTC model: it has a ``feature_encoder``, the methods ``features``,
            ``num_frames``, ``logits``, ``logits_from_features`` and, for graphs,
            ``masked_logits``, and the properties ``frame_seconds`` and ``min_samples``, of
            ``models.wav2vec2.Wav2Vec2``. Its parameters stay in float32.
        blank_id: Id of the CTC blank.
        precision: "fp32", "bf16" or "fp16" inside the model; the loss is always float32.
        fast: Whether batches are packed, dropout is fast and, on CUDA, training steps on features
            replay what :meth:`capture` has captured.
    """

    search_options = frozenset(inspect.signature(beam_decode).parameters)

    def __init__(
        self, model: SpeechModel, blank_id: int, precision: str = "fp32", fast: bool = True
    ) -> None:
        set_fast_dropout(model, fast)
        self.model = model
        self.model.padding = "packed" if fast else "independent"
        self.min_samples = self.model.min_samples
        self.blank_id = blank_id
        self.precision = precision
        self._graphed = GraphedCTC(model) if fast and _has_graphs(model) else None

    def capture(
        self,
        inputs: Sequence[Tensor],
        targets: Sequence[Sequence[int]],
        batches: Iterable[Sequence[int]],
    ) -> None:
        """Capture steps for every batch where inputs are features: waveforms aren't captured."""
        if self._graphed is None or inputs[0].dim() != 2:
            return
        frames = [len(each) for each in inputs]
        self.model.train()
        with self._autocast():
            self._graphed.capture(Shape(len(b), max(frames[i] for i in b)) for b in batches)

    def loss(
        self,
        inputs: Sequence[Tensor],
        targets: Sequence[Sequence[int]],
        draw: Draw | None = None,
    ) -> Tensor:
        """Return the CTC loss summed over the batch; an utterance without an alignment adds 0."""
        return self.loss_of(self.outputs(inputs, targets, draw), targets)

    def outputs(
        self,
        inputs: Sequence[Tensor],
        targets: Sequence[Sequence[int]],
        draw: Draw | None = None,
        with_states: bool = False,
    ) -> Outputs:
        """Return logits at every frame; ``targets`` change nothing."""
        states: list[Tensor] | None = [] if with_states else None
        logits, num_frames = self._logits(inputs, draw, states)
        layers = (states or [])[1:]  # the first is what goes into the layers
        return Outputs(Padded(logits, num_frames), [Padded(x, num_frames) for x in layers])

    def loss_of(self, outputs: Outputs, targets: Sequence[Sequence[int]]) -> Tensor:
        """Return the CTC loss of logits, summed over the batch."""
        log_probs = at_least_float32(outputs.logits.values).log_softmax(-1)
        return F.ctc_loss(
            log_probs.transpose(0, 1),  # (B, T, V) -> (T, B, V)
            send(torch.tensor([i for target in targets for i in target]), self._device),
            outputs.logits.lengths,
            torch.tensor([len(target) for target in targets]),
            blank=self.blank_id,
            reduction="sum",
            zero_infinity=True,
        )

    @torch.inference_mode()
    def search(self, inputs: Sequence[Tensor], search: Search = GREEDY) -> list[list[int]]:
        """Return collapsed ids: the best path, or the best prefix of a beam search."""
        logits, num_frames = self._logits(inputs)
        log_probs = at_least_float32(logits).log_softmax(-1)
        if search.is_greedy:
            return greedy_decode(log_probs, num_frames, self.blank_id)
        return beam_decode(log_probs, num_frames, self.blank_id, **search.settings())

    @torch.inference_mode()
    def spans(
        self, inputs: Sequence[Tensor], hypotheses: Sequence[Sequence[int]]
    ) -> list[list[Span]]:
        """Return start and end of each id on the best path of its hypothesis."""
        logits, num_frames = self._logits(inputs)
        log_probs = at_least_float32(logits).log_softmax(-1).double().cpu().numpy()
        seconds = self.model.frame_seconds
        aligned = [
            align(frames[:length], ids, self.blank_id)
            for frames, length, ids in zip(log_probs, num_frames.tolist(), hypotheses, strict=True)
        ]
        return [[(seconds * start, seconds * end) for start, end in spans] for spans in aligned]

    def why_unusable(self, num_samples: int, target: Sequence[int]) -> str | None:
        """Return a reason where there are fewer frames than CTC needs for ``target``."""
        repeats = sum(a == b for a, b in zip(target, target[1:], strict=False))
        num_frames = max(0, self.model.num_frames(num_samples))
        if num_frames >= max(1, len(target) + repeats):
            return None
        return f"{num_frames} frames can't align {len(target)} tokens with {repeats} repeats"

    def prepares_with(self) -> dict[str, Tensor]:
        """Return the feature encoder's weights where all of it is frozen."""
        weights = dict(self.model.feature_encoder.named_parameters())
        return {} if any(weight.requires_grad for weight in weights.values()) else weights

    @torch.no_grad()
    def prepare(self, sources: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return features (T, C) on the model's device where the feature encoder is frozen."""
        if not self.prepares_with():
            return sources
        lengths = [len(source) for source in sources]
        num_samples = torch.tensor(lengths) if min(lengths) < max(lengths) else None
        with self._autocast():
            padded = self._send(pad_sequence(list(sources), batch_first=True))
            features: Tensor = self.model.features(padded, num_samples)
        return [
            row[: self.model.num_frames(n)].clone()
            for row, n in zip(features, lengths, strict=True)
        ]

    def _logits(
        self,
        inputs: Sequence[Tensor],
        draw: Draw | None = None,
        states: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        lengths = torch.tensor([len(item) for item in inputs])
        are_features = inputs[0].dim() == 2
        num_frames = lengths if are_features else self.model.num_frames(lengths)
        graphed = self._graphed if are_features and self.model.training else None
        with self._autocast():
            if graphed and states is None:  # a captured graph gives logits alone
                replayed = graphed(inputs, draw)
                if replayed is not None:
                    return replayed, num_frames
            padded = self._send(pad_sequence(list(inputs), batch_first=True))
            score = self.model.logits_from_features if are_features else self.model.logits
            return score(padded, lengths, draw, states), num_frames


class Seq2SeqTask(_PrecisionMixin):
    """Next-token prediction on log-mels of one common context.

    Args:
        model: A family's sequence-to-sequence model: its ``logits`` takes log-mels (B, M, F) and
            ids (B, L) and returns (B, L, V). Its parameters stay in float32.
        generate: Takes log-mels (B, M, F) and the settings of a search by name; returns the new ids
            of each utterance, without start ids and end.
        search_options: Names of the settings that it takes.
        decoding: ``start_ids``, ``eos_id`` and ``max_tokens`` (of the whole sequence, start ids
            included).
        precision: "fp32", "bf16" or "fp16" inside the model; the loss is always float32.
        fast: Whether dropout is fast and, on CUDA, training replays what :meth:`capture` has
            captured.
        spec_augment: What is hidden of each log-mel in training; None hides nothing.
        label_smoothing: Share of each target token that training spreads evenly over all tokens
            (Szegedy et al. 2015, arXiv:1512.00567, section 7).
    """

    def __init__(
        self,
        model: SpeechModel,
        generate: Callable[[Tensor, Mapping[str, Any]], list[list[int]]],
        search_options: frozenset[str],
        decoding: DecodingFacts,
        precision: str = "fp32",
        fast: bool = True,
        spec_augment: SpecAugment | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        set_fast_dropout(model, fast)
        self.model = model
        self.spec_augment = spec_augment
        self.label_smoothing = label_smoothing
        self._generate = generate
        self.search_options = search_options
        self._start_ids = list(decoding["start_ids"])
        self._eos_id = decoding["eos_id"]
        self._max_tokens = decoding["max_tokens"]
        self.precision = precision
        self._graphed = GraphedSeq2Seq(model) if fast and _has_graphs(model) else None

    def capture(
        self,
        inputs: Sequence[Tensor],
        targets: Sequence[Sequence[int]],
        batches: Iterable[Sequence[int]],
    ) -> None:
        """Capture steps for every batch."""
        if self._graphed is None:
            return
        frames = [each.shape[1] for each in inputs]
        tokens = [len(self._start_ids) + len(target) for target in targets]
        self.model.train()
        with self._autocast():
            self._graphed.capture(
                Shape(len(b), max(tokens[i] for i in b), max(frames[i] for i in b)) for b in batches
            )

    def loss(
        self,
        inputs: Sequence[Tensor],
        targets: Sequence[Sequence[int]],
        draw: Draw | None = None,
    ) -> Tensor:
        """Return the cross-entropy summed over target tokens and the end of each sequence.

        In training it is that of smoothed labels and log-mels with something hidden.
        """
        return self.loss_of(self.outputs(inputs, targets, draw), targets)

    def outputs(
        self,
        inputs: Sequence[Tensor],
        targets: Sequence[Sequence[int]],
        draw: Draw | None = None,
        with_states: bool = False,
    ) -> Outputs:
        """Return logits of each target token and of the end, given the tokens before."""
        start = self._start_ids
        # Any id pads: no place looks at what comes later.
        decoder_ids = send(_pad([[*start, *target] for target in targets], 0), self._device)
        log_mel = self._send(torch.stack(list(inputs)))
        if self.model.training and self.spec_augment:
            log_mel = self.spec_augment(log_mel, draw)
        encoder_states: list[Tensor] = []
        decoder_states: list[Tensor] = []
        with self._autocast():
            if with_states:
                logits = self.model.logits(log_mel, decoder_ids, encoder_states, decoder_states)
            else:  # a captured graph gives logits alone
                graphed = self._graphed if self.model.training else None
                replayed = graphed(log_mel, decoder_ids) if graphed else None
                plain = self.model.logits
                logits = plain(log_mel, decoder_ids) if replayed is None else replayed

        places = slice(len(start) - 1, None)  # the last start id predicts the first token
        lengths = torch.tensor([len(target) + 1 for target in targets])
        states = [Padded(x, torch.full_like(lengths, x.shape[1])) for x in encoder_states]
        states += [Padded(x[:, places], lengths) for x in decoder_states]
        return Outputs(Padded(logits[:, places], lengths), states)

    def loss_of(self, outputs: Outputs, targets: Sequence[Sequence[int]]) -> Tensor:
        """Return the cross-entropy of logits, summed over target tokens and ends."""
        ignored = -100
        labels = _pad([[*target, self._eos_id] for target in targets], ignored)
        return F.cross_entropy(
            at_least_float32(outputs.logits.values).flatten(0, 1),
            send(labels, self._device).flatten(),
            ignore_index=ignored,
            reduction="sum",
            label_smoothing=self.label_smoothing if self.model.training else 0.0,
        )

    @torch.inference_mode()
    def search(self, inputs: Sequence[Tensor], search: Search = GREEDY) -> list[list[int]]:
        """Return new ids, without start ids and end."""
        log_mel = self._send(torch.stack(list(inputs)))
        with self._autocast():
            return self._generate(log_mel, search.settings())

    def spans(self, inputs: Sequence[Tensor], hypotheses: Sequence[Sequence[int]]) -> None:
        """Return None: a decoder's tokens have no place in time."""

    def why_unusable(self, num_samples: int, target: Sequence[int]) -> str | None:
        """Return a reason where the target is longer than the decoder's positions."""
        needed = len(self._start_ids) + len(target) + 1
        if needed <= self._max_tokens:
            return None
        return f"{needed} tokens exceed the decoder's {self._max_tokens}"


def at_least_float32(logits: Tensor) -> Tensor:
    """Return ``logits`` as float32, or as they are where they are more precise."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _pad(sequences: Sequence[Sequence[int]], padding: int) -> Tensor:
    """Return ids (B, L) on the CPU."""
    rows = [torch.tensor(sequence) for sequence in sequences]
    return pad_sequence(rows, batch_first=True, padding_value=padding)


def check_precision(precision: str, device: torch.device) -> None:
    """Check that a device computes in a precision.

    Raises:
        ValueError: If ``precision`` is unknown, or fp16 is asked for on the CPU.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is unknown: choose {', '.join(PRECISIONS)}")
    if precision == "fp16" and device.type == "cpu":
        raise ValueError("precision fp16 needs a CUDA device: use bf16 or fp32 on the CPU")


def _has_graphs(model: SpeechModel) -> bool:
    return next(model.parameters()).device.type == "cuda"
