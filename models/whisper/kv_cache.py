"""What a text decoder attends to: audio, and the tokens of earlier steps.

Shape letters: B utterances, N beams of one utterance, T encoder frames, L tokens, D d_model, H
heads, K head width.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from models.attention import KeysValues, MultiHeadAttention


class Audio(Protocol):
    """What the cross attention of a decoder layer attends to."""

    @property
    def num_utterances(self) -> int:
        """Utterances B."""
        ...

    def attend(self, attention: MultiHeadAttention, x: Tensor) -> Tensor:
        """Attend from x (B, L, D) to the audio of its utterance."""
        ...

    def keep(self, utterances: Tensor) -> None:
        """Drop every utterance but ``utterances`` (kept,) int64, in place."""
        ...


class ProjectedAudio:
    """Encoded audio as keys and values.

    Args:
        keys: (B, H, T, K).
        values: (B, H, T, K).
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    @property
    def num_utterances(self) -> int:
        """Utterances B."""
        return len(self.keys)

    def contiguous(self) -> "ProjectedAudio":
        """Return it with heads that are contiguous, which decoding reads in half the time."""
        return ProjectedAudio(self.keys.contiguous(), self.values.contiguous())

    def attend(self, attention: MultiHeadAttention, x: Tensor) -> Tensor:
        """Attend from x (B, L, D) to the audio of its utterance."""
        return attention(x, (self.keys, self.values))

    def keep(self, utterances: Tensor) -> None:
        """Drop every utterance but ``utterances`` (kept,) int64, in place."""
        self.keys = _keep_rows(self.keys, utterances)
        self.values = _keep_rows(self.values, utterances)


class EncodedAudio:
    """Encoded audio as it is, which all layers share; without dropout.

    Args:
        encoded: (B, T, D).
    """

    def __init__(self, encoded: Tensor) -> None:
        self._encoded = encoded

    @property
    def num_utterances(self) -> int:
        """Utterances B."""
        return len(self._encoded)

    def attend(self, attention: MultiHeadAttention, x: Tensor) -> Tensor:
        """Attend from x (B, L, D) to the audio of its utterance."""
        return attention.to_unprojected(x, self._encoded)

    def keep(self, utterances: Tensor) -> None:
        """Drop every utterance but ``utterances`` (kept,) int64, in place."""
        self._encoded = _keep_rows(self._encoded, utterances)


def positions_from(table: Tensor, start: int, num_tokens: int) -> Tensor:
    """Return rows (L, D) of learned positions (P, D): those of ``num_tokens`` from ``start`` on.

    Raises:
        ValueError: If there are fewer.
    """
    end = start + num_tokens
    if end > len(table):
        raise ValueError(
            f"{end} tokens are more than the decoder's {len(table)} positions: shorten the target"
        )
    return table[start:end]


class LayerCache:
    """Keys and values of the tokens that one decoder layer has seen.

    Memory for ``max_tokens`` tokens is taken once, at the first of them, so a step writes into
    place and never copies the past.

    Args:
        max_tokens: Tokens that fit.

    Attributes:
        length: Tokens held so far.
    """

    def __init__(self, max_tokens: int) -> None:
        self.length = 0
        self._max_tokens = max_tokens
        self._keys = self._values = torch.empty(0)

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Write ``keys`` and ``values`` (B * N, H, L, K) behind the held ones; return all of them.

        Returns:
            Views (B * N, H, length, K) of the cache, the new tokens included, and which of these
            the new tokens may attend to: bool (L, length), or None for all.

        Raises:
            ValueError: If the cache is too small for them.
        """
        start = self.length
        end = self.length + keys.shape[2]
        if end > self._max_tokens:
            raise ValueError(
                f"{end} tokens do not fit a cache made for {self._max_tokens}: "
                "make it with a larger max_tokens"
            )
        if not start:
            shape = (*keys.shape[:2], self._max_tokens, keys.shape[3])
            self._keys, self._values = keys.new_empty(shape), values.new_empty(shape)
        self._keys[:, :, start:end] = keys
        self._values[:, :, start:end] = values
        self.length = end
        visible = None
        if keys.shape[2] > 1:
            ones = torch.ones(keys.shape[2], end, dtype=torch.bool, device=keys.device)
            visible = ones.tril(start)
        return self._keys[:, :, :end], self._values[:, :, :end], visible

    def reorder(self, rows: Tensor) -> None:
        """Make row ``i`` continue what row ``rows[i]`` held."""
        held = slice(0, self.length)
        # The right side is a copy before the left side is written.
        self._keys[:, :, held] = self._keys[rows, :, held]
        self._values[:, :, held] = self._values[rows, :, held]

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but ``rows``."""
        self._keys, self._values = _keep_rows(self._keys, rows), _keep_rows(self._values, rows)


