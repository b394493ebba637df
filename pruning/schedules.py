"""When weights are pruned: one small class a method, called by the loop between optimizer steps.

What the loop calls, and what ``stages`` are, is in pruning/interface.py; the methods that PARP is
compared with are in pruning/baselines.py. To add a method: one class, with its options, and one
line in ``SCHEDULES``; docs/method.md has worked examples.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from data.files import JsonObject
from data.options import option, with_fields_of
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
    copy_weights,
    refuse_pattern,
)
from pruning.masks import apply_masks, largest_dropped, mask_iou, mask_overlap

DECAY_RISES = 0.25  # share of the steps over which the decay of latent weights rises


@dataclass(frozen=True, kw_only=True)
class AdjustOptions(PruneOptions):
    """When weights are ranked anew."""

    prune_every: int = option("optimizer steps between re-prunes", 50, positive=True)

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        if self.prune_every < 1:
            raise ValueError(
                f"prune_every {self.prune_every} is not positive: give optimizer steps"
            )


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

    title = "PARP"
    options: AdjustOptions
    reprunes = True
    projects = True

    @property
    def last_prune(self) -> int:
        """Step after which the weights are pruned for the last time."""
        return self.num_steps

    def sparsity_at(self, step: int) -> float:
        """Return the sparsity to re-prune to after ``step``."""
        return self.options.sparsity

    def prunes_at(self, step: int) -> bool:
        """Return whether ``prune_every`` divides ``step``."""
        return step % self.options.prune_every == 0

    def after_step(self, params: Params, step: int) -> Reprune | None:
        """Re-prune every ``prune_every`` steps; in between leave the weights to the optimizer."""
        return self._reprune(params, step) if self.prunes_at(step) else None

    @contextmanager
    def pruned(self, params: Params) -> Iterator[Snapshot]:
        """Re-prune ``params`` to the target; at the end put the adjusted weights back exactly."""
        masks = self.rank(params)
        adjusted = {name: param.detach().clone() for name, param in params.items()}
        apply_masks(params, masks)
        try:
            yield Snapshot(masks, adjusted)
        finally:
            copy_weights(params, adjusted)

    def finish(self, params: Params, step: int) -> Reprune | None:
        """Re-prune for good, unless step number ``step`` has just done it."""
        return None if step and self.prunes_at(step) else self._reprune(params, step)

    def _reprune(self, params: Params, step: int) -> Reprune:
        sparsity = self.sparsity_at(step)
        masks = self.rank(params, sparsity)
        threshold = largest_dropped(params, masks)
        if step == self.last_prune:
            masks = self.project(params, masks)
        changes = mask_overlap(self.masks, masks)
        event = Reprune(
            sparsity=sparsity,
            threshold=threshold,
            revived=changes.second_only,
            newly_pruned=changes.first_only,
            iou_first=mask_iou(self.first_masks, masks),
            iou_previous=changes.iou,
        )
        self.masks = masks
        self.drop(params, step)
        return event


@dataclass(frozen=True, kw_only=True)
class ProgressiveOptions(AdjustOptions):
    """How the sparsity rises."""

    start_sparsity: float | None = option(
        "sparsity to begin with; without it half of --sparsity", None
    )
    growth: str = option("how the sparsity rises", "linear", ("linear", "cubic"))
    grow_until: float = option("share of the steps in which the sparsity rises", 0.75)

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        start = self.start_sparsity
        if start is not None and not 0.0 <= start <= self.sparsity:
            raise ValueError(
                f"start sparsity {start:g} is out of range: give a fraction from 0 to the "
                f"sparsity, {self.sparsity:g}"
            )
        if not 0.0 < self.grow_until <= 1.0:
            raise ValueError(f"grow_until {self.grow_until:g} is no share: give one in (0, 1]")


class ProgressivePARP(PARP):
    """PARP-P: PARP whose sparsity rises from a lower one to the target.

    It rises at each re-prune over the first ``grow_until`` of the steps, linearly or cubically
    (fast at first). Scores and checkpoints are always of the model pruned to the target.

    Source:
        Lai et al. 2021, PARP-P; the authors' train_with_oneshot_permanent-growing.py. Theirs grows
        linearly over the whole run and may overshoot by one increment; this is clamped. The cubic
        rise is that of Zhu and Gupta 2017 (arXiv:1710.01878).
    """

    title = "PARP-P"
    options: ProgressiveOptions

    def __init__(self, options: ProgressiveOptions) -> None:
        """Take ``options``; raise ValueError for a pattern, which has one sparsity only."""
        super().__init__(options)
        refuse_pattern(options, "parp-p")

    def initial_masks(self, params: Params, previous: Params | None) -> Masks:
        """Rank the initial weights at the lower sparsity."""
        return self.rank(params, self.sparsity_at(0))

    def sparsity_at(self, step: int) -> float:
        """Return the sparsity on its way after ``step``."""
        target = self.options.sparsity
        start = self.options.start_sparsity
        start = target / 2 if start is None else start
        rising = self.options.grow_until * self.num_steps
        if step >= rising:
            return target
        progress = step / rising
        risen = progress if self.options.growth == "linear" else 1.0 - (1.0 - progress) ** 3
        return min(target, start + (target - start) * risen)

    def finish(self, params: Params, step: int) -> Reprune | None:
        """Re-prune to the target, unless step number ``step`` has just done it."""
        reached = self.sparsity_at(step) == self.options.sparsity
        if step and self.prunes_at(step) and reached:
            return None
        return self._reprune(params, self.num_steps)


class PARPMask(PARP):
    """The mask that PARP found, trained from the initial weights as a static one.

    It tells how much of PARP's result is the mask and how much the weights.

    Source:
        The authors' finetune_oneshot-pap.sh.
    """

    title = "PARP mask"
    stages = ("parp", "final")
    has_stages = True
    projects = False

    def prunes_at(self, step: int) -> bool:
        """Return in stage 0 what PARP does, after it False."""
        return self.stage == 0 and super().prunes_at(step)

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


@dataclass(frozen=True, kw_only=True)
class CooldownOptions(AdjustOptions):
    """How long the final mask is held."""

    cooldown: float | None = option(
        "share of the steps under the final mask; without it 0.2, for gmp a third", None
    )

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        if self.cooldown is not None and not 0.0 <= self.cooldown < 1.0:
            raise ValueError(f"cooldown {self.cooldown:g} is no share: give one in [0, 1)")


class CooldownPARP(PARP):
    """PARP that re-prunes for the last time before the end and goes on under that mask.

    It tells whether PARP's last adjustments, which the final re-prune cuts off, do harm. Not in the
    paper.

    Attributes:
        default_cooldown: Share of the steps under the final mask where the options give none.
    """

    title = "PARP cool-down"
    options: CooldownOptions
    default_cooldown: ClassVar[float] = 0.2

    @classmethod
    def resolve(cls, options: Mapping[str, Any]) -> JsonObject:
        """Return ``options`` with a cool-down."""
        given = options.get("cooldown")
        return {**options, "cooldown": cls.default_cooldown if given is None else given}

    @property
    def cooldown(self) -> float:
        """Share of the steps under the final mask."""
        given = self.options.cooldown
        return self.default_cooldown if given is None else given

    @property
    def last_prune(self) -> int:
        """Step after which the final mask is made and held."""
        return min(self.num_steps, max(1, round((1.0 - self.cooldown) * self.num_steps)))

    def prunes_at(self, step: int) -> bool:
        """Return what PARP does until the cool-down begins, and True when it begins."""
        return step == self.last_prune or (step < self.last_prune and super().prunes_at(step))

    def after_step(self, params: Params, step: int) -> Reprune | None:
        """Do as PARP, re-prune when the cool-down begins, then hold the mask."""
        if step <= self.last_prune:
            return super().after_step(params, step)
        apply_masks(params, self.masks)
        return None

    def finish(self, params: Params, step: int) -> Reprune | None:
        """Do nothing, unless no step has been taken: the cool-down began with the final mask."""
        return None if step else super().finish(params, step)


@dataclass(frozen=True, kw_only=True)
class LatentOptions(CooldownOptions):
    """What becomes of pruned weights that keep their values."""

    latent_decay: float = option(
        "decay of pruned weights a step, times the learning rate; rises to this over the first "
        "quarter of the steps",
        0.0,
    )

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        if not self.latent_decay >= 0.0:
            raise ValueError(
                f"latent_decay {self.latent_decay:g} is negative: give a positive number, or 0"
            )


class LatentPARP(CooldownPARP):
    """PARP whose pruned weights keep their values, out of the forward pass, until they come back.

    1. Prune: the mask drops the smallest magnitudes; what it drops keeps its value, here called
       latent, and takes no part in the forward pass.
    2. Adjust: the gradient is taken at the masked weights and moves *all* entries, the latent ones
       too (straight through), through Adam as any other. With ``latent_decay`` those shrink after
       each step by the factor 1 - lr * decay; the decay rises linearly over the first quarter.
    3. Re-prune: every ``prune_every`` steps all entries, latent or not, are ranked anew.
    4. For the last ``cooldown`` of the steps the final mask is held and what it drops is zero.

    PARP's zeroed weight has to climb from 0 to the threshold in one interval; a latent one starts
    where it was. What is scored and saved is ranked anew and has real zeros at any time. The
    gradient's norm, by which it is clipped, counts the latent entries.

    Source:
        SR-STE (Zhou et al. 2021, arXiv:2102.04010) is the case ``prune_every`` = 1; theirs ranks in
        groups N:M, and its decay is a part of the gradient, which Adam would rescale, where ours is
        decoupled as AdamW's. The annealed decay is that of thu-ml/Adaptive-Sparse-Trainer. The
        cool-down is ours. An infinite decay makes this a held mask, and zeroing in place of keeping
        makes it PARP with a cool-down.
    """

    title = "PARP latent"
    options: LatentOptions

    def __init__(self, options: LatentOptions) -> None:
        """Take ``options``."""
        super().__init__(options)
        self.latent = True
        self._kept: dict[str, Tensor] = {}

    @contextmanager
    def forward_weights(self, params: Params, step: int) -> Iterator[None]:
        """Set what the masks drop to zero; at the end put its values back exactly."""
        if not self._is_latent(step - 1):
            self._kept = {}
            yield
            return
        if not self._kept:  # memory that is used again in every step
            self._kept = {name: torch.empty_like(param) for name, param in params.items()}
        copy_weights(self._kept, params)
        apply_masks(params, self.masks)
        try:
            yield
        finally:
            copy_weights(params, self._kept)

    def drop(self, params: Params, step: int) -> None:
        """Leave the values alone until the mask is held, then set them to zero."""
        if not self._is_latent(step):
            super().drop(params, step)

    def project(self, params: Params, masks: Masks) -> Masks:
        """Fit the kept weights to the model that was trained, without the latent values."""
        if self.latent and self.options.projection != "none":
            apply_masks(params, self.masks)
        return super().project(params, masks)

    def after_step(self, params: Params, step: int) -> Reprune | None:
        """Let latent weights decay, then do as PARP with a cool-down."""
        if self._is_latent(step - 1) and self.options.latent_decay:
            self._decay(params, step)
        return super().after_step(params, step)

    def _is_latent(self, step: int) -> bool:
        """Return whether what is dropped has kept its values after ``step``."""
        return self.latent and step < self.last_prune

    @torch.no_grad()
    def _decay(self, params: Params, step: int) -> None:
        assert self.optimizer is not None
        rising = min(1.0, step / (DECAY_RISES * self.num_steps))
        factor = max(0.0, 1.0 - self.optimizer.lr * self.options.latent_decay * rising)
        for name, mask in self.masks.items():
            params[name].copy_(torch.where(mask, params[name], params[name] * factor))


@dataclass(frozen=True, kw_only=True)
class GradualOptions(LatentOptions):
    """How pruning begins, and what becomes of pruned weights while the sparsity grows."""

    dense_share: float = option("share of the steps before anything is pruned", 0.1)
    latent: bool = option(
        "until the final mask, pruned weights keep their values outside the forward pass, as in "
        "parp-latent",
        False,
    )
    rate_per_phase: bool = option(
        "the dense share has a whole learning rate schedule, from warm-up to fall, and the rest "
        "of the steps another: with --teacher self two runs in one",
        False,
    )

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        if not 0.0 <= self.dense_share < 1.0:
            raise ValueError(f"dense_share {self.dense_share:g} is no share: give one in [0, 1)")
        if self.rate_per_phase and self.lr_restart:
            raise ValueError("--rate-per-phase and --lr-restart are two schedules: leave one out")
        if self.rate_per_phase and not self.dense_share:
            raise ValueError(
                "--rate-per-phase is for two phases, and --dense-share 0 leaves one: raise it, or "
                "leave this out"
            )


class GradualPruning(LatentPARP):
    """GMP: dense at first, then ever sparser, then the mask is held to the end.

    Nothing is pruned in the first ``dense_share`` of the steps. Then the sparsity grows, at
    re-prunes every ``prune_every`` steps, as target * (1 - (1 - progress)^3), fast at first, and
    reaches the target when the last ``cooldown`` of the steps begins, by default a third. From
    there the dropped weights are set back to zero after every step. Scores and checkpoints are
    always of the model pruned to the target, as PARP-P's, so those before the growth ends say how
    far the weights are from bearing it.

    While the sparsity grows, pruned weights are treated as PARP's: zeroed at a re-prune, free to
    train until the next, ranked by what they have become. With ``latent`` they keep their values
    out of the forward pass, as in :class:`LatentPARP`.

    Source:
        Zhu and Gupta 2017 (arXiv:1710.01878). In their TensorFlow code (contrib/model_pruning) a
        masked weight keeps its value, gets no gradient, and comes back only where others have
        fallen below it; in its successor (tensorflow/model-optimization) it is set back to zero in
        every step and so is gone for good. Ours may grow back by its gradient until the hold.
    """

    title = "GMP"
    options: GradualOptions
    takes_masks = False
    ranks_untrained = False
    default_cooldown = 1 / 3

    def __init__(self, options: GradualOptions) -> None:
        """Take ``options``; raise ValueError for a pattern, or where no steps are left to grow."""
        super().__init__(options)
        refuse_pattern(options, "gmp")
        if options.dense_share + self.cooldown >= 1.0:
            raise ValueError(
                f"dense_share {options.dense_share:g} and cooldown {self.cooldown:g} leave no "
                "steps for the sparsity to grow in: give less, together under 1"
            )
        if options.latent_decay and not options.latent:
            raise ValueError("--latent-decay is for gmp with --latent: add it, or leave this out")
        self.latent = options.latent

    @property
    def dense_steps(self) -> int:
        """The first ``dense_share`` of the steps."""
        return round(self.options.dense_share * self.num_steps)

    @property
    def rate_phases(self) -> tuple[int, ...]:
        """Where the dense share ends, if the options give each phase a schedule."""
        return (self.dense_steps,) if self.options.rate_per_phase else ()

    @property
    def has_dense_phase(self) -> bool:
        """Whether the dense share is above 0."""
        return self.options.dense_share > 0.0

    def start(self, params: Params, num_steps: int, *args: Any, **kwargs: Any) -> None:
        """Begin; raise ValueError where a phase with a schedule of the rate has no step."""
        super().start(params, num_steps, *args, **kwargs)
        if self.options.rate_per_phase and num_steps and not self.dense_steps:
            raise ValueError(
                f"--rate-per-phase: the dense share has none of the {num_steps} steps; raise "
                "--dense-share, or --steps"
            )

    def initial_masks(self, params: Params, previous: Params | None) -> Masks:
        """Return masks that drop nothing."""
        return self.rank(params, 0.0)

    def sparsity_at(self, step: int) -> float:
        """Return the sparsity on its way after ``step``."""
        if step >= self.last_prune:
            return self.options.sparsity
        if step <= self.dense_steps:
            return 0.0
        progress = (step - self.dense_steps) / (self.last_prune - self.dense_steps)
        return self.options.sparsity * (1.0 - (1.0 - progress) ** 3)

    def prunes_at(self, step: int) -> bool:
        """Return True every ``prune_every`` steps of the growth, and at its end."""
        return self.sparsity_at(step) > 0.0 and super().prunes_at(step)


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
    "gmp": GradualPruning,
    "parp-latent": LatentPARP,
}


@with_fields_of(cls.options_type() for cls in SCHEDULES.values())
@dataclass(frozen=True, kw_only=True)
class MethodOptions(PruneOptions):
    """The options of every method; those that a method does not take change nothing in it."""


OPTIONS_TAKEN = {name: cls.options_taken() for name, cls in SCHEDULES.items()}


def methods_taking(option: str) -> str:
    """Return the names of the methods that take an option of a name, joined by commas."""
    return ", ".join(name for name, taken in OPTIONS_TAKEN.items() if option in taken)


def prunes(method: str) -> bool:
    """Return whether a method, of this program or another one, prunes anything."""
    return method not in SCHEDULES or SCHEDULES[method].prunes


def title_of(method: str) -> str:
    """Return how a method is written in tables; by itself its name."""
    return str(vars(SCHEDULES[method]).get("title", method)) if method in SCHEDULES else method


def is_reference(method: str) -> bool:
    """Return whether reports test other methods against one."""
    return method in SCHEDULES and SCHEDULES[method].is_reference


def build_schedule(method: str, options: PruneOptions) -> Schedule:
    """Build the schedule registered as ``method``.

    Args:
        method: A key of ``SCHEDULES``.
        options: Of the method's own type, or of one that inherits from it, as ``MethodOptions``.

    Raises:
        ValueError: If no such method is registered, or it cannot follow the options.
    """
    if method not in SCHEDULES:
        raise ValueError(f"method {method!r} is unknown: choose one of {', '.join(SCHEDULES)}")
    cls = SCHEDULES[method]
    if not isinstance(options, cls.options_type()):
        raise ValueError(f"{method} takes {cls.options_type().__name__}: give those")
    if options.score == "fisher" and cls.ranks and cls.ranks_untrained:
        ranking = [name for name, each in SCHEDULES.items() if each.ranks]
        able = ", ".join(name for name in ranking if not SCHEDULES[name].ranks_untrained)
        raise ValueError(
            f"score fisher needs Adam's second moments, and {method} ranks weights that no step "
            f"has moved: use it with {able}, or give another score"
        )
    if options.projection == "obs" and options.init_mask and cls.holds_masks:
        raise ValueError(f"{method} holds --init-mask and projection obs changes it: give refit")
    if options.projection != "none" and not cls.projects:
        able = methods_taking("projection")
        raise ValueError(f"--projection is not for {method}: use it with {able}")
    return cls(options)
