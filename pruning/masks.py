"""Make, apply and compare prune masks; in a mask True means kept.

The ranking never sorts: the bit pattern of a non-negative float, read as an integer, grows with the
float. On a CPU histograms of 16 bits at a time (two for float32) lead to the exact magnitude at
which to cut, chunk by chunk, with a few chunks of memory beside the masks. A GPU likes few large
launches and no questions from the host, so there one radix selection runs over a copy of all
weights; whatever is counted is read back once.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 1 << 20  # elements looked at together: small enough for the cache, large enough for speed
DIGIT_BITS = 16
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by element size in bytes


def magnitude_masks(
    params: Mapping[str, Tensor],
    sparsity: float,
    granularity: str = "global",
    pattern: str = "unstructured",
) -> dict[str, Tensor]:
    """Drop the weights of smallest magnitude and keep the rest.

    Exactly ``round(sparsity * n)`` weights are dropped: Python's ``round`` (a half goes to the even
    number) of the float product, with n over all tensors ("global") or one ("layerwise"). Among
    equal magnitudes the first are dropped, by sorted name and then by row-major index, so that
    every device and every order of ``params`` gives the same masks. ``params`` is only read.
    float16 and bfloat16 are ranked by their exact float32 values, float64 in full precision.

    Args:
        params: Floating tensors of any shape by name, all on one device.
        sparsity: Fraction to drop, in [0, 1); not a percentage.
        granularity: "global" ranks all weights together, "layerwise" each tensor on its own.
        pattern: "unstructured", or "N:M", which keeps the N largest of every M neighbours along
            the last dimension, whatever the granularity; its sparsity is 1 - N/M.

    Returns:
        A bool tensor for each name, of the shape and on the device of its parameter; True = kept.

    Raises:
        ValueError: If ``sparsity`` is outside [0, 1), the granularity or the pattern is unknown,
            the pattern has another sparsity or does not fit a shape, there is nothing to rank, or
            a tensor is not floating or holds a NaN.

    Source:
        The ranking of ``torch.nn.utils.prune.global_unstructured`` with ``L1Unstructured``, whose
        count is the same and whose choice among ties is unspecified.

    Example:
        >>> magnitude_masks({"u": torch.tensor([-4.0, 1.0]), "v": torch.tensor([0.2, 2.0])}, 0.5)
        {'u': tensor([ True, False]), 'v': tensor([False,  True])}
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity is {sparsity}: give a fraction in [0, 1), not a percentage")
    if granularity not in ("global", "layerwise"):
        raise ValueError(f"granularity is {granularity!r}: choose 'global' or 'layerwise'")
    if not sum(weight.numel() for weight in params.values()):
        raise ValueError("no weights to prune: the scope selected no parameter, or only empty ones")
    _check_rankable(params)
    if pattern != "unstructured" and sparsity:
        num_kept, group = check_pattern(pattern, sparsity)
        return {name: _keep_in_groups(params[name], num_kept, group, name) for name in params}
    names = sorted(params)
    together = [names] if granularity == "global" else [[name] for name in names]
    masks: dict[str, Tensor] = {}
    for ranked in together:
        num_ranked = sum(params[name].numel() for name in ranked)
        kept = keep_largest([params[name] for name in ranked], round(sparsity * num_ranked))
        masks.update(zip(ranked, kept, strict=True))
    return {name: masks[name] for name in params}


def _check_rankable(params: Mapping[str, Tensor]) -> None:
    for name, weight in params.items():
        if not weight.is_floating_point():
            raise ValueError(f"{name} is {weight.dtype}: only floating tensors can be pruned")
    names = [name for name, weight in params.items() if weight.numel()]
    maxima = torch.stack([params[name].detach().max().float() for name in names])
    for name, is_nan in zip(names, maxima.isnan().tolist(), strict=True):  # max hands a NaN on
        if is_nan:
            raise ValueError(f"{name} holds a NaN, which has no rank: training has diverged")


