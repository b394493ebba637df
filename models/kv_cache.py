"""Keys and values that a text decoder keeps between steps.

Shape letters: B utterances, N beams of one utterance, T encoder frames, L tokens, H heads, K head
width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.attention import KeysValues


class LayerCache:
    """Keys and values of one decoder layer.

    Memory for ``max_tokens`` tokens is taken once, in the dtype and on the device of ``cross``, so
    a step writes into place and never copies the past.

    Args:
        cross: Keys and values of the encoded audio, each (B, H, T, K).
        max_tokens: Tokens that fit.
        num_beams: Sequences per utterance. Row ``b * num_beams + n`` is beam ``n`` of
            utterance ``b``; all beams of an utterance share its ``cross``.

    Attributes:
        cross: As given, each head contiguous.
        length: Tokens held so far.
    """

    def __init__(self, cross: KeysValues, max_tokens: int, num_beams: int = 1) -> None:
        keys = cross[0]
        num_utterances, num_heads, _, head_width = keys.shape
        shape = (num_utterances * num_beams, num_heads, max_tokens, head_width)
        # Every step reads all of it, which takes half the time where heads are contiguous.
        self.cross = (cross[0].contiguous(), cross[1].contiguous())
        self.length = 0
        self._keys = keys.new_empty(shape)
        self._values = keys.new_empty(shape)

    def append(self, keys: Tensor, values: Tensor) -> KeysValues:
        """Write ``keys`` and ``values`` (B * N, H, L, K) behind the held ones; return all of them.

        Returns:
            Views (B * N, H, length, K) of the cache, the new tokens included.

        Raises:
            ValueError: If the cache is too small for them.
        """
        start, end = self.length, self.length + keys.shape[2]
        if end > self._keys.shape[2]:
            raise ValueError(
                f"{end} tokens do not fit a cache made for {self._keys.shape[2]}: "
                "make it with a larger max_tokens"
            )
        self._keys[:, :, start:end] = keys
        self._values[:, :, start:end] = values
        self.length = end
        return self._keys[:, :, :end], self._values[:, :, :end]

    def reorder(self, rows: Tensor) -> None:
        """Make row ``i`` continue what row ``rows[i]`` held; ``cross`` is left alone."""
        held = slice(0, self.length)
        # The right side is a copy before the left side is written.
        self._keys[:, :, held] = self._keys[rows, :, held]
        self._values[:, :, held] = self._values[rows, :, held]

    def keep(self, rows: Tensor, utterances: Tensor) -> None:
        """Drop all rows but ``rows`` and the cross keys and values of all but ``utterances``."""
        self._keys, self._values = self._keys[rows], self._values[rows]
        self.cross = (self.cross[0][utterances], self.cross[1][utterances])


class KVCache:
    """Keys and values of every decoder layer, handed to ``Whisper.decode``.

    Args:
        cross: Per decoder layer, the keys and values of the encoded audio, each (B, H, T, K).
        max_tokens: Tokens that fit, prompt included.
        num_beams: Sequences per utterance; see ``LayerCache``.

    Attributes:
        layers: One ``LayerCache`` per decoder layer.
    """

    def __init__(self, cross: Sequence[KeysValues], max_tokens: int, num_beams: int = 1) -> None:
        self.num_beams = num_beams
        self.layers = [LayerCache(pair, max_tokens, num_beams) for pair in cross]

    @property
    def length(self) -> int:
        """Tokens held so far."""
        return self.layers[0].length

    def reorder(self, rows: Tensor) -> None:
        """Make row ``i`` continue what row ``rows[i]`` held.

        Args:
            rows: (B * N,) int64; each row stays within its utterance, whose ``cross`` it shares.
        """
        for layer in self.layers:
            layer.reorder(rows)

    def keep_utterances(self, utterances: Tensor) -> None:
        """Drop every utterance but ``utterances`` (kept,) int64, all beams together."""
        beams = torch.arange(self.num_beams, device=utterances.device)
        rows = (utterances[:, None] * self.num_beams + beams).flatten()
        for layer in self.layers:
            layer.keep(rows, utterances)