class KVCache:
    """Keys and values of every decoder layer, handed to ``Whisper.decode``.

    Args:
        audio: What each decoder layer cross-attends to, for all beams of an utterance alike. Taken
            over, to be changed in place.
        max_tokens: Tokens that fit, prompt included.
        num_beams: Sequences per utterance. Row ``b * num_beams + n`` is beam ``n`` of
            utterance ``b``.

    Attributes:
        audio: As given.
        layers: One ``LayerCache`` per decoder layer.
    """

    def __init__(self, audio: Sequence[Audio], max_tokens: int, num_beams: int = 1) -> None:
        self.num_beams = num_beams
        self.audio = audio
        self.layers = [LayerCache(max_tokens) for _ in audio]

    @property
    def length(self) -> int:
        """Tokens held so far."""
        return self.layers[0].length

    @property
    def num_utterances(self) -> int:
        """Utterances B that are decoded."""
        return self.audio[0].num_utterances

    def next_positions(self, table: Tensor, num_new: int) -> Tensor:
        """Return the rows (L, D) of learned positions (P, D) for the next ``num_new`` tokens."""
        return positions_from(table, self.length, num_new)

    def reorder(self, rows: Tensor) -> None:
        """Make row ``i`` continue what row ``rows[i]`` held.

        Args:
            rows: (B * N,) int64; each row stays within its utterance.
        """
        for layer in self.layers:
            layer.reorder(rows)

    def keep_utterances(self, utterances: Tensor) -> None:
        """Drop every utterance but ``utterances`` (kept,) int64, all beams together.

        They stand in that order afterwards; one that keeps its place costs nothing.
        """
        beams = torch.arange(self.num_beams, device=utterances.device)
        rows = (utterances[:, None] * self.num_beams + beams).flatten()
        for layer in self.layers:
            layer.keep(rows)
        for audio in {id(each): each for each in self.audio}.values():  # layers may share one
            audio.keep(utterances)


class StaticKVCache(KVCache):
    """A cache whose shapes and memory never change and whose length is on the device.

    It takes one token at a time, and every step computes with room for all tokens, so a captured
    step can be replayed for each of them.

    Args:
        sources: Keys and values of the encoded audio, (B, H, T, K) each; copied.
        max_tokens: Tokens that fit.

    Attributes:
        position: (1,) int64, tokens held so far: the caller counts.
    """

    def __init__(self, sources: Sequence[KeysValues], max_tokens: int) -> None:
        copies = (ProjectedAudio(keys.clone(), values.clone()) for keys, values in sources)
        self._projected = [each.contiguous() for each in copies]
        super().__init__(self._projected, max_tokens)
        keys = self._projected[0].keys
        shape = (*keys.shape[:2], max_tokens, keys.shape[3])
        self.position = torch.zeros(1, dtype=torch.int64, device=keys.device)
        self.layers = [
            _StaticLayerCache(keys.new_zeros(2, *shape), self.position) for _ in self._projected
        ]

    def refill(self, sources: Sequence[KeysValues]) -> None:
        """Begin anew with the first B keys and values replaced by those of ``sources``."""
        self.position.zero_()
        for audio, (keys, values) in zip(self._projected, sources, strict=True):
            audio.keys[: len(keys)].copy_(keys)
            audio.values[: len(values)].copy_(values)

    def next_positions(self, table: Tensor, num_new: int) -> Tensor:
        """Return the row (1, D) of the next token's position."""
        return table[self.position]


class _StaticLayerCache(LayerCache):
    def __init__(self, keys_values: Tensor, position: Tensor) -> None:
        super().__init__(keys_values.shape[3])
        self._keys, self._values = keys_values
        self._position = position
        self._places = torch.arange(self._max_tokens, device=position.device)

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Write one token in its place; return the whole cache and what of it may be attended."""
        self._keys.index_copy_(2, self._position, keys)
        self._values.index_copy_(2, self._position, values)
        return self._keys, self._values, (self._places <= self._position)[None]


def _keep_rows(held: Tensor, rows: Tensor) -> Tensor:
    """Make row ``i`` what row ``rows[i]`` was, in place, and return the rows that are left."""
    to = (rows != torch.arange(len(rows), device=rows.device)).nonzero()[:, 0]
    held.index_copy_(0, to, held[rows[to]])  # those that keep their place are not copied
    return held[: len(rows)]
