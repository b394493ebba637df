"""When weights are pruned: one small class a method, called by the loop between optimizer steps.

What the loop calls, and what ``stages`` are, is in pruning/interface.py; the methods that PARP is
compared with are in pruning/baselines.py. To add a method: one class here and one line in
``SCHEDULES``; docs/method.md has a worked example.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from pruning.baselines import (
    Dense,
    IterativePruning,
    MagnitudePruning,
    OneShotPruning,
    RandomPruning,
)
from pruning.interface import (
    Masks,
    Params,
    PruneOptions,
    Reprune,
    Schedule,
    Snapshot,
    refuse_pattern,
    restore_weights,
)
from pruning.masks import apply_masks, largest_dropped, mask_iou, mask_overlap


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

    def sparsity_at(self, step: int) -> float:
        """Return the sparsity to re-prune to after ``step``."""
        return self.options.sparsity

    def after_step(self, params: Params, step: int) -> Reprune | None:
        """Re-prune every ``prune_every`` steps; in between leave the weights to the optimizer."""
        return self._reprune(params, step) if step % self.options.prune_every == 0 else None

    @contextmanager
    def pruned(self, params: Params) -> Iterator[Snapshot]:
        """Re-prune ``params`` to the target; at the end put the adjusted weights back exactly."""
        masks = self.rank(params)
        adjusted = {name: param.detach().clone() for name, param in params.items()}
        apply_masks(params, masks)
        try:
            yield Snapshot(masks, adjusted)
        finally:
            restore_weights(params, adjusted)

    def finish(self, params: Params, step: int) -> Reprune | None:
        """Re-prune for good, unless step number ``step`` has just done it."""
        return self._reprune(params, step) if step % self.options.prune_every else None

    def _reprune(self, params: Params, step: int) -> Reprune:
        sparsity = self.sparsity_at(step)
        masks = self.rank(params, sparsity)
        changes = mask_overlap(self.masks, masks)
        event = Reprune(
            sparsity=sparsity,
            threshold=largest_dropped(params, masks),
            revived=changes.second_only,
            newly_pruned=changes.first_only,
            iou_first=mask_iou(self.first_masks, masks),
            iou_previous=changes.iou,
        )
        self.masks = masks
        apply_masks(params, masks)
        return event


class ProgressivePARP(PARP):
    """PARP-P: PARP whose sparsity rises from a lower one to the target.

    It rises at each re-prune over the first ``grow_until`` of the steps, linearly or cubically
    (fast at first). Scores and checkpoints are always of the model pruned to the target.

    Source:
        Lai et al. 2021, PARP-P; the authors' train_with_oneshot_permanent-growing.py. Theirs grows
        linearly over the whole run and may overshoot by one increment; this is clamped. The cubic
        rise is that of Zhu and Gupta 2017 (arXiv:1710.01878).
    """

    def __init__(self, options: PruneOptions) -> None:
        """Take ``options``; raise ValueError for a pattern, which has one sparsity only."""
        super().__init__(options)
        refuse_pattern(options, "parp-p")

    def initial_masks(self, params: Params, previous: Params | None) -> Masks:
        """Rank the initial weights at the lower sparsity."""
        return self.rank(params, self.sparsity_at(0))

    def sparsity_at(self, step: int) -> float:
        """Return the sparsity on its way after ``step``."""
        target, start = self.options.sparsity, self.options.start_sparsity
        start = target / 2 if start is None else start
        progress = step / (self.options.grow_until * self.num_steps)
        if progress >= 1.0:
            return target
        risen = progress if self.options.growth == "linear" else 1.0 - (1.0 - progress) ** 3
        return min(target, start + (target - start) * risen)

    def finish(self, params: Params, step: int) -> Reprune | None:
        """Re-prune to the target, unless step number ``step`` has just done it."""
        reached = self.sparsity_at(step) == self.options.sparsity
        if step % self.options.prune_every == 0 and reached:
            return None
        return self._reprune(params, self.num_steps)


class PARPMask(PARP):
    """The mask that PARP found, trained from the initial weights as a static one.

    It tells how much of PARP's result is the mask and how much the weights.

    Source:
        The authors' finetune_oneshot-pap.sh.
    """

    stages = ("parp", "final")

    def after_step(self, params: Params, step: int) -> Reprune | None:
        """Do as PARP in stage 0; then set the dropped weights back to zero."""
        if self.stage == 0:
            return super().after_step(params, step)
        apply_masks(params, self.masks)
        return None

    def initial_masks(self, params: Params, previous: Params | None) -> Masks:
        """Rank the initial weights, then PARP's, whose zeros are the smallest."""
        return self.rank(params if previous is None else previous)

    def finish(self, params: Params, step: int) -> Reprune | None:
        """Re-prune at the end of stage 0."""
        return super().finish(params, step) if self.stage == 0 else None


class CooldownPARP(PARP):
    """PARP that re-prunes for the last time before the end and goes on under that mask.

    It tells whether PARP's last adjustments, which the final re-prune cuts off, do harm. Not in the
    paper.
    """

    def after_step(self, params: Params, step: int) -> Reprune | None:
        """Do as PARP, re-prune when the cool-down begins, then hold the mask."""
        if step < self._last_free_step:
            return super().after_step(params, step)
        if step == self._last_free_step:
            return self._reprune(params, step)
        apply_masks(params, self.masks)
        return None

    def finish(self, params: Params, step: int) -> Reprune | None:
        """Do nothing: the cool-down has begun with the final mask."""
        return None

    @property
    def _last_free_step(self) -> int:
        return max(1, round((1.0 - self.options.cooldown) * self.num_steps))


SCHEDULES: dict[str, type[Schedule]] = {
    "dense": Dense,
    "rp": RandomPruning,
    "mpi": MagnitudePruning,
    "omp": OneShotPruning,
    "imp": IterativePruning,
    "parp": PARP,
    "parp-p": ProgressivePARP,
    "parp-mask": PARPMask,
    "parp-cooldown": CooldownPARP,
}


def build_schedule(method: str, options: PruneOptions) -> Schedule:
    """Build the schedule registered as ``method``.

    Raises:
        ValueError: If no such method is registered, or it cannot follow the options.
    """
    if method not in SCHEDULES:
        raise ValueError(f"method {method!r} is unknown: choose one of {', '.join(SCHEDULES)}")
    return SCHEDULES[method](options)
