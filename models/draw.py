"""Where the random numbers of a training batch come from, whoever computes which part of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

_STEP = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)
_PLACES = 1 << 32  # numbers that a row can have

Numbers = npt.NDArray[np.float64]


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

    def of_rows(self, stream: int, count: int) -> Numbers:
        """Return ``count`` uniform numbers in [0, 1) for each utterance, (rows, count).

        The first numbers of a row are the same however many are asked for, and whatever other rows
        there are.

        Args:
            stream: Numbers of different streams have nothing to do with one another.
            count: Numbers of a row.
        """
        first = np.array(self.rows, dtype=np.uint64) * np.uint64(_PLACES)
        return self._numbers(stream, first[:, None] + np.arange(count, dtype=np.uint64))

    def of_batch(self, stream: int, count: int) -> Numbers:
        """Return ``count`` uniform numbers in [0, 1) that all rows share; ``stream`` as above."""
        return self._numbers(stream, np.arange(count, dtype=np.uint64))

    def _numbers(self, stream: int, places: npt.NDArray[np.uint64]) -> Numbers:
        """Return the numbers at some places of a stream.

        Source:
            SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
            generators"), whose number at a place needs none of those before it.
        """
        seed = np.random.SeedSequence((self.seed, stream)).generate_state(1, np.uint64)
        mixed = seed + (places + np.uint64(1)) * _STEP  # modulo 2^64, as all that follows
        for shift, factor in _ROUNDS:
            mixed = (mixed ^ (mixed >> shift)) * factor
        mixed ^= mixed >> np.uint64(31)
        return (mixed >> np.uint64(11)) * 2.0**-53