def check_pattern(pattern: str, sparsity: float) -> tuple[int, int]:
    """Return N and M of the pattern "N:M", or (0, 0) for "unstructured".

    Raises:
        ValueError: If it is neither, or its sparsity is not ``sparsity``.
    """
    if pattern == "unstructured":
        return 0, 0
    match = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", pattern)
    if not match or int(match[1]) >= int(match[2]):
        raise ValueError(f"pattern {pattern!r} is unknown: give unstructured, or N:M such as 2:4")
    kept = int(match[1])
    group = int(match[2])
    if not math.isclose(sparsity, 1 - kept / group, abs_tol=1e-9):
        raise ValueError(
            f"pattern {pattern} drops {1 - kept / group:g} of the weights, not {sparsity:g}: "
            "give that sparsity"
        )
    return kept, group


def _keep_in_groups(weight: Tensor, num_kept: int, group: int, name: str) -> Tensor:
    """Return the mask of the ``num_kept`` largest of every ``group`` along the last dimension."""
    if weight.dim() == 0 or weight.shape[-1] % group:
        raise ValueError(
            f"{name} of shape {tuple(weight.shape)} has no whole groups of {group}: leave it out "
            "of the scope, or use another pattern"
        )
    mask = torch.ones(weight.shape, dtype=torch.bool, device=weight.device)
    rows = mask.view(-1, group)
    groups = weight.detach().reshape(-1, group)
    step = max(1, CHUNK // group)
    for start in range(0, len(rows), step):
        order = groups[start : start + step].abs().argsort(dim=1, stable=True)
        rows[start : start + step].scatter_(1, order[:, : group - num_kept], False)
    return mask


def random_masks(
    params: Mapping[str, Tensor],
    sparsity: float,
    granularity: str = "global",
    pattern: str = "unstructured",
    seed: int = 0,
    biases_first: bool = False,
) -> dict[str, Tensor]:
    """Drop weights at random, in the number and the groups of :func:`magnitude_masks`.

    The masks depend on the seed, the names and the shapes, not on the values or the device.

    Args:
        params: Floating tensors by name.
        sparsity: Fraction to drop, in [0, 1).
        granularity: "global" or "layerwise".
        pattern: "unstructured" or "N:M".
        seed: Of the generator that the scores are drawn from.
        biases_first: Drop one-dimensional tensors before any other weight.

    Raises:
        ValueError: As :func:`magnitude_masks`.
    """
    generator = torch.Generator().manual_seed(seed)
    scores = {}
    for name in sorted(params):
        score = torch.rand(params[name].shape, generator=generator)
        is_bias = biases_first and params[name].dim() == 1
        scores[name] = torch.zeros_like(score) if is_bias else score
    masks = magnitude_masks(scores, sparsity, granularity, pattern)
    return {name: masks[name].to(params[name].device) for name in params}


def keep_largest(weights: list[Tensor], num_dropped: int) -> list[Tensor]:
    """Rank the magnitudes of ``weights`` together; return masks that drop so many, in their order.

    Among equals the first are dropped, by their place in the list and then by row-major index.
    """
    if not num_dropped:
        return [torch.ones(w.shape, dtype=torch.bool, device=w.device) for w in weights]
    keep = _keep_above_cut if _likes_chunks(weights[0]) else _keep_above_cut_at_once
    return keep(weights, num_dropped)


def _keep_above_cut(weights: list[Tensor], num_dropped: int) -> list[Tensor]:
    """Find the magnitude to cut at and compare with it, chunk by chunk."""
    dtype = _ranking_dtype(weights)
    masks = [torch.ones(weight.shape, dtype=torch.bool, device=weight.device) for weight in weights]
    cut, ties_to_drop, num_ties = _select_rank(weights, num_dropped, dtype)
    drops_all_ties = ties_to_drop == num_ties
    for weight, mask in zip(weights, masks, strict=True):
        chunks = mask.view(-1).split(CHUNK)
        for bits, kept in zip(_magnitude_bits(weight, dtype), chunks, strict=True):
            if not ties_to_drop:
                torch.ge(bits, cut, out=kept)
                continue
            torch.gt(bits, cut, out=kept)
            if not drops_all_ties:
                ties = bits == cut
                num_ties = int(ties.count_nonzero())
                if num_ties > ties_to_drop:
                    kept[ties.nonzero().flatten()[ties_to_drop:]] = True
                ties_to_drop = max(0, ties_to_drop - num_ties)
    return masks


def _keep_above_cut_at_once(weights: list[Tensor], num_dropped: int) -> list[Tensor]:
    """Do the same in a few launches over one long tensor, asking the device once."""
    dtype = _ranking_dtype(weights)
    integer = INTEGERS[dtype.itemsize]
    bits = torch.cat([weight.detach().reshape(-1).to(dtype) for weight in weights]).view(integer)
    bits &= torch.iinfo(integer).max
    num_kept = len(bits) - num_dropped
    if 0 < num_kept < num_dropped:  # the smallest that is kept serves as well
        cut = bits.topk(num_kept, sorted=False).values.min()
    else:
        cut = bits.topk(num_dropped, largest=False, sorted=False).values.max()
    kept = bits > cut
    ties = bits == cut
    num_above, num_ties = torch.stack([kept.count_nonzero(), ties.count_nonzero()]).tolist()
    ties_to_drop = num_ties - (num_kept - num_above)
    if not ties_to_drop:
        kept |= ties
    elif ties_to_drop < num_ties:
        kept[ties.nonzero().flatten()[ties_to_drop:]] = True
    masks = kept.split([weight.numel() for weight in weights])
    return [mask.view(weight.shape) for mask, weight in zip(masks, weights, strict=True)]


def _select_rank(weights: list[Tensor], rank: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """Find the ``rank``-th smallest magnitude, counting from 1.

    Returns its bits, how many weights equal to it are among the ``rank`` smallest, and how many
    there are in all.
    """
    width = 8 * dtype.itemsize
    num_digits = 1 << DIGIT_BITS
    prefix = 0
    remaining = rank
    num_equal = 0
    for shift in range(width - DIGIT_BITS, -1, -DIGIT_BITS):
        counts = torch.zeros(num_digits, dtype=torch.int64, device=weights[0].device)
        for weight in weights:
            for bits in _magnitude_bits(weight, dtype):
                if shift + DIGIT_BITS < width:
                    bits = bits[bits >> (shift + DIGIT_BITS) == prefix]
                digits = (bits >> shift) & (num_digits - 1)
                counts += torch.bincount(digits, minlength=num_digits)
        up_to = counts.cumsum(0)
        digit = int((up_to < remaining).sum())
        num_equal = int(counts[digit])
        remaining -= int(up_to[digit]) - num_equal
        prefix = prefix << DIGIT_BITS | digit
    return prefix, remaining, num_equal


def _magnitude_bits(weight: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    """Yield the magnitudes chunk by chunk as integers in the same order, the sign bit cleared."""
    integer = INTEGERS[dtype.itemsize]
    for chunk in weight.detach().reshape(-1).split(CHUNK):
        yield chunk.to(dtype).view(integer) & torch.iinfo(integer).max


def _ranking_dtype(weights: Iterable[Tensor]) -> torch.dtype:
    wide = any(weight.dtype == torch.float64 for weight in weights)
    return torch.float64 if wide else torch.float32


def _likes_chunks(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def _pieces(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield all elements in order: chunk by chunk on a CPU, else all in one tensor."""
    flat = [tensor.detach().reshape(-1) for tensor in tensors if tensor.numel()]
    if flat and not _likes_chunks(flat[0]):
        yield torch.cat(flat)
        return
    for tensor in flat:
        yield from tensor.split(CHUNK)


def largest_dropped(params: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> float:
    """Return the largest magnitude that ``masks`` drops, 0.0 where nothing is dropped.

    Right after :func:`magnitude_masks` this is the threshold of the ranking; after
    :func:`apply_masks` it is 0.

    Raises:
        ValueError: If a mask has no parameter of its name and shape.
    """
    _check_same(masks, params, subset=True)
    dtype = _ranking_dtype(params.values())
    integer = INTEGERS[dtype.itemsize]
    largest = []
    pairs = zip(_pieces(params[name] for name in masks), _pieces(masks.values()), strict=True)
    for weights, kept in pairs:
        bits = weights.to(dtype).view(integer) & torch.iinfo(integer).max
        largest.append((bits * ~kept).max())
    return torch.stack(largest).max().view(dtype).item() if largest else 0.0


@torch.no_grad()
def apply_masks(params: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Set the dropped weights to +0.0 in place; kept ones keep every bit.

    Parameters without a mask are left alone.

    Raises:
        ValueError: If a mask has no parameter of its name and shape; then nothing is changed.
    """
    _check_same(masks, params, subset=True)
    if masks:
        # As integers, because a float product would leave -0.0, and NaN where the weight is
        # infinite; masked_fill_ is exact too, but took 13 times as long on a CPU.
        weights = [params[name].view(INTEGERS[params[name].element_size()]) for name in masks]
        torch._foreach_mul_(weights, list(masks.values()))


def count_zeros(params: Mapping[str, Tensor]) -> tuple[int, int]:
    """Count the weights that are exactly zero, and all weights."""
    total = sum(weight.numel() for weight in params.values())
    # Through bool, because counting floats branches on each: ten times slower on scattered zeros.
    nonzero = [piece.bool().count_nonzero() for piece in _pieces(params.values())]
    return total - int(sum(nonzero)), total


def measured_sparsity(params: Mapping[str, Tensor]) -> float:
    """Return the fraction of weights that are exactly zero, 0.0 where there are no weights."""
    zeros, total = count_zeros(params)
    return zeros / total if total else 0.0


@dataclass(frozen=True)
class Overlap:
    """How the kept sets of two masks lie to each other, in weights.

    Attributes:
        both: Kept by both.
        first_only: Kept by the first alone.
        second_only: Kept by the second alone.
    """

    both: int
    first_only: int
    second_only: int

    @property
    def iou(self) -> float:
        """Intersection over union; two masks that keep nothing are equal, so they give 1.0."""
        union = self.both + self.first_only + self.second_only
        return self.both / union if union else 1.0


def mask_overlap(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> Overlap:
    """Count what two masks keep, pooled over all names.

    Raises:
        ValueError: If names or shapes differ.
    """
    _check_same(first, second)
    counts = [
        torch.stack([(a & b).count_nonzero(), a.count_nonzero(), b.count_nonzero()])
        for a, b in zip(
            _pieces(first.values()), _pieces(second[name] for name in first), strict=True
        )
    ]
    both, kept_first, kept_second = torch.stack(counts).sum(0).tolist() if counts else (0, 0, 0)
    return Overlap(both, kept_first - both, kept_second - both)


def mask_iou(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """Return the intersection over the union of the two kept sets; errors of `mask_overlap`."""
    return mask_overlap(first, second).iou


def _check_same(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], subset: bool = False
) -> None:
    """Raise unless names and shapes are equal; a subset may lack names of ``second``."""
    unmatched = first.keys() - second.keys() if subset else first.keys() ^ second.keys()
    if unmatched:
        raise ValueError(
            f"masks do not belong together: {min(unmatched)!r} is on one side only "
            f"({len(unmatched)} such names); use masks of the same model and scope"
        )
    for name, mask in first.items():
        if mask.shape != second[name].shape:
            raise ValueError(
                f"masks do not belong together: {name!r} is {tuple(mask.shape)} and "
                f"{tuple(second[name].shape)}; use masks of the same model and scope"
            )
