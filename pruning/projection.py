"""Prune linear layers for what they output: choose by OBS, and fit what is kept to the inputs.

A layer whose weights (R, C) are pruned on their own gives other outputs than before; where the
second moments of its inputs are known, the weights that are kept can make up for it exactly, row by
row. Nothing here knows a model: the moments come by parameter name, and
:func:`input_second_moments` collects them from any module.

Shape letters: R rows, outputs of a layer; C columns, its inputs; K kept columns of a row.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning.masks import keep_largest

PROJECTIONS = ("none", "obs", "refit")
DAMPING = 0.01  # share of the mean diagonal that is added to all of it
BLOCK = 128  # columns that OBS chooses from at a time, as in SparseGPT
LARGEST_SYSTEMS = 1 << 21  # elements of the systems that are solved together: a CPU's cache


@torch.no_grad()
def project(
    params: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    second_moments: Mapping[str, Tensor],
    chooses: bool,
) -> dict[str, Tensor]:
    """Fit what masks keep to the inputs of its layers, in place.

    Vectors, such as biases, have no inputs: they keep their masks and values.

    Args:
        params: Weights (R, C) and vectors by name; those kept are changed, those dropped set to 0.
        masks: A bool mask for each; True = kept.
        second_moments: Means (C, C) of x x^T over the inputs x of each weight's layer.
        chooses: Whether OBS chooses anew which weights each layer keeps, as many as its mask does.

    Returns:
        The masks of the projected weights.

    Raises:
        ValueError: If a weight has no second moments.
    """
    chosen = dict(masks)
    for name, mask in masks.items():
        num_dropped = mask.numel() - int(mask.count_nonzero())
        if mask.dim() < 2 or not num_dropped:
            continue
        if name not in second_moments:
            raise ValueError(
                f"no inputs of {name} were seen, which a projection needs: leave it out of the "
                "scope, or give projection none"
            )
        weight = params[name]
        moments = second_moments[name].to(params[name].device)
        if chooses:
            chosen[name] = obs_mask(weight, moments, num_dropped)
        weight.copy_(refit_rows(weight, moments, chosen[name]))
    return chosen


def obs_mask(
    weight: Tensor,
    second_moments: Tensor,
    num_dropped: int,
    damping: float = DAMPING,
    block_size: int = BLOCK,
) -> Tensor:
    """Choose which weights of a layer to keep so that its outputs change little.

    With U the upper Cholesky factor of the inverse of the damped second moments, columns are gone
    through in blocks. In each block the weights of the smallest w^2 / U_jj^2 are dropped; then the
    columns after each dropped weight take over what it did, so that later choices know of it. Each
    block drops its share of ``num_dropped``, in total exactly that.

    Args:
        weight: (R, C), floating.
        second_moments: (C, C), as in :func:`project`; a factor changes nothing.
        num_dropped: Weights to drop.
        damping: Share of the mean diagonal that is added to all of it.
        block_size: Columns that are chosen from at a time.

    Returns:
        Bool (R, C); True = kept.

    Source:
        SparseGPT (Frantar and Alistarh 2023, arXiv:2301.00774), the authors' fasterprune. Theirs
        also keeps the weights as they are after the last column; here :func:`refit_rows` finds
        those that are best for the mask.
    """
    left = weight.detach().double().clone()
    num_columns = left.shape[1]
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(_damped(second_moments, damping)))
    factor = torch.linalg.cholesky(inverse, upper=True)
    masks = []
    for start in range(0, num_columns, block_size):
        end = min(start + block_size, num_columns)
        block = left[:, start:end]
        corner = factor[start:end, start:end]
        count = num_dropped * end // num_columns - num_dropped * start // num_columns
        (mask,) = keep_largest([(block / corner.diagonal()).square()], count)
        errors = torch.zeros_like(block)
        for j in range(end - start):
            errors[:, j] = block[:, j] * ~mask[:, j] / corner[j, j]
            block[:, j:] -= errors[:, j, None] * corner[j, j:]
        left[:, end:] -= errors @ factor[start:end, end:]
        masks.append(mask)
    return torch.cat(masks, dim=1)


def refit_rows(
    weight: Tensor, second_moments: Tensor, mask: Tensor, damping: float = DAMPING
) -> Tensor:
    """Return the weights under ``mask`` whose outputs are nearest to those of ``weight``.

    Each row v with zeros where the mask drops minimises the mean of ((v - w) x)^2 over the inputs x
    plus damping * mean(diagonal) * |v - w|^2, so that a row that keeps everything stays as it is.

    Args:
        weight: (R, C), floating.
        second_moments: (C, C), as in :func:`project`.
        mask: Bool (R, C); True = kept.
        damping: Share of the mean diagonal that is added to all of it.

    Returns:
        (R, C) of the dtype of ``weight``; computed in float64.

    Source:
        The exact solution of the problem that SparseGPT (arXiv:2301.00774, section 3.1) states for
        a given mask, one linear system a row.
    """
    damped = _damped(second_moments, damping)
    exact = weight.detach().double()
    keeps_less = 2 * mask.sum(1) <= mask.shape[1]
    fitted = torch.empty_like(exact)
    fitted[keeps_less] = _solve_rows(damped, (exact @ damped)[keeps_less], mask[keeps_less])
    # The same solution from what is dropped, where that is the smaller system.
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    rows = exact[~keeps_less]
    kept = mask[~keeps_less]
    fitted[~keeps_less] = (rows - _solve_rows(inverse, rows, ~kept) @ inverse) * kept
    return fitted.to(weight.dtype)


def _solve_rows(matrix: Tensor, right: Tensor, chosen: Tensor) -> Tensor:
    """Solve a part of a system for each row of ``right`` (R, C): the chosen rows and columns of it.

    Args:
        matrix: Positive definite (C, C), float64.
        right: Right-hand sides (R, C).
        chosen: Bool (R, C).

    Returns:
        Solutions (R, C), 0 where nothing was chosen.
    """
    bordered, padded = F.pad(matrix, (0, 1, 0, 1)), F.pad(right, (0, 1))  # by a place for nothing
    solutions = torch.zeros_like(padded)
    order = chosen.to(torch.uint8).argsort(dim=1, descending=True, stable=True)  # chosen first
    sizes, rows = chosen.sum(1).sort(descending=True)  # like sizes are solved together
    start = 0
    while start < len(rows):
        width = max(1, int(sizes[start]))
        end = start + max(1, LARGEST_SYSTEMS // width**2)
        some = rows[start:end]
        is_part = torch.arange(width, device=right.device) < chosen[some].sum(1, keepdim=True)
        columns = order[some, :width].where(is_part, len(matrix))  # (rows, K)
        systems = bordered[columns[:, :, None], columns[:, None, :]]
        # A smaller system than the others has 1 on the rest of its diagonal and nothing else.
        systems.diagonal(dim1=1, dim2=2).add_(~is_part)
        wanted = padded[some].gather(1, columns)
        solved = torch.cholesky_solve(wanted[:, :, None], torch.linalg.cholesky(systems))
        solutions[some[:, None], columns] = solved[:, :, 0]
        start = end
    return solutions[:, :-1]


def _damped(second_moments: Tensor, damping: float) -> Tensor:
    moments = second_moments.double()
    added = damping * moments.diagonal().mean().clamp(min=1e-30)  # inputs that are all zero
    return moments + added * torch.eye(len(moments), dtype=torch.float64, device=moments.device)


def input_second_moments(
    model: nn.Module,
    names: Collection[str],
    run_batches: Callable[[], None],
    add_up: Callable[[Sequence[Tensor]], None] = lambda tensors: None,
) -> dict[str, Tensor]:
    """Collect the means of x x^T over the inputs x of linear layers.

    Every position that a layer sees counts alike, those that pad a batch too.

    Args:
        model: Any module.
        names: Parameters whose layers are looked at; those of no ``nn.Linear`` are passed over.
        run_batches: Runs the model on inputs; it decides on the mode and on gradients.
        add_up: Adds tensors up over the processes that share the batches, in place.

    Returns:
        Float64 (C, C) by the name of the layer's weight, for layers that were run.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    hooks = []
    for path, layer in model.named_modules():
        name = f"{path}.weight" if path else "weight"
        if name not in names or not isinstance(layer, nn.Linear):
            continue
        size = layer.in_features
        device = layer.weight.device
        sums[name] = torch.zeros(size, size, dtype=torch.float64, device=device)
        counts[name] = torch.zeros((), dtype=torch.float64, device=device)

        def look(layer: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            rows = inputs[0].detach().flatten(0, -2)
            rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
            with torch.autocast(rows.device.type, enabled=False):
                sums[name] += rows.T @ rows
            counts[name] += len(rows)

        hooks.append(layer.register_forward_pre_hook(look))
    try:
        run_batches()
    finally:
        for hook in hooks:
            hook.remove()
    add_up([*sums.values(), *counts.values()])
    return {name: total / counts[name] for name, total in sums.items() if counts[name] > 0}
