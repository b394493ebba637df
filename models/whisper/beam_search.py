"""Beam search over next-token log-probabilities, without a model in sight.

Shape letters: B utterances still searched, N beam_size, V vocab.
"""

import torch
from torch import Tensor

_OUT = -1.0e9  # Added to a score to take it out of a ranking while its row keeps its shape.


class BeamSearch:
    """Running and ended hypotheses of a batch of utterances.

    The best 2 N continuations of an utterance are looked at in each step. Those among the best N
    that end are kept with their score, the sum of log-probabilities divided by
    ``num_ids ** length_penalty`` (the end token counts as an id, start ids do not); the best N that
    do not end run on. An utterance is done when N hypotheses ended and its best running one,
    normalised at its present length, is not above the worst of them, or at the length limit.

    Args:
        num_utterances: B at the start.
        beam_size: N.
        max_ids: Ids per hypothesis, the end token included, start ids not.
        eos_id: End token.
        length_penalty: Exponent of the length; 0 does not normalise, above 1 prefers longer ones.
        device: Where scores are kept.

    Source:
        ``_beam_search`` with ``early_stopping=False`` in transformers' ``generation/utils.py``,
        whose scores, order of ties included, these are. There, finished utterances stay in the
        batch; here they can leave it.
    """

    def __init__(
        self,
        num_utterances: int,
        beam_size: int,
        max_ids: int,
        eos_id: int,
        length_penalty: float,
        device: torch.device,
    ) -> None:
        self._eos_id = eos_id
        self._length_penalty = length_penalty
        self._num_ids = 0
        shape = (num_utterances, beam_size)
        self._running_ids = torch.full((*shape, max_ids), eos_id, device=device)
        # All beams start alike: only the first may branch in the first step.
        self._running_scores = torch.zeros(shape, dtype=torch.float32, device=device)
        self._running_scores[:, 1:] = _OUT
        self._ended_ids = self._running_ids.clone()
        self._ended_scores = torch.full(shape, _OUT, dtype=torch.float32, device=device)
        self._has_ended = torch.zeros(shape, dtype=torch.bool, device=device)
        self._is_improvable = torch.ones(num_utterances, 1, dtype=torch.bool, device=device)

    @property
    def is_done(self) -> Tensor:
        """Whether the search of each utterance is over: (B,) bool."""
        if self._num_ids == self._running_ids.shape[2]:
            return torch.ones_like(self._is_improvable[:, 0])
        return ~self._is_improvable[:, 0]

    @property
    def best_ids(self) -> Tensor:
        """The best ended hypothesis of each utterance: (B, max_ids) int64, filled with eos_id."""
        return self._ended_ids[:, 0]

    def advance(self, log_probs: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step.

        Args:
            log_probs: (B * N, V) float32, of the next id after each running hypothesis.

        Returns:
            rows: (B * N,) int64; running hypothesis i now continues what was row ``rows[i]``.
            ids: (B * N, 1) int64; the id it was continued with.
        """
        num_utterances, beam_size = self._running_scores.shape
        vocab_size = log_probs.shape[1]
        scores = log_probs.view(num_utterances, beam_size, -1) + self._running_scores[:, :, None]
        scores, best = scores.flatten(1).topk(2 * beam_size)
        parents = best // vocab_size
        next_ids = best % vocab_size
        ids = _take(self._running_ids, parents)
        ids[:, :, self._num_ids] = next_ids
        self._num_ids += 1
        ends = (next_ids == self._eos_id) | (self._num_ids == ids.shape[2])

        self._keep_ended(ids, scores, ends)
        scores = torch.where(ends, scores + _OUT, scores)
        chosen = scores.topk(beam_size).indices
        self._running_ids, self._running_scores = _take(ids, chosen), _take(scores, chosen)
        self._update_improvable()

        first_rows = beam_size * torch.arange(num_utterances, device=best.device)
        rows = first_rows[:, None] + _take(parents, chosen)
        return rows.flatten(), _take(next_ids, chosen).view(-1, 1)

    def keep_utterances(self, utterances: Tensor) -> None:
        """Drop every utterance but ``utterances`` (kept,) int64."""
        self._running_ids = self._running_ids[utterances]
        self._running_scores = self._running_scores[utterances]
        self._ended_ids = self._ended_ids[utterances]
        self._ended_scores = self._ended_scores[utterances]
        self._has_ended = self._has_ended[utterances]
        self._is_improvable = self._is_improvable[utterances]

    def _keep_ended(self, ids: Tensor, scores: Tensor, ends: Tensor) -> None:
        """Merge continuations that end, ranked N or better, into the N best ended ones."""
        beam_size = self._ended_scores.shape[1]
        ends = ends.clone()
        ends[:, beam_size:] = False
        scores = scores / self._num_ids**self._length_penalty
        scores = torch.where(self._is_improvable & ends, scores, scores + _OUT)
        all_scores = torch.cat([self._ended_scores, scores], dim=1)
        chosen = all_scores.topk(beam_size).indices
        self._ended_ids = _take(torch.cat([self._ended_ids, ids], dim=1), chosen)
        self._ended_scores = _take(all_scores, chosen)
        self._has_ended = _take(torch.cat([self._has_ended, ends], dim=1), chosen)

    def _update_improvable(self) -> None:
        """Give an utterance up once its best running score is not above its worst ended one."""
        best_running = self._running_scores[:, :1] / self._num_ids**self._length_penalty
        worst_ended = self._ended_scores.amin(1, keepdim=True).masked_fill(~self._has_ended, _OUT)
        self._is_improvable &= (best_running > worst_ended).any(1, keepdim=True)


def _take(hypotheses: Tensor, chosen: Tensor) -> Tensor:
    """Pick ``chosen`` (B, n) along dimension 1 of (B, m) or (B, m, max_ids)."""
    if hypotheses.dim() == 3:
        chosen = chosen[:, :, None]
    return hypotheses.take_along_dim(chosen, dim=1)
