"""What a model is given of an utterance: one class for each kind of front end.

A checkpoint holds a front end as a plain dictionary, its kind and the fields of its class.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from data.audio import SAMPLE_RATE, normalize_waveform, read_audio
from data.log_mel import (
    FULL_CONTEXT_SECONDS,
    OWN_CONTEXT,
    AudioContext,
    context_of,
    log_mel,
    longest_seconds,
)
from data.utterance import Utterance

_NAMED = 10  # utterances in a message


class FrontEnd(Protocol):
    """What reading, batching and scoring ask of a front end."""

    @property
    def same_length(self) -> bool:
        """Return whether a batch may hold utterances of one padded length only."""

    @property
    def padding(self) -> str:
        """Say in a few words what the model sees beside an utterance."""

    @property
    def longest_seconds(self) -> float:
        """Return the length of the longest audio that the model takes at once, else infinity."""

    def of(self, waveform: Tensor) -> Tensor:
        """Return the input of a waveform (S,) at 16 kHz that is not longer than that, float32."""

    def read(self, utterance: Utterance) -> Tensor:
        """Return an utterance's input, float32; raise ValueError as ``check``."""

    def padded_seconds(self, utterance: Utterance) -> float:
        """Return the seconds that an utterance fills in a batch before padding to its mates."""

    def check(self, utterances: Sequence[Utterance]) -> None:
        """Raise ValueError where an utterance can't be read."""


@dataclass(frozen=True)
class Waveform:
    """The waveform (S,), with zero mean and unit variance if ``normalize``."""

    normalize: bool
    same_length = False
    padding = "padding never seen by the model"
    longest_seconds = math.inf

    def of(self, waveform: Tensor) -> Tensor:
        """Return (S,)."""
        return normalize_waveform(waveform) if self.normalize else waveform

    def read(self, utterance: Utterance) -> Tensor:
        """Return (S,)."""
        return self.of(_read_waveform(utterance))

    def padded_seconds(self, utterance: Utterance) -> float:
        """Return the utterance's own length."""
        return utterance.seconds

    def check(self, utterances: Sequence[Utterance]) -> None:
        """Accept all."""


@dataclass(frozen=True)
class LogMel:
    """The log-mel (M, F) of audio that is padded to a context."""

    num_mels: int
    audio_ctx: AudioContext

    @property
    def same_length(self) -> bool:
        """Where each log-mel has its utterance's own length, a batch holds one length."""
        return self.audio_ctx == OWN_CONTEXT

    @property
    def padding(self) -> str:
        """Say what audio is padded to."""
        if self.audio_ctx == OWN_CONTEXT:
            return "audio padded to each utterance's own length, rounded up to a second"
        return f"audio padded to {longest_seconds(self.audio_ctx):g} s"

    @property
    def longest_seconds(self) -> float:
        """Return what the context holds."""
        return longest_seconds(self.audio_ctx)

    def of(self, waveform: Tensor) -> Tensor:
        """Return (M, F)."""
        seconds = context_of(len(waveform), self.audio_ctx)
        return log_mel(waveform, num_mels=self.num_mels, seconds=seconds)

    def read(self, utterance: Utterance) -> Tensor:
        """Return (M, F)."""
        waveform = _read_waveform(utterance)
        self.check([utterance])
        return self.of(waveform)

    def padded_seconds(self, utterance: Utterance) -> float:
        """Return the context of the utterance."""
        return context_of(utterance.num_samples, self.audio_ctx)

    def check(self, utterances: Sequence[Utterance]) -> None:
        """Raise ValueError where the context does not hold an utterance; name the longest."""
        check_context(utterances, self.audio_ctx)


KINDS: dict[str, type[Waveform] | type[LogMel]] = {"waveform": Waveform, "log_mel": LogMel}


def front_end_of(fields: Mapping[str, Any]) -> FrontEnd:
    """Return the front end that a checkpoint describes.

    Args:
        fields: ``kind``, and the fields of its class.

    Raises:
        ValueError: If the kind is unknown.
    """
    values = dict(fields)
    kind = values.pop("kind", None)
    if kind not in KINDS:
        raise ValueError(
            f"front end {kind!r} is unknown, known are {', '.join(KINDS)}: use the version of the "
            "code that wrote the checkpoint"
        )
    return KINDS[kind](**values)


def check_context(utterances: Sequence[Utterance], audio_ctx: AudioContext) -> None:
    """Check that a model's audio context holds all of some utterances.

    Raises:
        ValueError: If it does not; names the longest.
    """
    limit = longest_seconds(audio_ctx)
    too_long = [u for u in utterances if u.num_samples > round(limit * SAMPLE_RATE)]
    if not too_long:
        return
    too_long.sort(key=lambda utterance: -utterance.num_samples)
    longest, *others = too_long
    remedy = "take such recordings out of the corpus, or cut them"
    if longest.seconds <= FULL_CONTEXT_SECONDS:
        remedy = f"train with --audio-ctx own, or {math.ceil(longest.seconds)} seconds at least"
    also = ", ".join(f"{each.utt_id} ({each.seconds:.2f} s)" for each in others[:_NAMED])
    if others[_NAMED:]:
        also += f" and {len(others) - _NAMED} others"
    raise ValueError(
        f"{longest.utt_id} ({longest.path}) lasts {longest.seconds:.2f} s and is longer than the "
        f"model's audio context of {limit:g} s{', and so are ' + also if also else ''}: {remedy}"
    )


def _read_waveform(utterance: Utterance) -> Tensor:
    """Return (S,) at 16 kHz."""
    is_resampled = utterance.sample_rate != SAMPLE_RATE
    return read_audio(utterance.path, utterance.start, utterance.num_samples, is_resampled)
