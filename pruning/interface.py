"""What the training loop asks of a pruning method, and the options that methods take.

The loop in train.py knows just this:

    for stage, name in enumerate(schedule.stages):
        schedule.start(params, num_steps, stage, ...)   # initial weights in place: prune them
        for step in 1, 2, ..., num_steps:
            with schedule.forward_weights(params, step):
                ...                                     # forward and backward of every batch
            ...                                         # optimizer step
            schedule.after_step(params, step)
            with schedule.pruned(params):               # score or save: the model as reported
                ...
        schedule.finish(params, num_steps)              # the weights become what is reported
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from data.options import option
from pruning.masks import apply_masks, check_pattern, count_zeros, magnitude_masks
from pruning.projection import PROJECTIONS, project
from pruning.scores import SCORES, fisher_scores, lamp_scores

Params = Mapping[str, Tensor]
Masks = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class PruneOptions:
    """Which weights are pruned and when.

    Every field is a flag of train.py.

    Raises:
        ValueError: If a value is out of range.
    """

    sparsity: float = option("fraction in [0, 1) of the in-scope weights to drop", 0.0)
    granularity: str = option("what is ranked together", "global", ("global", "layerwise"))
    pattern: str = option(
        "unstructured, or N:M, which keeps N of every M neighbours in a row", "unstructured"
    )
    score: str = option(
        "what weights are ranked by: magnitude; lamp, magnitude in relation to the larger ones of "
        "the same tensor; fisher, magnitude times the root of Adam's second moment (gmp)",
        "magnitude",
        SCORES,
    )
    projection: str = option(
        "how the last prune fits what stays to the inputs of its layers, on a few batches: refit "
        "solves for the weights of the mask; obs has SparseGPT choose in each layer what stays, "
        "then does the same",
        "none",
        PROJECTIONS,
    )
    prune_every: int = option("optimizer steps between re-prunes", 50, positive=True)
    start_sparsity: float | None = option(
        "parp-p: sparsity to begin with; without it half of --sparsity", None
    )
    growth: str = option("parp-p: how the sparsity rises", "linear", ("linear", "cubic"))
    grow_until: float = option("parp-p: share of the steps in which the sparsity rises", 0.75)
    cooldown: float | None = option(
        "parp-cooldown, parp-latent, gmp: share of the steps under the final mask; without it 0.2, "
        "for gmp a third",
        None,
    )
    dense_share: float = option("gmp: share of the steps before anything is pruned", 0.1)
    latent: bool = option(
        "gmp: until the final mask, pruned weights keep their values outside the forward pass, as "
        "in parp-latent",
        False,
    )
    latent_decay: float = option(
        "parp-latent, gmp --latent: decay of pruned weights a step, times the learning rate; rises "
        "to this over the first quarter of the steps",
        0.0,
    )
    random_mask: str = option(
        "rp: every weight alike, or the authors' magnitudes of a random initialisation, which "
        "drop the biases first",
        "uniform",
        ("uniform", "init"),
    )
    round_steps: int | None = option(
        "imp: steps of a round; without it those of a full run", None, positive=True
    )
    rewind_step: int = option(
        "omp, imp: step of the dense stage to rewind to; 0 is the initial weights", 0
    )
    scope: str | None = option(
        "prunable parameters, one of the model's scopes: encoder or, with a decoder too, "
        "encoder_decoder, encoder, decoder; without it the whole transformer",
        None,
    )
    biases: bool | None = option(
        "biases are in the scope; without it they are, but for a pattern N:M", None
    )
    lr_restart: bool = option(
        "after the warm-up the learning rate falls to a tenth by the next re-prune, there starts "
        "again at its peak, and so on, in place of --hold; for methods with few re-prunes, no "
        "change for those without",
        False,
    )
    zero_moments: bool = option("forget Adam's moments of weights when they are pruned", False)
    init_mask: str | None = option(
        "masks of another run to begin with: its masks.pt, or a checkpoint of a pruned model", None
    )
    reuse: str | None = option(
        "run folder whose finished stages are taken over, where they are the same", None
    )
    seed: int = option("seed of weights, data order, dropout, masking and random masks", 0)

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0.0 <= self.sparsity < 1.0:
            raise ValueError(
                f"sparsity {self.sparsity:g} is out of range: give a fraction in [0, 1), "
                "0.6 for 60 percent"
            )

        if self.prune_every < 1:
            raise ValueError(
                f"prune_every {self.prune_every} is not positive: give optimizer steps"
            )
        start = self.start_sparsity
        if start is not None and not 0.0 <= start <= self.sparsity:
            raise ValueError(
                f"start sparsity {start:g} is out of range: give a fraction from 0 to the "
                f"sparsity, {self.sparsity:g}"
            )

        if not 0.0 < self.grow_until <= 1.0:
            raise ValueError(f"grow_until {self.grow_until:g} is no share: give one in (0, 1]")
        if self.cooldown is not None and not 0.0 <= self.cooldown < 1.0:
            raise ValueError(f"cooldown {self.cooldown:g} is no share: give one in [0, 1)")
        if not 0.0 <= self.dense_share < 1.0:
            raise ValueError(f"dense_share {self.dense_share:g} is no share: give one in [0, 1)")

        if not self.latent_decay >= 0.0:
            raise ValueError(
                f"latent_decay {self.latent_decay:g} is negative: give a positive number, or 0"
            )
        if self.rewind_step < 0:
            raise ValueError(f"rewind_step {self.rewind_step} is negative: give a step, or 0")

        if self.init_mask and self.pattern != "unstructured":
            raise ValueError(f"--init-mask keeps no pattern {self.pattern}: leave one of them out")
        if self.projection == "obs" and self.pattern != "unstructured":
            raise ValueError(f"projection obs keeps no pattern {self.pattern}: give refit")
        if self.sparsity:
            check_pattern(self.pattern, self.sparsity)


@dataclass(frozen=True)
class Reprune:
    """What one re-prune did.

    Attributes:
        sparsity: Fraction that was dropped.
        threshold: Magnitude of the largest weight that was dropped.
        revived: Weights dropped by the mask before and kept by the new one.
        newly_pruned: Weights kept by the mask before and dropped by the new one.
        iou_first: Intersection over union of the kept sets of the first mask and the new one.
        iou_previous: The same of the mask before and the new one.
    """

    sparsity: float
    threshold: float
    revived: int
    newly_pruned: int
    iou_first: float
    iou_previous: float


@dataclass(frozen=True)
class Snapshot:
    """The model as it would be reported now.

    Attributes:
        masks: Masks of the re-pruned weights; empty for a dense model.
        adjusted: The weights in training by name, where re-pruning changed them; else empty.
    """

    masks: Masks
    adjusted: Masks


class Adam(Protocol):
    """What a method may ask of the optimizer.

    Attributes:
        lr: Learning rate of the latest step.
    """

    lr: float

    def second_moments(self, params: Params) -> dict[str, Tensor]:
        """Return Adam's running means of squared gradients by name of ``params``.

        Raises:
            ValueError: If no step has been taken yet.
        """
        ...


class Schedule:
    """The interface that the loop calls; by itself one magnitude mask, applied once.

    ``params`` are always the in-scope parameters by native name; they are changed in place and
    never replaced, so the optimizer's state carries on across re-prunes.

    Attributes:
        options: What decides which weights are pruned and when.
        stages: Names of the fine-tuning runs that the method needs; each begins with the initial
            weights, and its best weights are handed to the next.
        takes_masks: Whether stage 0 may begin with the masks of another run.
        holds_masks: Whether the first masks are also the last.
        default_cooldown: Share of the steps under the final mask, in methods that end with one,
            where the options give none.
        rewinds: Whether stage 0 is dense, so that its early states may be rewound to.
        projects: Whether the last prune can be followed by a projection.
        ranks_untrained: Whether weights are ranked for which this stage's optimizer has no moments.
        stage: Which of the stages is under way.
        num_steps: Optimizer steps of this stage.
        first_masks: Masks that the stage began with.
        masks: Masks of the latest prune.
        optimizer: The optimizer of the stage, which the loop puts here.
        collect_inputs: Runs the model on a few batches and returns the second moments of the inputs
            of its layers, see :func:`pruning.projection.project`; the loop puts it here.
    """

    stages: tuple[str, ...] = ("final",)
    takes_masks = True
    holds_masks = False
    rewinds = False
    default_cooldown = 0.2
    projects = False
    ranks_untrained = True

    def __init__(self, options: PruneOptions) -> None:
        """Take ``options``; raise ValueError where the method cannot follow them."""
        self.options = options
        self.stage = 0
        self.num_steps = 0
        self.first_masks: Masks = {}
        self.masks: Masks = {}
        self.optimizer: Adam | None = None
        self.collect_inputs: Callable[[], Mapping[str, Tensor]] | None = None

    @property
    def stage_name(self) -> str:
        """Name of the stage under way."""
        return self.stages[self.stage]

    @property
    def dense_steps(self) -> int:
        """Steps at the beginning of the stage under way in which nothing is pruned."""
        return 0

    @property
    def has_dense_phase(self) -> bool:
        """Whether pruned weights are trained after steps in which nothing was pruned."""
        return self.rewinds and len(self.stages) > 1

    def stage_steps(self, stage: int, full_steps: int) -> int:
        """Return the optimizer steps of ``stage`` where a full fine-tuning run has so many."""
        return full_steps

    def rank(self, weights: Params, sparsity: float | None = None) -> Masks:
        """Drop what has the smallest scores in ``weights``, by default at the target sparsity."""
        options = self.options
        sparsity = options.sparsity if sparsity is None else sparsity
        scores = self.scores(weights) if sparsity else weights
        return magnitude_masks(scores, sparsity, options.granularity, options.pattern)

    def scores(self, weights: Params) -> Params:
        """Return what ``weights`` are ranked by; signs don't count.

        Raises:
            ValueError: If the score needs moments and there are none.
        """
        if self.options.score == "lamp":
            return lamp_scores(weights)
        if self.options.score == "fisher":
            if self.optimizer is None:
                raise ValueError("score fisher needs an optimizer's moments: train first")
            return fisher_scores(weights, self.optimizer.second_moments(weights))
        return weights

    def initial_masks(self, params: Params, previous: Params | None) -> Masks:
        """Choose the masks that the stage begins with.

        Args:
            params: In-scope parameters at their initial weights.
            previous: Best weights of the stage before; None in stage 0.
        """
        return self.rank(params)

    def start(
        self,
        params: Params,
        num_steps: int,
        stage: int = 0,
        previous: Params | None = None,
        transferred: Masks | None = None,
    ) -> None:
        """Begin a stage: zero what its first masks drop.

        Args:
            params: In-scope parameters at their initial weights.
            num_steps: Optimizer steps of the stage.
            stage: Index into ``stages``.
            previous: Best weights of the stage before; None in stage 0.
            transferred: Masks of another run to begin with instead of the method's own.

        Raises:
            ValueError: If the method holds its masks, and those are not of the target sparsity; or
                the step to rewind to is not in the stage.
        """
        rewind = self.options.rewind_step
        if self.rewinds and stage == 0 and rewind and rewind >= num_steps:
            raise ValueError(
                f"rewind_step {rewind} is not before the last of {num_steps} steps: lower it"
            )
        if transferred and self.holds_masks:
            self._check_sparsity(transferred)
        self.stage, self.num_steps = stage, num_steps
        masks = transferred or self.initial_masks(params, previous)
        self.first_masks = self.project(params, masks) if self.holds_masks else masks
        self.masks = self.first_masks
        self.drop(params, 0)

    def drop(self, params: Params, step: int) -> None:
        """Take out what the masks drop, after step number ``step``: by itself, set it to zero."""
        apply_masks(params, self.masks)

    def project(self, params: Params, masks: Masks) -> Masks:
        """Fit what the last masks keep to the inputs of its layers, where the options ask for it.

        Returns:
            The masks, where OBS chooses others of the same size.

        Raises:
            ValueError: If there are no inputs.
        """
        if self.options.projection == "none":
            return masks
        if self.collect_inputs is None:
            raise ValueError(
                f"projection {self.options.projection} needs the inputs of layers, and there is "
                "nothing to collect them: set collect_inputs, or give projection none"
            )
        return project(params, masks, self.collect_inputs(), self.options.projection == "obs")

    def _check_sparsity(self, masks: Masks) -> None:
        dropped, total = count_zeros(masks)
        if dropped != round(self.options.sparsity * total):
            raise ValueError(
                f"the masks to begin with drop {dropped / total:.4f} of the weights, which this "
                f"method never changes, and the sparsity asked for is {self.options.sparsity:g}: "
                "give the same"
            )

    def prunes_at(self, step: int) -> bool:
        """Say whether the weights are ranked anew after step number ``step``."""
        return False

    def after_step(self, params: Params, step: int) -> Reprune | None:
        """Do what the method does after optimizer step number ``step`` (from 1)."""
        return None

    @contextmanager
    def forward_weights(self, params: Params, step: int) -> Iterator[None]:
        """Make ``params`` what the gradient of optimizer step number ``step`` is taken at.

        Entered once a step, before the first of its batches, and left after the last one, before
        the gradients are summed over processes and the optimizer moves the weights. What is changed
        is changed in place, as captured graphs ask for, and undone at the end. By itself this does
        nothing, so that a method whose weights are those of the forward pass pays nothing.

        Args:
            params: In-scope parameters.
            step: Number of the step under way, from 1.
        """
        yield

    @contextmanager
    def pruned(self, params: Params) -> Iterator[Snapshot]:
        """Make ``params`` the model that would be reported now; undo it at the end."""
        yield Snapshot(self.masks, adjusted={})

    def finish(self, params: Params, step: int) -> Reprune | None:
        """Make ``params`` the final model of the stage after its last step, number ``step``."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs."""
        names = ("stage", "num_steps", "first_masks", "masks")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: Mapping[str, Any], params: Params) -> None:
        """Take up the state that ``state_dict`` returned, on the devices of ``params``."""
        self.stage, self.num_steps = state["stage"], state["num_steps"]
        self.first_masks, self.masks = (
            {name: mask.to(params[name].device) for name, mask in state[kind].items()}
            for kind in ("first_masks", "masks")
        )


@torch.no_grad()
def copy_weights(target: Params, source: Params) -> None:
    """Copy ``source`` into the tensors of the same names in ``target``, in place."""
    if source:
        torch._foreach_copy_([target[name] for name in source], list(source.values()))


def refuse_pattern(options: PruneOptions, method: str) -> None:
    """Raise ValueError where ``method``, which goes through several sparsities, is given N:M."""
    if options.pattern != "unstructured":
        raise ValueError(
            f"pattern {options.pattern} has one sparsity and {method} goes through several: "
            "use another method, or pattern unstructured"
        )
