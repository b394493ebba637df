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

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol, TypedDict, get_type_hints

import torch
from torch import Tensor

from data.files import JsonObject, shown
from pruning.masks import apply_masks, check_pattern, count_zeros, magnitude_masks
from pruning.projection import PROJECTIONS, project
from pruning.scores import SCORES, fisher_scores, lamp_scores

Params = Mapping[str, Tensor]
Masks = dict[str, Tensor]


def prune_option(
    help: str,
    default: Any,
    choices: Sequence[Any] | None = None,
    positive: bool = False,
    least: int | None = None,
    needs: str | None = None,
    vital: bool = False,
) -> Any:
    """Describe an option of pruning.

    Args:
        help: Of the flag.
        default: With which it changes nothing in a method that does not take it.
        choices: What it may be.
        positive: Whether it must be.
        least: The least that it may be.
        needs: Name of an attribute of :class:`Schedule`, true for the methods that take it; without
            it all do whose options have the field.
        vital: Whether a run without it would not be what was asked for, so that it is refused, not
            left out, where the method does not take it.
    """
    metadata = {"help": help, "choices": choices, "positive": positive, "least": least}
    return field(default=default, metadata=metadata | {"needs": needs, "vital": vital})


@dataclass(frozen=True, kw_only=True)
class PruneOptions:
    """Which weights are pruned.

    Every field is a flag of train.py. What only some methods understand is in a class of their own
    that inherits from this, see :class:`Schedule`.

    Raises:
        ValueError: If a value is out of range.
    """

    sparsity: float = prune_option(
        "fraction in [0, 1) of the in-scope weights to drop", 0.0, needs="prunes"
    )
    granularity: str = prune_option(
        "what is ranked together", "global", ("global", "layerwise"), needs="prunes"
    )
    pattern: str = prune_option(
        "unstructured, or N:M, which keeps N of every M neighbours in a row", "unstructured"
    )
    score: str = prune_option(
        "what weights are ranked by: magnitude; lamp, magnitude in relation to the larger ones of "
        "the same tensor; fisher, magnitude times the root of Adam's second moment, for methods "
        "that rank no weights before the first step",
        "magnitude",
        SCORES,
        needs="ranks",
    )
    projection: str = prune_option(
        "how the last prune fits what stays to the inputs of its layers, on a few batches: refit "
        "solves for the weights of the mask; obs has SparseGPT choose in each layer what stays, "
        "then does the same",
        "none",
        PROJECTIONS,
        needs="projects",
        vital=True,
    )
    rewind_step: int = prune_option(
        "step of the dense stage to rewind to; 0 is the initial weights", 0, needs="rewinds"
    )
    scope: str | None = prune_option(
        "prunable parameters, one of the model's scopes: encoder or, with a decoder too, "
        "encoder_decoder, encoder, decoder; without it the whole transformer",
        None,
    )
    biases: bool | None = prune_option(
        "biases are in the scope; without it they are, but for a pattern N:M", None
    )
    lr_restart: bool = prune_option(
        "after the warm-up the learning rate falls to a tenth by the next re-prune, there starts "
        "again at its peak, and so on, in place of --hold; best with few re-prunes",
        False,
        needs="reprunes",
    )
    zero_moments: bool = prune_option(
        "forget Adam's moments of weights when they are pruned", False, needs="reprunes"
    )
    init_mask: str | None = prune_option(
        "masks of another run to begin with: its masks.pt, or a checkpoint of a pruned model",
        None,
        needs="takes_masks",
        vital=True,
    )
    reuse: str | None = prune_option(
        "run folder whose finished stages are taken over, where they are the same",
        None,
        needs="has_stages",
    )
    seed: int = prune_option(
        "seed of weights, data order, dropout, masking and random masks", 0, least=0
    )

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0.0 <= self.sparsity < 1.0:
            raise ValueError(
                f"sparsity {self.sparsity:g} is out of range: give a fraction in [0, 1), "
                "0.6 for 60 percent"
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


class ScheduleState(TypedDict):
    """What resuming a stage needs of its method, see the attributes of :class:`Schedule`."""

    stage: int
    num_steps: int
    first_masks: Masks
    masks: Masks


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

    A method says by class attributes what it does, by the type of ``options`` what it can be told,
    and nothing about it stands elsewhere.

    Attributes:
        options: What decides which weights are pruned and when. A method with options of its own
            declares the attribute anew, as a dataclass that inherits from :class:`PruneOptions`, or
            from the options of the method that it builds on.
        stages: Names of the fine-tuning runs that the method needs; each begins with the initial
            weights, and its best weights are handed to the next. "final" hands on nothing.
        has_stages: Whether there are several, so that finished ones can be taken over.
        first_run: The method whose whole run is stage 0 of this one, so that it is taken over from
            such a run.
        longer_by: Option of which a higher value adds stages to those of a lower one, so that these
            are taken over from a run with a higher value.
        prunes: Whether anything is pruned.
        ranks: Whether weights are ranked by a score.
        ranks_untrained: Whether weights are ranked for which this stage's optimizer has no moments.
        reprunes: Whether weights are ranked anew after steps.
        takes_masks: Whether stage 0 may begin with the masks of another run.
        holds_masks: Whether the first masks are also the last.
        rewinds: Whether stage 0 is dense, so that its early states may be rewound to.
        projects: Whether the last prune can be followed by a projection.
        is_reference: Whether reports test other methods against it.
        title: How it is written in tables, if not by its name; not inherited.
        stage: Which of the stages is under way.
        num_steps: Optimizer steps of this stage.
        first_masks: Masks that the stage began with.
        masks: Masks of the latest prune.
        optimizer: The optimizer of the stage, which the loop puts here.
        collect_inputs: Runs the model on a few batches and returns the second moments of the inputs
            of its layers, see :func:`pruning.projection.project`; the loop puts it here.
    """

    options: PruneOptions
    stages: tuple[str, ...] = ("final",)
    has_stages: ClassVar[bool] = False
    first_run: ClassVar["type[Schedule] | None"] = None
    longer_by: ClassVar[str | None] = None
    prunes: ClassVar[bool] = True
    ranks: ClassVar[bool] = True
    ranks_untrained: ClassVar[bool] = True
    reprunes: ClassVar[bool] = False
    takes_masks: ClassVar[bool] = True
    holds_masks: ClassVar[bool] = False
    rewinds: ClassVar[bool] = False
    projects: ClassVar[bool] = False
    is_reference: ClassVar[bool] = False
    title: ClassVar[str]

    def __init__(self, options: PruneOptions) -> None:
        """Take ``options``; raise ValueError where the method cannot follow them."""
        self.options = options
        self.stage = 0
        self.num_steps = 0
        self.first_masks: Masks = {}
        self.masks: Masks = {}
        self.optimizer: Adam | None = None
        self.collect_inputs: Callable[[], Mapping[str, Tensor]] | None = None

    @classmethod
    def options_type(cls) -> type[PruneOptions]:
        """Return the class of the method's options."""
        declared: type[PruneOptions] = get_type_hints(cls)["options"]
        return declared

    @classmethod
    def options_taken(cls) -> frozenset[str]:
        """Return the names of the options that can change anything in a run of the method."""
        return frozenset(
            each.name
            for each in fields(cls.options_type())
            if not (needed := each.metadata.get("needs")) or getattr(cls, needed)
        )

    @classmethod
    def resolve(cls, options: Mapping[str, Any]) -> JsonObject:
        """Return ``options`` with what the method decides where it is not given."""
        return dict(options)

    @classmethod
    def stage_options(cls, stage: int) -> frozenset[str]:
        """Return the names of the options that can change what a stage hands on."""
        if stage == 0 and cls.first_run is not None:
            return cls.first_run.options_taken()
        return cls.options_taken() - {cls.longer_by}

    @property
    def stage_name(self) -> str:
        """Name of the stage under way."""
        return self.stages[self.stage]

    @property
    def dense_steps(self) -> int:
        """Steps at the beginning of the stage under way in which nothing is pruned."""
        return 0

    @property
    def rate_phases(self) -> tuple[int, ...]:
        """Steps at which the learning rate begins anew with its warm-up."""
        return ()

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
        """Return whether the weights are ranked anew after step number ``step``."""
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

    def state_dict(self) -> ScheduleState:
        """Return what resuming needs."""
        return {
            "stage": self.stage,
            "num_steps": self.num_steps,
            "first_masks": self.first_masks,
            "masks": self.masks,
        }

    def load_state_dict(self, state: ScheduleState, params: Params) -> None:
        """Take over the state that ``state_dict`` returned, on the devices of ``params``."""

        def on_devices(masks: Masks) -> Masks:
            return {name: mask.to(params[name].device) for name, mask in masks.items()}

        self.stage = state["stage"]
        self.num_steps = state["num_steps"]
        self.first_masks = on_devices(state["first_masks"])
        self.masks = on_devices(state["masks"])


def check_fit(tensors: object, params: Params, what: str, dtype: torch.dtype | None = None) -> None:
    """Check that what a file holds are tensors that fit the parameters of their names.

    Args:
        tensors: Out of a file.
        params: In-scope parameters by native name.
        what: What a message calls the tensors.
        dtype: Of the tensors; by default each has that of its parameter.

    Raises:
        ValueError: If one does not; names it.
    """
    if not isinstance(tensors, dict):
        raise ValueError(f"{what} is {shown(tensors)}, expected tensors by name")
    for name, tensor in tensors.items():
        if name not in params or not isinstance(tensor, Tensor):
            raise ValueError(f"{what} has {shown(name)}, which is no tensor of this model")
        wanted = dtype or params[name].dtype, params[name].shape
        if (tensor.dtype, tensor.shape) != wanted:
            found = f"{tensor.dtype} {tuple(tensor.shape)}"
            raise ValueError(f"{what}: {name} is {found}, expected {wanted[0]} {tuple(wanted[1])}")


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
