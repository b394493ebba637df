"""Where the random numbers of a training batch come from, whoever computes which part of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Draw:
    """Where the random numbers of a batch come from.

    What is hidden of an utterance depends on the seed and its row alone, so processes that share a
    batch, or a batch in parts, draw what one would.

    Attributes:
        seed: Of the whole batch.
        rows: Row of each utterance in the whole batch.
    """

    seed: int
    rows: Sequence[int]

    @classmethod
    def anew(cls, num_rows: int) -> "Draw":
        """Seed a batch of so many rows from torch's global CPU generator."""
        return cls(int(torch.randint(1 << 62, ())), range(num_rows))

    def generator(self, *stream: int) -> torch.Generator:
        """Return a new generator for a stream of the batch."""
        mixed = np.random.SeedSequence((self.seed, *stream)).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(mixed[0]))
