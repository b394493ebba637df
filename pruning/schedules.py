"""When weights are pruned: one small class a method, called by the loop between optimizer steps.

The loop in train.py knows just this:

    schedule.start(params)               # prune for the first time
    for step in 1, 2, ..., last:
        ...                              # forward, backward, optimizer step
        schedule.after_step(params, step)
        with schedule.pruned(params):    # score or save: re-pruned inside, untouched afterwards
            ...
    schedule.finish(params, last)        # the weights become what is reported

A method that needs several fine-tuning runs asks for more ``num_stages``: before each the loop
puts the initial weights back and calls ``start`` with the stage and the best weights of the stage
before. To add a method: one class here, one line in ``SCHEDULES``.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from pruning.masks import (
    apply_masks,
    largest_dropped,
    magnitude_masks,
    mask_changes,
    mask_iou,
)

Params = Mapping[str, Tensor]
Masks = dict[str, Tensor]


@dataclass(frozen=True)
class Reprune:
    """What one re-prune did.

    Attributes:
        threshold: Magnitude of the largest weight that was dropped.
        revived: Weights dropped by the mask before and kept by the new one.
        newly_pruned: Weights kept by the mask before and dropped by the new one.
        iou_first: Intersection over union of the kept sets of the first mask and the new one.
    """

    threshold: float
    revived: int
    newly_pruned: int
    iou_first: float


@dataclass(frozen=True)
class Snapshot:
    """The model as it would be reported now.

    Attributes:
        masks: Masks of the re-pruned weights; empty for a dense model.
        adjusted: The weights in training by name, where re-pruning changed them; else empty.
    """

    masks: Masks
    adjusted: Masks


class Schedule:
    """The interface that the loop calls; by itself one magnitude mask, applied once.

    ``params`` are always the in-scope parameters by native name; they are changed in place and
    never replaced, so the optimizer's state carries on across re-prunes.

    Args:
        sparsity: Fraction of the in-scope weights to drop, in [0, 1).
        granularity: "global" or "layerwise" ranking.
        prune_every: Optimizer steps between re-prunes, for methods that re-prune.

    Attributes:
        num_stages: Fine-tuning runs that the method needs.
        first_masks: Masks that the stage began with.
        masks: Masks of the latest prune.

    Raises:
        ValueError: If ``sparsity`` is outside [0, 1) or ``prune_every`` is not positive.
    """

    num_stages = 1

    def __init__(self, sparsity: float, granularity: str = "global", prune_every: int = 50) -> None:
        if not 0.0 <= sparsity < 1.0:
            raise ValueError(
                f"sparsity {sparsity:g} is out of range: give a fraction in [0, 1), "
                "0.6 for 60 percent"
            )
        if prune_every < 1:
            raise ValueError(f"prune_every {prune_every} is not positive: give optimizer steps")
        self.sparsity = sparsity
        self.granularity = granularity
        self.prune_every = prune_every
        self.first_masks: Masks = {}
        self.masks: Masks = {}

    def initial_masks(self, params: Params, stage: int, previous: Params | None) -> Masks:
        """Choose the masks to begin ``stage`` with.

        Args:
            params: In-scope parameters at their initial weights.
            stage: Which fine-tuning run of the method this is, from 0.
            previous: Best weights of the stage before; None in stage 0.
        """
        return magnitude_masks(params, self.sparsity, self.granularity)

    def start(
        self,
        params: Params,
        transferred: Masks | None = None,
        stage: int = 0,
        previous: Params | None = None,
    ) -> None:
        """Zero what the initial masks drop, or what ``transferred`` masks from elsewhere drop."""
        self.first_masks = transferred or self.initial_masks(params, stage, previous)
        self.masks = self.first_masks
        apply_masks(params, self.masks)

    def after_step(self, params: Params, step: int) -> Reprune | None:
        """Do what the method does after optimizer step number ``step`` (from 1)."""
        return None

    @contextmanager
    def pruned(self, params: Params) -> Iterator[Snapshot]:
        """Make ``params`` the model that would be reported now; undo it at the end."""
        yield Snapshot(self.masks, adjusted={})

    def finish(self, params: Params, step: int) -> Reprune | None:
        """Make ``params`` the final model after the last step, number ``step``."""
        return None

    def state_dict(self) -> dict[str, Masks]:
        """Return what resuming needs: the first masks and the present ones."""
        return {"first_masks": self.first_masks, "masks": self.masks}

    def load_state_dict(self, state: Mapping[str, Masks], params: Params) -> None:
        """Take up the state that ``state_dict`` returned, on the devices of ``params``."""
        self.first_masks, self.masks = (
            {name: mask.to(params[name].device) for name, mask in state[kind].items()}
            for kind in ("first_masks", "masks")
        )


class Dense(Schedule):
    """Fine-tune without pruning."""

    def initial_masks(self, params: Params, stage: int, previous: Params | None) -> Masks:
        """Return no masks."""
        return {}


class MagnitudePruning(Schedule):
    """MPI: one mask from the magnitudes of the initial weights, enforced after every step.

    Source:
        Lai et al. 2021 (arXiv:2106.05933), the MPI baseline. The authors' code hides dropped
        weights behind a reparametrisation; here the weights themselves are set back to zero
        after each step, which stops weight decay and momentum from moving them too.
    """

    def after_step(self, params: Params, step: int) -> Reprune | None:
        """Set the dropped weights back to zero."""
        apply_masks(params, self.masks)
        return None


class PARP(Schedule):
    """Prune, adjust, re-prune: dropped weights are zeroed, then train freely and may come back.

    1. Prune: ``start`` zeroes the smallest magnitudes of the initial weights.
    2. Adjust: every weight trains, the zeroed ones too; no mask takes part in a step.
    3. Re-prune: every ``prune_every`` steps, and once at the end, all weights are ranked anew and
       the smallest are zeroed. The mask before plays no part in the ranking.

    Source:
        Lai et al. 2021 (arXiv:2106.05933); the authors' code,
        train_with_oneshot_permanent.py. Unlike theirs, the interval is in optimizer steps rather
        than epochs, and whatever is scored, saved or left at the end has been re-pruned; theirs
        scores and saves before the re-prune.
    """

    def after_step(self, params: Params, step: int) -> Reprune | None:
        """Re-prune every ``prune_every`` steps; in between leave the weights to the optimizer."""
        return self._reprune(params) if step % self.prune_every == 0 else None

    @contextmanager
    def pruned(self, params: Params) -> Iterator[Snapshot]:
        """Re-prune ``params``; at the end put the adjusted weights back bit for bit."""
        masks = magnitude_masks(params, self.sparsity, self.granularity)
        adjusted = {name: param.detach().clone() for name, param in params.items()}
        apply_masks(params, masks)
        try:
            yield Snapshot(masks, adjusted)
        finally:
            with torch.no_grad():
                for name, param in params.items():
                    param.copy_(adjusted[name])

    def finish(self, params: Params, step: int) -> Reprune | None:
        """Re-prune for good, unless step number ``step`` has just done it."""
        return self._reprune(params) if step % self.prune_every else None

    def _reprune(self, params: Params) -> Reprune:
        masks = magnitude_masks(params, self.sparsity, self.granularity)
        revived, newly_pruned = mask_changes(self.masks, masks)
        event = Reprune(
            threshold=largest_dropped(params, masks),
            revived=revived,
            newly_pruned=newly_pruned,
            iou_first=mask_iou(self.first_masks, masks),
        )
        self.masks = masks
        apply_masks(params, masks)
        return event


SCHEDULES: dict[str, type[Schedule]] = {"dense": Dense, "mpi": MagnitudePruning, "parp": PARP}


def build_schedule(
    method: str, sparsity: float, granularity: str = "global", prune_every: int = 50
) -> Schedule:
    """Build the schedule registered as ``method``.

    Raises:
        ValueError: If no such method is registered, or an option is out of range.
    """
    if method not in SCHEDULES:
        raise ValueError(f"method {method!r} is unknown: choose one of {', '.join(SCHEDULES)}")
    return SCHEDULES[method](sparsity, granularity, prune_every)
