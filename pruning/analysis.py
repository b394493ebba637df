"""What a pruned model has become: zeros and shift by tensor, and its size on disk."""

import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

from pruning.masks import count_zeros


def describe_tensors(
    params: Mapping[str, Tensor], initial: Mapping[str, Tensor]
) -> dict[str, dict[str, float]]:
    """Return size, zeros and shift of each tensor.

    The shift is the L2 norm of the difference to the initial weights over the number of weights.

    Args:
        params: Final weights by name.
        initial: Initial weights of the same names and shapes.

    Source:
        The authors' analyze_distribution_shifts.py, which stops before it computes this.
    """
    described = {}
    for name, param in params.items():
        final = param.detach().double().cpu()
        first = initial[name].detach().double().cpu()
        zeros, size = count_zeros({name: param})
        shift = float((final - first).norm()) / max(1, size)
        described[name] = {"size": size, "zeros": zeros, "shift": shift}
    return described


def size_in_bytes(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the bytes that a model takes on disk, stored three ways.

    Args:
        weights: All tensors of the model by name.
        masks: Prune masks by name of the tensor.

    Returns:
        ``dense``: every weight. ``bitmask``: of masked tensors one bit a weight and the kept
        weights only. ``zip``: every weight, deflated tensor by tensor (zlib, level 1).
    """
    dense = bitmask = zipped = 0
    for name, weight in weights.items():
        data = weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        dense += data.nbytes
        zipped += len(zlib.compress(data.tobytes(), level=1))
        if name in masks:
            mask = masks[name]
            bitmask += -(-mask.numel() // 8) + int(mask.count_nonzero()) * weight.element_size()
        else:
            bitmask += data.nbytes
    return {"dense": dense, "bitmask": bitmask, "zip": zipped}
