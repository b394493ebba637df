"""What PARP is compared with: methods that find their masks before the run that counts.

Each is registered in pruning/schedules.py.
"""

from dataclasses import dataclass

from data.options import option
from pruning.interface import Masks, Params, PruneOptions, Reprune, Schedule, refuse_pattern
from pruning.masks import apply_masks, random_masks

IMP_STEP = 0.1  # share of the original weights that a round of iterative pruning removes


class Dense(Schedule):
    """Fine-tune without pruning."""

    stages = ("dense",)
    prunes = False
    ranks = False
    takes_masks = False
    rewinds = True
    is_reference = True

    @property
    def dense_steps(self) -> int:
        """All of them."""
        return self.num_steps

    def initial_masks(self, params: Params, previous: Params | None) -> Masks:
        """Return no masks."""
        return {}


class MagnitudePruning(Schedule):
    """MPI: one mask from the magnitudes of the initial weights, enforced after every step.

    Source:
        Lai et al. 2021 (arXiv:2106.05933), the MPI baseline. The authors' code hides dropped
        weights behind a reparametrisation; here the weights themselves are set back to zero
        after each step, which stops weight decay and momentum from moving them too.
    """

    title = "MPI"
    holds_masks = True
    projects = True
    is_reference = True

    def after_step(self, params: Params, step: int) -> Reprune | None:
        """Set the dropped weights back to zero."""
        apply_masks(params, self.masks)
        return None


@dataclass(frozen=True, kw_only=True)
class RandomOptions(PruneOptions):
    """What a random mask is drawn from."""

    random_mask: str = option(
        "every weight alike, or the authors' magnitudes of a random initialisation, which drop the "
        "biases first",
        "uniform",
        ("uniform", "init"),
    )


class RandomPruning(MagnitudePruning):
    """RP: one mask drawn at random, enforced after every step.

    Source:
        Lai et al. 2021, the RP baseline. The authors rank the magnitudes of a freshly initialised
        network, whose biases are all zero and so are dropped first; that is ``random_mask="init"``.
    """

    title = "RP"
    options: RandomOptions
    ranks = False
    takes_masks = False
    projects = False
    is_reference = False

    def initial_masks(self, params: Params, previous: Params | None) -> Masks:
        """Draw the masks from the seed."""
        options = self.options
        return random_masks(
            params,
            options.sparsity,
            options.granularity,
            options.pattern,
            seed=options.seed,
            biases_first=options.random_mask == "init",
        )


class OneShotPruning(MagnitudePruning):
    """OMP: fine-tune densely, rank the result, rewind, fine-tune again under that mask.

    Source:
        Lai et al. 2021, the OMP baseline. The mask is that of the best dense checkpoint on dev.
    """

    title = "OMP"
    stages = ("dense", "final")
    has_stages = True
    first_run = Dense
    takes_masks = False
    projects = False
    rewinds = True

    def initial_masks(self, params: Params, previous: Params | None) -> Masks:
        """Return no masks for the dense stage, then those of its best weights."""
        return self.rank(previous) if previous is not None else {}


@dataclass(frozen=True, kw_only=True)
class IterativeOptions(PruneOptions):
    """How long the rounds are."""

    round_steps: int | None = option(
        "steps of a round; without it those of a full run", None, positive=True
    )


class IterativePruning(MagnitudePruning):
    """IMP: rounds of fine-tuning, each removing 10 % of the original weights, then a full run.

    Round 1 is dense; round k trains under the mask of round k - 1. After every round the weights
    are ranked, those pruned before being the smallest, and rewound. The last round prunes to the
    target exactly.

    Source:
        Lai et al. 2021, the IMP baseline; the authors' train_with_imp.py. Theirs prunes the last
        weights of a round, this the best ones on dev.
    """

    title = "IMP"
    options: IterativeOptions
    has_stages = True
    longer_by = "sparsity"
    takes_masks = False
    projects = False
    rewinds = True
    is_reference = False

    def __init__(self, options: IterativeOptions) -> None:
        """Take ``options``; raise ValueError for a pattern, which has one sparsity only."""
        super().__init__(options)
        refuse_pattern(options, "imp")
        rounds = 0
        while _chain_sparsity(rounds) < options.sparsity:
            rounds += 1
        self.stages = (*(f"round-{k}" for k in range(1, rounds + 1)), "final")

    def stage_steps(self, stage: int, full_steps: int) -> int:
        """Return ``round_steps`` for a round."""
        is_round = stage < len(self.stages) - 1
        given = self.options.round_steps if is_round and full_steps else None
        return full_steps if given is None else given

    def initial_masks(self, params: Params, previous: Params | None) -> Masks:
        """Return no masks for round 1, then those of the round before, 10 % sparser each."""
        if previous is None:
            return {}
        return self.rank(previous, min(_chain_sparsity(self.stage), self.options.sparsity))


def _chain_sparsity(rounds: int) -> float:
    return round(IMP_STEP * rounds, 9)
