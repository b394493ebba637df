"""PARP, step by step, on four weights that can be followed by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruning.interface import Schedule
from pruning.masks import magnitude_masks
from pruning.schedules import PARP, SCHEDULES, MethodOptions, build_schedule


def _build(method: str, sparsity: float, **options: Any) -> Schedule:
    return build_schedule(method, MethodOptions(sparsity=sparsity, **options))


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


def test_rp_step_by_step_keeps_a_drawn_mask_of_four_weights() -> None:
    params = _weights(4.0, -3.0, 2.0, 1.0)
    schedule = _build("rp", 0.5, seed=0)  # draws 0.496, 0.768, 0.088, 0.132: the last two go
    schedule.start(params, 4)
    assert _values(params) == [4.0, -3.0, 0.0, 0.0]
    _set(params, 0.5, 0.25, 9.0, 9.0)
    schedule.after_step(params, 1)
    assert _values(params) == [0.5, 0.25, 0.0, 0.0]


def test_rp_of_a_random_initialisation_drops_biases_first() -> None:
    params = {
        "bias": nn.Parameter(torch.tensor([9.0, 8.0])),
        "weight": nn.Parameter(torch.tensor([[4.0, -3.0]])),
    }
    _build("rp", 0.5, random_mask="init").start(params, 4)
    assert params["bias"].tolist() == [0.0, 0.0]
    assert params["weight"].tolist() == [[4.0, -3.0]]


def test_omp_step_by_step_masks_four_rewound_weights_by_the_dense_result() -> None:
    params = _weights(4.0, -3.0, 2.0, 1.0)
    schedule = _build("omp", 0.5)
    assert schedule.stages == ("dense", "final")

    schedule.start(params, 2)
    assert _values(params) == [4.0, -3.0, 2.0, 1.0]
    schedule.after_step(params, 1)
    dense = {"w": torch.tensor([0.1, -3.0, 0.2, 5.0])}  # its best weights: 1st and 3rd are small

    _set(params, 4.0, -3.0, 2.0, 1.0)  # rewound
    schedule.start(params, 2, stage=1, previous=dense)
    assert _values(params) == [0.0, -3.0, 0.0, 1.0]
    _set(params, 7.0, -3.0, 7.0, 2.0)
    schedule.after_step(params, 1)
    assert _values(params) == [0.0, -3.0, 0.0, 2.0]


def test_imp_step_by_step_prunes_four_weights_round_by_round() -> None:
    initial = (4.0, -3.0, 2.0, 1.0)
    params = _weights(*initial)
    schedule = _build("imp", 0.5, round_steps=7)
    # 10 %, 20 %, ... of four weights are 0.4, 0.8, 1.2, 1.6 and 2.0 of them
    assert schedule.stages == ("round-1", "round-2", "round-3", "round-4", "round-5", "final")
    assert [schedule.stage_steps(stage, 30) for stage in range(6)] == [7, 7, 7, 7, 7, 30]

    results = [(9.0, 0.5, 9.0, 9.0)] * 3 + [(9.0, 0.0, 9.0, 0.5)] * 2  # best weights of each round
    rewound = []
    schedule.start(params, 7)
    for stage, result in enumerate(results, start=1):
        _set(params, *initial)
        schedule.start(params, 7, stage, {"w": torch.tensor(result)})
        rewound.append(_values(params))
    assert rewound == [
        [4.0, -3.0, 2.0, 1.0],
        [4.0, 0.0, 2.0, 1.0],
        [4.0, 0.0, 2.0, 1.0],
        [4.0, 0.0, 2.0, 0.0],
        [4.0, 0.0, 2.0, 0.0],
    ]


def test_parp_p_step_by_step_raises_the_sparsity_of_four_weights() -> None:
    params = _weights(4.0, -3.0, 2.0, 1.0)
    schedule = _build("parp-p", 0.75, start_sparsity=0.25, grow_until=1.0, prune_every=2)
    schedule.start(params, 4)
    assert _values(params) == [4.0, -3.0, 2.0, 0.0]  # 25 %

    _set(params, 4.0, -0.5, 2.0, 1.0)
    event = schedule.after_step(params, 2)  # half way: 50 %
    assert _values(params) == [4.0, 0.0, 2.0, 0.0]
    assert event is not None
    assert (event.sparsity, event.revived, event.newly_pruned) == (0.5, 0, 1)

    _set(params, 4.0, 5.0, 2.0, 1.0)
    with schedule.pruned(params):  # scored at the target, wherever the growth has got to
        assert _values(params) == [0.0, 5.0, 0.0, 0.0]
    event = schedule.after_step(params, 4)  # 75 %
    assert _values(params) == [0.0, 5.0, 0.0, 0.0]
    assert event is not None
    assert (event.sparsity, event.revived, event.newly_pruned) == (0.75, 1, 2)
    assert schedule.finish(params, 4) is None


@pytest.mark.parametrize(("growth", "half_way"), [("linear", 0.5), ("cubic", 0.6875)])
def test_parp_p_grows_linearly_or_cubically(growth: str, half_way: float) -> None:
    schedule = _build("parp-p", 0.75, start_sparsity=0.25, grow_until=1.0, growth=growth)
    schedule.start(_weights(4.0, -3.0, 2.0, 1.0), 4)
    assert isinstance(schedule, PARP)
    assert schedule.sparsity_at(2) == half_way


def test_parp_mask_step_by_step_holds_the_mask_that_parp_found() -> None:
    params = _weights(4.0, -3.0, 2.0, 1.0)
    schedule = _build("parp-mask", 0.5, prune_every=1)
    schedule.start(params, 1)
    _set(params, 4.0, 0.5, 0.25, 5.0)
    schedule.after_step(params, 1)
    assert _values(params) == [4.0, 0.0, 0.0, 5.0]  # what PARP ends with
    found = {"w": params["w"].detach().clone()}

    _set(params, 4.0, -3.0, 2.0, 1.0)
    schedule.start(params, 1, stage=1, previous=found)
    assert _values(params) == [4.0, 0.0, 0.0, 1.0]
    _set(params, 0.5, 9.0, 9.0, 0.25)
    assert schedule.after_step(params, 1) is None
    assert _values(params) == [0.5, 0.0, 0.0, 0.25]
    assert schedule.finish(params, 1) is None


def test_parp_cooldown_step_by_step_freezes_the_mask_before_the_end() -> None:
    params = _weights(4.0, -3.0, 2.0, 1.0)
    schedule = _build("parp-cooldown", 0.5, prune_every=2, cooldown=0.25)
    schedule.start(params, 4)  # free for three steps, then one under the mask
    _set(params, 4.0, -3.0, 0.5, 0.5)
    assert schedule.after_step(params, 1) is None
    _set(params, 4.0, -1.0, 1.5, 0.5)
    assert schedule.after_step(params, 2) is not None
    assert _values(params) == [4.0, 0.0, 1.5, 0.0]
    _set(params, 4.0, 2.0, 1.5, 0.5)
    assert schedule.after_step(params, 3) is not None  # the last re-prune, off the interval
    assert _values(params) == [4.0, 2.0, 0.0, 0.0]
    _set(params, 1.0, 1.0, 9.0, 9.0)
    assert schedule.after_step(params, 4) is None
    assert _values(params) == [1.0, 1.0, 0.0, 0.0]
    assert schedule.finish(params, 4) is None


def test_gmp_step_by_step_grows_from_dense_and_holds_four_weights() -> None:
    params = _weights(4.0, -3.0, 2.0, 1.0)
    schedule = _build("gmp", 0.5, prune_every=2, dense_share=0.25, cooldown=0.25)
    schedule.start(params, 8)  # dense for two steps, growth up to the sixth, then held
    assert _values(params) == [4.0, -3.0, 2.0, 1.0]
    assert schedule.dense_steps == 2
    assert schedule.after_step(params, 2) is None  # a multiple of the interval, but still dense

    _set(params, 4.0, -0.5, 2.0, 1.0)
    event = schedule.after_step(params, 4)  # half way: 0.5 * (1 - 0.5^3) of four are 1.75
    assert _values(params) == [4.0, 0.0, 2.0, 0.0]
    assert event is not None
    assert (event.sparsity, event.threshold, event.newly_pruned) == (0.4375, 1.0, 2)

    _set(params, 4.0, -3.0, 2.0, 0.5)  # a zeroed weight has grown past the third
    assert schedule.after_step(params, 5) is None
    assert _values(params) == [4.0, -3.0, 2.0, 0.5]
    with schedule.pruned(params):  # scored at the target
        assert _values(params) == [4.0, -3.0, 0.0, 0.0]
    event = schedule.after_step(params, 6)
    assert _values(params) == [4.0, -3.0, 0.0, 0.0]
    assert event is not None
    assert (event.sparsity, event.revived, event.newly_pruned) == (0.5, 1, 1)

    _set(params, 1.0, -1.0, 9.0, 9.0)  # held: not ranked again, nothing comes back
    assert schedule.after_step(params, 8) is None
    assert _values(params) == [1.0, -1.0, 0.0, 0.0]
    assert schedule.finish(params, 8) is None


def test_parp_latent_step_by_step_keeps_the_values_of_four_weights_until_the_hold() -> None:
    params = _weights(4.0, -3.0, 2.0, 1.0)
    schedule = _build("parp-latent", 0.5, prune_every=2, cooldown=0.25)
    schedule.start(params, 4)  # free for three steps, then one under the mask
    assert _values(params) == [4.0, -3.0, 2.0, 1.0]
    with schedule.forward_weights(params, 1):
        assert _values(params) == [4.0, -3.0, 0.0, 0.0]
    assert _values(params) == [4.0, -3.0, 2.0, 1.0]

    _set(params, 4.0, -2.25, 2.5, 1.25)  # the gradient moves the latent weights too
    assert schedule.after_step(params, 1) is None
    with schedule.forward_weights(params, 2):  # not ranked yet
        assert _values(params) == [4.0, -2.25, 0.0, 0.0]
    with schedule.pruned(params):  # ranked to be scored
        assert _values(params) == [4.0, 0.0, 2.5, 0.0]
    event = schedule.after_step(params, 2)
    assert event is not None
    assert (event.threshold, event.revived, event.newly_pruned) == (2.25, 1, 1)
    assert _values(params) == [4.0, -2.25, 2.5, 1.25]
    with schedule.forward_weights(params, 3):
        assert _values(params) == [4.0, 0.0, 2.5, 0.0]

    _set(params, 4.0, -3.0, 2.5, 1.25)
    assert schedule.after_step(params, 3) is not None  # the last ranking: real zeros from here on
    assert _values(params) == [4.0, -3.0, 0.0, 0.0]
    _set(params, 1.0, -1.0, 9.0, 9.0)
    assert schedule.after_step(params, 4) is None
    assert _values(params) == [1.0, -1.0, 0.0, 0.0]


def test_every_registered_method_has_a_step_by_step_test() -> None:
    named = [name.replace("_", "-") for name in globals() if "_step_by_step_" in name]
    assert all(any(name.startswith(f"test-{m}-step") for name in named) for m in SCHEDULES)


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

    expected = _train(PruneOnce(MethodOptions(sparsity=0.5)), 30)
    masks = magnitude_masks(expected, 0.5)
    for name, value in trained.items():
        assert torch.equal(value, expected[name] * masks[name])


def test_parp_revives_weights_during_training() -> None:
    schedule = _build("parp", 0.5, prune_every=5)
    _train(schedule, 30)
    first, last = schedule.first_masks, schedule.masks
    assert sum(int((last[n] & ~first[n]).sum()) for n in last) > 0


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


@pytest.mark.parametrize("method", ["dense", "rp", "omp", "imp"])
def test_methods_that_make_their_own_masks_take_none(method: str) -> None:
    assert not SCHEDULES[method].takes_masks


def test_static_method_refuses_masks_of_another_sparsity() -> None:
    masks = {"w": torch.tensor([False, True, True, True])}
    with pytest.raises(ValueError, match=r"drop 0.2500 of the weights.* asked for is 0.5"):
        _build("mpi", 0.5).start(_weights(4.0, -3.0, 2.0, 1.0), 4, transferred=masks)


@pytest.mark.parametrize("sparsity", [1.0, -0.1, 60.0])
def test_build_schedule_with_sparsity_out_of_range_names_it(sparsity: float) -> None:
    with pytest.raises(ValueError, match=f"sparsity {sparsity:g} is out of range"):
        _build("parp", sparsity)


def test_build_schedule_with_unknown_method_lists_the_known() -> None:
    with pytest.raises(ValueError, match="'magic' is unknown: choose one of dense"):
        _build("magic", 0.5)
