"""PARP, step by step, on four weights that can be followed by hand."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruning.interface import Params, PruneOptions, Schedule
from pruning.masks import magnitude_masks
from pruning.schedules import SCHEDULES, build_schedule


def _build(method: str, sparsity: float, **options: Any) -> Schedule:
    return build_schedule(method, PruneOptions(sparsity=sparsity, **options))


def _weights(*values: float) -> dict[str, Tensor]:
    return {"w": nn.Parameter(torch.tensor(values))}


def _set(params: dict[str, Tensor], *values: float) -> None:
    with torch.no_grad():
        params["w"].copy_(torch.tensor(values))


def _values(params: dict[str, Tensor]) -> list[float]:
    return params["w"].tolist()


def test_parp_step_by_step_prunes_adjusts_and_reprunes_four_weights() -> None:
    params = _weights(4.0, -3.0, 2.0, 1.0)
    schedule = _build("parp", 0.5, prune_every=2)

    schedule.start(params, 4)  # prune: 2 and 1 are the smallest
    assert _values(params) == [4.0, -3.0, 0.0, 0.0]

    _set(params, 4.0, -2.0, 0.5, 0.25)  # adjust: an optimizer step moves zeroed weights too
    assert schedule.after_step(params, 1) is None
    assert _values(params) == [4.0, -2.0, 0.5, 0.25]

    _set(params, 4.0, -1.0, 1.5, 0.5)  # the third has outgrown the second
    event = schedule.after_step(params, 2)  # re-prune: now -1 and 0.5 are the smallest
    assert _values(params) == [4.0, 0.0, 1.5, 0.0]
    assert event is not None
    assert (event.threshold, event.revived, event.newly_pruned) == (1.0, 1, 1)
    assert event.iou_first == pytest.approx(1 / 3)  # {1st} of {1st, 2nd, 3rd}

    _set(params, 4.0, 0.1, 1.5, -2.0)
    event = schedule.finish(params, 3)  # the final re-prune
    assert _values(params) == [4.0, 0.0, 0.0, -2.0]
    assert event is not None
    assert (event.revived, event.newly_pruned) == (1, 1)


def test_mpi_step_by_step_keeps_the_first_mask_of_four_weights() -> None:
    params = _weights(4.0, -3.0, 2.0, 1.0)
    schedule = _build("mpi", 0.5)
    schedule.start(params, 4)
    _set(params, 0.5, -3.0, 9.0, 9.0)
    assert schedule.after_step(params, 1) is None
    assert _values(params) == [0.5, -3.0, 0.0, 0.0]
    assert schedule.finish(params, 1) is None


def test_dense_step_by_step_leaves_four_weights_alone() -> None:
    params = _weights(4.0, -3.0, 2.0, 1.0)
    schedule = _build("dense", 0.5)
    schedule.start(params, 4)
    schedule.after_step(params, 50)
    schedule.finish(params, 51)
    assert _values(params) == [4.0, -3.0, 2.0, 1.0]


def test_parp_final_step_on_an_interval_reprunes_once() -> None:
    params = _weights(4.0, -3.0, 2.0, 1.0)
    schedule = _build("parp", 0.5, prune_every=2)
    schedule.start(params, 4)
    assert schedule.after_step(params, 2) is not None
    assert schedule.finish(params, 2) is None


def test_parp_pruned_copy_gives_adjusted_weights_back_bit_for_bit() -> None:
    params = {"w": nn.Parameter(torch.randn(1000)), "b": nn.Parameter(torch.randn(30))}
    before = {name: param.detach().clone() for name, param in params.items()}
    schedule = _build("parp", 0.6)
    schedule.masks = schedule.first_masks = magnitude_masks(params, 0.1)
    with schedule.pruned(params) as snapshot:
        zeros = sum(int((param == 0).sum()) for param in params.values())
        assert zeros == round(0.6 * 1030)
        assert all(torch.equal(params[n] != 0, snapshot.masks[n]) for n in params)
    assert all(torch.equal(params[n], before[n]) for n in params)


def test_parp_pruned_copy_gives_weights_back_after_an_error() -> None:
    params = _weights(4.0, -3.0, 2.0, 1.0)
    schedule = _build("parp", 0.5)
    with pytest.raises(RuntimeError), schedule.pruned(params):
        raise RuntimeError
    assert _values(params) == [4.0, -3.0, 2.0, 1.0]


def test_parp_pruned_copy_does_not_depend_on_how_often_it_is_taken() -> None:
    params = _weights(4.0, -3.0, 2.0, 1.0)
    schedule = _build("parp", 0.5, prune_every=10)
    schedule.start(params, 4)
    masks = schedule.masks
    for _ in range(3):
        with schedule.pruned(params):
            pass
    assert schedule.masks is masks


def _train(schedule: Schedule, steps: int, weight_decay: float = 0.0) -> dict[str, Tensor]:
    """Train a small model through every stage, as the loop in train.py does."""
    previous = None
    for stage in range(len(schedule.stages)):
        torch.manual_seed(3)
        model = nn.Linear(20, 20)
        params = dict(model.named_parameters())
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=weight_decay)
        schedule.start(params, steps, stage, previous)
        for step in range(1, steps + 1):
            optimizer.zero_grad()
            (model(torch.randn(8, 20)) - 1).square().mean().backward()
            optimizer.step()
            schedule.after_step(params, step)
        schedule.finish(params, steps)
        previous = {name: param.detach() for name, param in params.items()}
    assert previous is not None
    return previous


def test_parp_interval_beyond_the_run_equals_prune_train_prune() -> None:
    trained = _train(_build("parp", 0.5, prune_every=1000), 30)

    class PruneOnce(Schedule):
        """Prune, then train freely."""

    expected = _train(PruneOnce(PruneOptions(sparsity=0.5)), 30)
    masks = magnitude_masks(expected, 0.5)
    for name, value in trained.items():
        assert torch.equal(value, expected[name] * masks[name])


def test_parp_at_sparsity_zero_equals_dense_bit_for_bit() -> None:
    parp, dense = _train(_build("parp", 0.0, prune_every=7), 30), _train(_build("dense", 0.0), 30)
    assert all(torch.equal(parp[name], dense[name]) for name in dense)


def test_parp_revives_weights_during_training() -> None:
    schedule = _build("parp", 0.5, prune_every=5)
    _train(schedule, 30)
    first, last = schedule.first_masks, schedule.masks
    assert sum(int((last[n] & ~first[n]).sum()) for n in last) > 0


def test_mpi_pruned_weights_stay_zero_through_momentum_and_weight_decay() -> None:
    schedule = _build("mpi", 0.5)
    trained = _train(schedule, 30, weight_decay=0.1)
    for name, value in trained.items():
        assert (value[~schedule.masks[name]] == 0).all()


@pytest.mark.parametrize("method", [name for name in SCHEDULES if name != "dense"])
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
def test_final_weights_have_exactly_the_target_sparsity(method: str, sparsity: float) -> None:
    trained = _train(_build(method, sparsity, prune_every=4), 10)
    assert sum(int((value == 0).sum()) for value in trained.values()) == round(sparsity * 420)


@pytest.mark.parametrize("method", SCHEDULES)
def test_schedule_keeps_parameter_objects_for_the_optimizer(method: str) -> None:
    params = _weights(4.0, -3.0, 2.0, 1.0)
    identity = id(params["w"])
    schedule = _build(method, 0.5, prune_every=1)
    schedule.start(params, 4)
    schedule.after_step(params, 1)
    with schedule.pruned(params):
        pass
    schedule.finish(params, 1)
    assert id(params["w"]) == identity
    assert params["w"].requires_grad


@pytest.mark.parametrize("method", SCHEDULES)
def test_schedule_state_round_trip_restores_masks(method: str) -> None:
    params = _weights(4.0, -3.0, 2.0, 1.0)
    schedule = _build(method, 0.5, prune_every=1)
    schedule.start(params, 4)
    _set(params, 0.1, 0.2, 3.0, 4.0)
    schedule.after_step(params, 1)
    other = _build(method, 0.5, prune_every=1)
    other.load_state_dict(schedule.state_dict(), params)
    assert other.masks.keys() == schedule.masks.keys()
    for mine, theirs in ((other.masks, schedule.masks), (other.first_masks, schedule.first_masks)):
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_start_with_transferred_masks_uses_them_instead_of_magnitudes() -> None:
    params = _weights(4.0, -3.0, 2.0, 1.0)
    schedule = _build("parp", 0.5)
    schedule.start(params, 4, transferred={"w": torch.tensor([False, False, True, True])})
    assert _values(params) == [0.0, 0.0, 2.0, 1.0]


@pytest.fixture
def two_stage_method() -> Iterator[str]:
    class MaskFromTraining(Schedule):
        """One-shot magnitude pruning: train, mask by the result, rewind, train again."""

        stages = ("dense", "final")

        def initial_masks(self, params: Params, previous: Params | None) -> dict[str, Tensor]:
            return self.rank(previous) if previous else {}

    SCHEDULES["two-stage"] = MaskFromTraining
    yield "two-stage"
    del SCHEDULES["two-stage"]


def test_a_stage_begins_with_masks_of_the_best_weights_before(two_stage_method: str) -> None:
    params = _weights(4.0, -3.0, 2.0, 1.0)
    schedule = _build(two_stage_method, 0.5)
    schedule.start(params, 4, stage=1, previous={"w": torch.tensor([0.0, 1.0, 5.0, 6.0])})
    assert _values(params) == [0.0, 0.0, 2.0, 1.0]


@pytest.mark.parametrize("sparsity", [1.0, -0.1, 60.0])
def test_build_schedule_with_sparsity_out_of_range_names_it(sparsity: float) -> None:
    with pytest.raises(ValueError, match=f"sparsity {sparsity:g} is out of range"):
        _build("parp", sparsity)


def test_build_schedule_with_unknown_method_lists_the_known() -> None:
    with pytest.raises(ValueError, match="'magic' is unknown: choose one of dense"):
        _build("magic", 0.5)
