"""Scores that weights can be ranked by in place of their magnitudes.

A score is never negative, and the weights of the smallest scores are dropped.
:func:`pruning.masks.magnitude_masks` ranks any tensors, so it ranks scores too, with its exact
count and its order among equals.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

SCORES = ("magnitude", "lamp", "fisher")


@torch.no_grad()
def lamp_scores(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return each weight's share of what would be left of its tensor: the LAMP score.

    The score of a weight is its square over the sum of the squares of all weights in its tensor
    that are not smaller in magnitude. The largest of a tensor has at least its share among equals,
    so no tensor is emptied before the others; within a tensor the order is that of magnitudes, so
    that this changes nothing but how many weights each tensor keeps. A zero has the score 0.

    One tensor is sorted at a time. Beside its sort this takes 8 bytes a weight.

    Args:
        weights: Floating tensors of any shape by name.

    Returns:
        Float64 scores in [0, 1] by name, of the same shapes and on the same devices.

    Source:
        Lee et al. 2021 (arXiv:2010.07611). There equal weights are ordered anyhow and the sum runs
        over those that come later; here they have one score.
    """
    scores = {}
    for name, weight in weights.items():
        squares, order = weight.detach().double().flatten().square().sort(descending=True)
        _, group, sizes = squares.unique_consecutive(return_inverse=True, return_counts=True)
        left = squares.cumsum(0)[sizes.cumsum(0) - 1][group]
        shares = torch.where(squares == 0, squares, squares / left)
        scores[name] = torch.empty_like(shares).scatter_(0, order, shares).view(weight.shape)
    return scores


@torch.no_grad()
def fisher_scores(
    weights: Mapping[str, Tensor], second_moments: Mapping[str, Tensor], eps: float = 1e-8
) -> dict[str, Tensor]:
    """Return |weight| * (sqrt(second moment) + eps), large where the loss is sensitive to it.

    Adam's running mean of squared gradients stands for the diagonal of the Fisher information, so
    the square of a score is about twice what the loss rises by where the weight is dropped.

    Args:
        weights: Floating tensors by name.
        second_moments: Adam's ``exp_avg_sq`` of each; a factor common to all changes no ranking, so
            its bias need not be corrected.
        eps: Lets magnitude decide among weights without gradients.

    Source:
        arXiv:2507.18807.
    """
    return {
        name: weight.detach().abs() * (second_moments[name].sqrt() + eps)
        for name, weight in weights.items()
    }
