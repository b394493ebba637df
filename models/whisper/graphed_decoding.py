"""Greedy decoding of Whisper in steps that CUDA graphs replay.

Shape letters: B utterances, T encoder frames, L tokens, H heads, K head width, V vocab.
"""

import sys
from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from models import cuda_graphs
from models.attention import KeysValues
from models.whisper.config import DecodingOptions
from models.whisper.kv_cache import StaticKVCache
from models.whisper.model import Whisper

ROWS = 8  # batches are padded to multiples of this
MOST_POSITIONS = 250_000  # of audio and text whose keys and values the kept steps hold
STEPS_PER_CHECK = 8  # asking who has finished makes the host wait


class GreedyGraphs:
    """A captured step for each shape of batch, kept from one batch to the next.

    Where a step can't be captured, or its replay finds other ids, a line on stderr says so and
    steps are computed plainly.
    """

    def __init__(self) -> None:
        self._steps: dict[tuple[object, ...], _GreedyStep] = {}

    def generate(
        self, model: Whisper, cross: Sequence[KeysValues], options: DecodingOptions
    ) -> Tensor:
        """Take the best id in every step.

        Args:
            model: In eval mode, where gradients are off.
            cross: Keys and values of the encoded audio for each decoder layer, (B, H, T, K) each.
            options: As for ``models.whisper.decoding.generate``.

        Returns:
            (B, max_ids) int64, rows meaningful up to eos_id.
        """
        keys = cross[0][0]
        rows = -(-len(keys) // ROWS) * ROWS
        weights = (id(model), id(model.decoder.token_embedding.weight))
        key = (*weights, repr(options), rows, keys.shape[1:], keys.dtype)
        if key not in self._steps:
            self._make_room(rows * (keys.shape[2] + options.max_tokens))
            self._steps[key] = _GreedyStep(model, options, [_padded(pair, rows) for pair in cross])
            self._steps[key].capture(cross)
        return self._steps[key].generate(cross)

    def _make_room(self, positions: int) -> None:
        """Drop the oldest steps until so many positions more are within the limit."""
        while self._steps and self._held() + positions > MOST_POSITIONS:
            del self._steps[next(iter(self._steps))]

    def _held(self) -> int:
        return sum(step.positions for step in self._steps.values())


class _GreedyStep:
    """One step in memory of its own: score the id at the present position, write the next one."""

    def __init__(
        self, model: Whisper, options: DecodingOptions, cross: Sequence[KeysValues]
    ) -> None:
        rows = len(cross[0][0])
        device = cross[0][0].device
        self._model = model
        self._options = options
        self._cache = StaticKVCache(cross, options.max_tokens)
        self.positions = rows * (cross[0][0].shape[2] + options.max_tokens)
        self._ids = torch.zeros(rows, 1, dtype=torch.int64, device=device)
        self._texts = torch.zeros(rows, options.max_tokens, dtype=torch.int64, device=device)
        self._is_done = torch.zeros(rows, dtype=torch.bool, device=device)
        self._given = torch.full((options.max_tokens,), -1, device=device)  # -1: to be chosen
        self._given[: len(options.start_ids)] = torch.tensor(options.start_ids, device=device)
        self._banned = torch.zeros(2, model.config.vocab_size, dtype=torch.bool, device=device)
        self._banned[:, list(options.suppress_ids)] = True
        self._banned[1, list(options.begin_suppress_ids)] = True
        self._step = self._advance

    def capture(self, cross: Sequence[KeysValues]) -> None:
        """Replay a captured step from now on, if it finds the ids of plain steps for ``cross``."""
        plain = self.generate(cross, STEPS_PER_CHECK).clone()
        try:
            cuda_graphs.warm_up(self._begin_and_advance)
            self._step = cuda_graphs.capture(self._advance)
            same = torch.equal(self.generate(cross, STEPS_PER_CHECK), plain)
            problem = None if same else "a replay finds other ids than plain steps"
        except RuntimeError as error:
            problem = str(error).split("\n")[0]
        if problem is not None:
            self._step = self._advance
            tqdm.write(f"no CUDA graph, decoding goes step by step: {problem}", file=sys.stderr)

    def generate(self, cross: Sequence[KeysValues], most_steps: int | None = None) -> Tensor:
        """Return the ids (B, max_ids) that follow the start ids of ``cross``'s utterances."""
        batch = len(cross[0][0])
        most_tokens = self._options.max_tokens
        self._cache.refill(cross)
        self._begin(batch)
        for step in range(1, min(most_steps or most_tokens, most_tokens - 1) + 1):
            self._step()
            if step % STEPS_PER_CHECK == 0 and bool(self._is_done.all()):
                break
        return self._texts[:batch, len(self._options.start_ids) :]

    def _begin(self, batch: int) -> None:
        self._cache.position.zero_()
        self._ids.fill_(self._options.start_ids[0])
        self._texts.fill_(self._options.eos_id)
        self._is_done.zero_()
        self._is_done[batch:] = True

    def _begin_and_advance(self) -> None:
        self._begin(len(self._ids))
        self._advance()

    def _advance(self) -> None:
        position = self._cache.position
        with cuda_graphs.uncached_autocast(position.device):
            hidden = self._model.decoder(self._ids, cache=self._cache)[:, -1]
            logits = self._model.head(hidden).float()
        is_first = position == len(self._options.start_ids) - 1
        banned = torch.where(is_first, self._banned[1], self._banned[0])
        best = logits.masked_fill(banned, float("-inf")).argmax(1, keepdim=True)
        position += 1
        given = self._given[position]
        self._ids.copy_(torch.where(given >= 0, given, best))
        self._texts.index_copy_(1, position, self._ids)
        self._is_done |= (given < 0) & (self._ids[:, 0] == self._options.eos_id)


def _padded(pair: KeysValues, rows: int) -> KeysValues:
    keys, values = (torch.cat([x, x.new_zeros(rows - len(x), *x.shape[1:])]) for x in pair)
    return keys, values
