"""Decoding of CTC outputs: best path, prefix beam search, and the times of a hypothesis.

Shape letters: B batch, T encoder frames, V vocab.

Source:
    Graves et al. 2006 (CTC); prefix beam search without a language model as in Hannun et al. 2014
    (arXiv:1408.2873), Algorithm 1, in log space.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

Array = npt.NDArray[np.float64]
Prefix = tuple[int, ...]


def greedy_decode(
    log_probs: Tensor, num_frames: Tensor | None = None, blank_id: int = 0
) -> list[list[int]]:
    """Decode the most probable symbol of each frame, repeats merged and blanks dropped.

    Args:
        log_probs: (B, T, V) floating, any device; logits do as well.
        num_frames: (B,) integer, frames of each utterance; None is all T.
        blank_id: The blank's id.

    Returns:
        Ids of each utterance. Of equal scores the lowest id wins.

    Raises:
        ValueError: If a valid frame has NaN, ``num_frames`` does not fit or ``blank_id`` is not in
            the vocabulary.
    """
    decoded = []
    for frames in _valid_frames(log_probs, num_frames, blank_id):
        best = frames.argmax(axis=1)
        starts = np.diff(best, prepend=-1) != 0
        decoded.append(best[starts & (best != blank_id)].tolist())
    return decoded


def beam_decode(
    log_probs: Tensor, num_frames: Tensor | None = None, blank_id: int = 0, beam_size: int = 8
) -> list[list[int]]:
    """Decode by prefix beam search: alignments of the same ids add up.

    No symbol is pruned, so the search is exact once ``beam_size`` reaches the number of prefixes.
    Runs on the CPU in float64.

    Args:
        log_probs: (B, T, V) log-softmax, floating, any device.
        num_frames: (B,) integer, frames of each utterance; None is all T.
        blank_id: The blank's id.
        beam_size: Prefixes kept after each frame.

    Returns:
        Ids of each utterance. Of equal scores the prefix that was already in the beam wins, then
        the one grown from the better prefix, then the lowest id.

    Raises:
        ValueError: If ``beam_size`` is below 1, or as `greedy_decode`.
    """
    if beam_size < 1:
        raise ValueError(f"beam_size is {beam_size}; use at least 1")
    return [
        list(_best_prefix(frames, blank_id, beam_size))
        for frames in _valid_frames(log_probs, num_frames, blank_id)
    ]


def align(log_probs: Array, ids: Sequence[int], blank_id: int = 0) -> list[tuple[int, int]]:
    """Find when each id of a hypothesis is said, on the best path of frames that collapses to it.

    Args:
        log_probs: (T, V), one utterance.
        ids: The hypothesis, without blanks.
        blank_id: The blank's id.

    Returns:
        First frame and end of each id. Of equal paths that which stays longest in a symbol wins.

    Raises:
        ValueError: If there are fewer frames than the ids need.
    """
    if not ids:
        return []
    labels = np.full(2 * len(ids) + 1, blank_id)  # blanks around the ids, each of which may be left
    labels[1::2] = ids
    may_skip = np.zeros(len(labels), dtype=bool)
    may_skip[3::2] = labels[3::2] != labels[1:-2:2]  # a repeat needs the blank between

    emitted = log_probs[:, labels]
    scores = np.full(len(labels), -np.inf)
    scores[:2] = emitted[0, :2]
    moves = np.zeros(emitted.shape, dtype=np.int64)  # by how many states each was entered
    for frame in range(1, len(emitted)):
        step = np.concatenate([[-np.inf], scores[:-1]])
        skip = np.where(may_skip, np.concatenate([[-np.inf] * 2, scores[:-2]]), -np.inf)
        ways = np.stack([scores, step, skip])
        moves[frame] = ways.argmax(0)
        scores = ways.max(0) + emitted[frame]

    state = len(labels) - 1 - int(scores[-2] >= scores[-1])
    if scores[state] == -np.inf:
        raise ValueError(f"{len(log_probs)} frames can't align {len(ids)} tokens")
    states = [state]
    for frame in range(len(emitted) - 1, 0, -1):
        states.append(states[-1] - int(moves[frame, states[-1]]))
    path = np.array(states[::-1])
    spans = []
    for place in range(1, len(labels), 2):
        frames = (path == place).nonzero()[0]
        spans.append((int(frames[0]), int(frames[-1]) + 1))
    return spans


def _valid_frames(log_probs: Tensor, num_frames: Tensor | None, blank_id: int) -> Iterator[Array]:
    batch, width, vocab_size = log_probs.shape
    if not 0 <= blank_id < vocab_size:
        raise ValueError(f"blank_id {blank_id} is not in the vocabulary of {vocab_size} symbols")
    lengths = [width] * batch if num_frames is None else num_frames.tolist()
    if len(lengths) != batch or min(lengths) < 0 or max(lengths) > width:
        raise ValueError(f"num_frames is {lengths}; give {batch} numbers within [0, {width}]")
    for row, length in zip(log_probs.detach().double().cpu().numpy(), lengths, strict=True):
        if np.isnan(row[:length]).any():
            raise ValueError("log_probs has NaN: the model diverged; use an earlier checkpoint")
        yield row[:length]


def _best_prefix(frames: Array, blank_id: int, beam_size: int) -> Prefix:
    # Per prefix, best first: log probability of the alignments that end in a blank or in a symbol.
    prefixes: list[Prefix] = [()]
    blank_scores = np.zeros(1)
    symbol_scores = np.full(1, -np.inf)
    for frame in frames:
        size = len(prefixes)
        scores = np.logaddexp(blank_scores, symbol_scores)
        last = np.array([prefix[-1] if prefix else blank_id for prefix in prefixes])
        stay_blank = scores + frame[blank_id]
        stay_symbol = symbol_scores + frame[last]
        grown = scores[:, None] + frame
        grown[np.arange(size), last] = blank_scores + frame[last]  # a repeat needs a blank between
        grown[:, blank_id] = -np.inf
        index = {prefix: i for i, prefix in enumerate(prefixes)}
        for child, prefix in enumerate(prefixes):
            parent = index.get(prefix[:-1]) if prefix else None
            if parent is not None:  # the grown prefix is in the beam already: add, don't repeat
                symbol = prefix[-1]
                stay_symbol[child] = np.logaddexp(stay_symbol[child], grown[parent, symbol])
                grown[parent, symbol] = -np.inf

        ranked = np.concatenate([np.logaddexp(stay_blank, stay_symbol), grown.ravel()])
        order = np.argsort(-ranked, kind="stable")[:beam_size]
        order = order[ranked[order] > -np.inf]
        parents, symbols = np.divmod(order - size, frames.shape[1])
        prefixes = [
            prefixes[i] if i < size else prefixes[parent] + (int(symbol),)
            for i, parent, symbol in zip(order, parents, symbols, strict=True)
        ]
        no_blank = np.full(grown.size, -np.inf)
        blank_scores = np.concatenate([stay_blank, no_blank])[order]
        symbol_scores = np.concatenate([stay_symbol, grown.ravel()])[order]
    return prefixes[0]
