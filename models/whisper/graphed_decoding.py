"""Decoder steps of Whisper that CUDA graphs replay.

Shape letters: B utterances, T encoder frames, L tokens, H heads, K head width, V vocab.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import cuda_graphs
from models.attention import KeysValues
from models.whisper.kv_cache import StaticKVCache
from models.whisper.model import Whisper

ROWS = 8  # batches are padded to multiples of this
MOST_POSITIONS = 250_000  # of audio and text whose keys and values the kept steps hold


class GreedyGraphs:
    """A captured step for each shape of batch, kept from one batch to the next."""

    def __init__(self) -> None:
        self._steps: dict[tuple[object, ...], GraphedSteps] = {}

    def begin(self, model: Whisper, cross: Sequence[KeysValues], max_tokens: int) -> "GraphedSteps":
        """Return steps that begin with the audio of a batch.

        Args:
            model: In eval mode, where gradients are off.
            cross: Keys and values of the encoded audio for each decoder layer, (B, H, T, K) each.
            max_tokens: Tokens that fit.

        Raises:
            ValueError: If there is too little memory for a capture, or CUDA refuses it.
        """
        keys = cross[0][0]
        rows = -(-len(keys) // ROWS) * ROWS
        weights = (id(model), id(model.decoder.token_embedding.weight))
        key = (*weights, max_tokens, rows, keys.shape[1:], keys.dtype)
        if key not in self._steps:
            positions = rows * (keys.shape[2] + max_tokens)
            if sum(step.positions for step in self._steps.values()) + positions > MOST_POSITIONS:
                self._steps.clear()  # all: one alone would take the workspace of the others along
            self._steps[key] = GraphedSteps(model, cross, max_tokens, rows)
        self._steps[key].refill(cross)
        return self._steps[key]


class GraphedSteps:
    """Steps of a decoder in memory of their own: one token of each row at a time.

    Args:
        model: As for :meth:`GreedyGraphs.begin`.
        cross: Of a first batch.
        max_tokens: Tokens that fit.
        rows: Utterances that fit.

    Attributes:
        length: Tokens held so far.
        num_utterances: Rows that are decoded.
        positions: Of audio and text, whose keys and values are held.
    """

    def __init__(
        self, model: Whisper, cross: Sequence[KeysValues], max_tokens: int, rows: int
    ) -> None:
        device = cross[0][0].device
        self._cache = StaticKVCache([_padded(pair, rows) for pair in cross], max_tokens)
        self._weights = _CastWeights(model)
        self._ids = torch.zeros(rows, 1, dtype=torch.int64, device=device)
        self._logits = torch.empty(0)
        self.length = 0
        self.num_utterances = rows
        self.positions = rows * (cross[0][0].shape[2] + max_tokens)

        is_cuda = device.type == "cuda"
        stream: Any = cuda_graphs.stream_for("decoding", device) if is_cuda else None
        with cuda_graphs.capturing(device, "lower --batch-seconds, or give --no-fast"):
            cuda_graphs.warm_up(self._advance, stream)
            self._replay = cuda_graphs.capture(self._advance, stream)

    def refill(self, cross: Sequence[KeysValues]) -> None:
        """Begin anew with the audio of a batch, and with the weights as they are now."""
        self._weights.refresh()
        self._cache.refill(cross)
        self.length = 0
        self.num_utterances = len(cross[0][0])

    def append(self, ids: Tensor) -> Tensor:
        """Append ids (B, L); return float32 logits (B, V) of the next one, until the next call."""
        for column in ids.split(1, dim=1):
            self._ids[: self.num_utterances].copy_(column)
            self._replay()
        self.length += ids.shape[1]
        return self._logits[: self.num_utterances]

    def keep_utterances(self, utterances: Tensor) -> bool:
        """Return False: every row stays."""
        return False

    def _advance(self) -> None:
        with cuda_graphs.uncached_autocast(self._ids.device):
            hidden = self._weights.decoder(self._ids, cache=self._cache)[:, -1]
            self._logits = F.linear(hidden, self._weights.head).float()
        self._cache.position += 1


class _CastWeights:
    """A decoder whose linear layers hold their weights as autocast would cast them in every step.

    Attributes:
        decoder: Shares with the model's what is not cast; without autocast it is the model's.
        head: Weight of the scores (V, D).
    """

    def __init__(self, model: Whisper) -> None:
        self.decoder: Any = model.decoder
        self.head: Tensor = model.decoder.token_embedding.weight
        self._cast: list[Tensor] = []
        self._originals: list[Tensor] = []
        kind = self.head.device.type
        if not torch.is_autocast_enabled(kind):
            return

        dtype = torch.get_autocast_dtype(kind)
        linear = _linear_parameters(model.decoder)
        are_cast = {id(weight) for weight in linear}
        shared = {id(p): p for p in model.decoder.parameters() if id(p) not in are_cast}
        self.decoder = copy.deepcopy(model.decoder, dict[int, Any](shared))
        for layer in self.decoder.modules():
            if isinstance(layer, nn.Linear):
                layer.to(dtype)
        self._cast = [*_linear_parameters(self.decoder), self.head.to(dtype)]
        self._originals = [*linear, self.head]
        self.head = self._cast[-1]

    def refresh(self) -> None:
        """Cast the weights as they are now."""
        if self._cast:
            torch._foreach_copy_(self._cast, self._originals)


def _linear_parameters(module: nn.Module) -> list[Tensor]:
    layers = (layer for layer in module.modules() if isinstance(layer, nn.Linear))
    return [parameter for layer in layers for parameter in layer.parameters()]


def _padded(pair: KeysValues, rows: int) -> KeysValues:
    keys, values = (torch.cat([x, x.new_zeros(rows - len(x), *x.shape[1:])]) for x in pair)
    return keys, values
