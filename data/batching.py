"""Group utterances of similar length into batches."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

LENGTH_JITTER = 0.03  # enough for epochs to batch differently, too little for much padding
GRID = 0.32  # seconds: common lengths are multiples of it
ROUNDING = 1e-6  # seconds: less than a sample
BATCHES_OF_A_LENGTH = 4  # in an epoch, so that few batches are small for want of utterances


class BatchSampler:
    """Batches of utterance indices under a budget of padded audio, epoch after epoch.

    Utterances are sorted by length and cut into batches as long as the budget allows, where a batch
    costs its number of utterances times its longest one. An utterance longer than the budget is a
    batch of its own. With ``shuffle`` each epoch blurs the lengths by up to 3 % before sorting and
    shuffles the batches; without, every epoch is the same, shortest utterances first.

    With ``same_length`` no batch holds two lengths, so none has padding: the utterances of a length
    are split as evenly as the budget allows. The budget keeps the amount of audio, and so of target
    tokens, alike from batch to batch, the number of utterances not; a length that few utterances
    have makes a small batch.

    With ``num_lengths`` every utterance is padded to one of so many common lengths, see
    :func:`common_lengths`, and batches are made as with ``same_length``. So a run has few shapes of
    batches, which a GPU can prepare for.

    Each epoch holds each index exactly once, and its order depends on nothing but the lengths, the
    budget, the seed and the epoch's number.

    Attributes:
        epoch: Number of the current epoch, from 0.
        position: Batches of it that :meth:`next_batch` has handed out.
    """

    def __init__(
        self,
        lengths_seconds: Sequence[float] | np.ndarray,
        batch_seconds: float,
        seed: int = 0,
        shuffle: bool = True,
        same_length: bool = False,
        num_lengths: int | None = None,
    ) -> None:
        """Raise ValueError unless there are lengths, and they and the budget are positive."""
        self.lengths = np.asarray(lengths_seconds, dtype=np.float64)
        if not self.lengths.size:
            raise ValueError("no utterances to batch: the split is empty")
        if not (np.isfinite(self.lengths) & (self.lengths > 0)).all():
            bad = int(np.argmin(np.isfinite(self.lengths) & (self.lengths > 0)))
            raise ValueError(
                f"utterance {bad} lasts {self.lengths[bad]} s: remove empty recordings"
            )
        if not batch_seconds > 0:
            raise ValueError(f"batch seconds are {batch_seconds}: give a positive number")

        self.batch_seconds = batch_seconds
        self.seed = seed
        self.shuffle = shuffle
        self.same_length = same_length or num_lengths is not None
        self._padded = self.lengths
        if num_lengths is not None:
            enough = int(self.lengths.sum() / batch_seconds / BATCHES_OF_A_LENGTH)
            lengths = common_lengths(self.lengths, min(num_lengths, max(1, enough)))
            self._padded = lengths[np.searchsorted(lengths, self.lengths - ROUNDING)]

        self.epoch = 0
        self.position = 0
        self._batches = self.epoch_batches(0)

    def epoch_batches(self, epoch: int) -> list[list[int]]:
        """Return the batches of one epoch in order; the sampler's own position stays."""
        generator = np.random.default_rng((self.seed, epoch))
        ranking = self.lengths
        if self.shuffle:
            ranking = ranking * (1 + LENGTH_JITTER * generator.random(len(ranking)))
        cut = self._split_each_length if self.same_length else self._cut_by_budget
        batches = cut(np.argsort(ranking, kind="stable"))
        if self.shuffle:
            batches = [batches[i] for i in generator.permutation(len(batches))]
        return batches

    def _cut_by_budget(self, order: np.ndarray) -> list[list[int]]:
        """Begin a new batch whenever the present one has no room."""
        batches: list[list[int]] = []
        longest = 0.0
        for index in order.tolist():
            longest = max(longest, self.lengths[index])
            if not batches or (len(batches[-1]) + 1) * longest > self.batch_seconds:
                batches.append([])
                longest = self.lengths[index]
            batches[-1].append(index)
        return batches

    def _split_each_length(self, order: np.ndarray) -> list[list[int]]:
        """Split the utterances of each length, in the given order, into batches of equal size."""
        batches: list[list[int]] = []
        for length in np.unique(self._padded):
            same = order[self._padded[order] == length]
            most = max(1, int(self.batch_seconds // length))
            parts = np.array_split(same, -(-len(same) // most))
            batches.extend(part.tolist() for part in parts)
        return batches

    def next_batch(self) -> list[int]:
        """Return the next batch, going on to the next epoch when one is used up."""
        if self.position == len(self._batches):
            self.epoch += 1
            self.position = 0
            self._batches = self.epoch_batches(self.epoch)
        self.position += 1
        return self._batches[self.position - 1]

    def first_batches(self, count: int) -> Iterator[list[int]]:
        """Yield the first batches of a run; the sampler's own position stays."""
        epochs = (self.epoch_batches(epoch) for epoch in itertools.count())
        return itertools.islice(itertools.chain.from_iterable(epochs), count)

    def count_batches(self, num_epochs: int) -> int:
        """Return the number of batches in the first ``num_epochs`` epochs."""
        return sum(len(self.epoch_batches(epoch)) for epoch in range(num_epochs))

    def padding_share(self, epoch: int = 0) -> float:
        """Return the fraction of the padded audio of an epoch that is padding."""
        padded = sum(len(batch) * self._padded[batch].max() for batch in self.epoch_batches(epoch))
        return float(1 - self.lengths.sum() / padded)

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and the position in it; JSON can hold them."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where the sampler stood that returned ``state``, given the same constructor values.

        Raises:
            ValueError: If the epoch has fewer batches than were already handed out.
        """
        batches = self.epoch_batches(state["epoch"])
        if not 0 <= state["position"] <= len(batches):
            raise ValueError(
                f"cannot resume at batch {state['position']} of an epoch with {len(batches)}: "
                "resume with the data and the batch seconds of the interrupted run"
            )
        self.epoch = state["epoch"]
        self.position = state["position"]
        self._batches = batches


def common_lengths(lengths: np.ndarray, most: int) -> np.ndarray:
    """Choose at most so many lengths to pad to, so that there is least padding.

    Args:
        lengths: Seconds of each utterance.
        most: How many may be chosen.

    Returns:
        Multiples of ``GRID``, rising; the last is not below any utterance.
    """
    tops, counts = np.unique(np.ceil(lengths / GRID), return_counts=True)
    below = np.concatenate([[0], np.cumsum(counts)])  # utterances below a candidate
    least = np.full((most + 1, len(tops) + 1), np.inf)  # padded length of those below, by choices
    least[:, 0] = 0.0
    previous = np.zeros(least.shape, dtype=int)

    for chosen in range(1, most + 1):
        for end in range(1, len(tops) + 1):
            padded = least[chosen - 1, :end] + (below[end] - below[:end]) * tops[end - 1]
            previous[chosen, end] = padded.argmin()
            least[chosen, end] = padded.min()

    end, found = len(tops), []
    for chosen in range(most, 0, -1):
        if end:
            found.append(tops[end - 1] * GRID)
            end = previous[chosen, end]
    return np.array(found[::-1])
