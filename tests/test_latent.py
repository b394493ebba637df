"""Latent weights: what they are in the limits, and gradual pruning, which may have them."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models.training.optim import Optimizer
from pruning.interface import Schedule
from pruning.masks import magnitude_masks, measured_sparsity
from pruning.schedules import GradualPruning, LatentPARP, MethodOptions, build_schedule

STEPS = 24


def _build(method: str, sparsity: float = 0.5, **options: Any) -> Any:
    return build_schedule(method, MethodOptions(sparsity=sparsity, **options))


def _model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4)).double()


def _batch(step: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    return x, x[:, :4].sin()


def _train(schedule: Schedule, weight_decay: float = 0.0) -> list[dict[str, Tensor]]:
    """Train a small model as train.py does; return the weights before each step and at the end."""
    model = _model()
    params: dict[str, Tensor] = dict(model.named_parameters())
    optimizer = Optimizer(model, 0.05, 0.05, (), STEPS, weight_decay=weight_decay)
    schedule.start(params, STEPS)
    schedule.optimizer = optimizer
    seen = []
    for step in range(1, STEPS + 1):
        seen.append({name: param.detach().clone() for name, param in params.items()})
        x, y = _batch(step)
        with schedule.forward_weights(params, step):
            loss = (model(x) - y).square().mean()
            optimizer.backward(loss)
        optimizer.step(step - 1, loss.detach())
        schedule.after_step(params, step)
    schedule.finish(params, STEPS)
    return [*seen, {name: param.detach().clone() for name, param in params.items()}]


def _assert_equal(first: list[dict[str, Tensor]], second: list[dict[str, Tensor]]) -> None:
    for step, (one, other) in enumerate(zip(first, second, strict=True), start=1):
        for name in one:
            assert torch.equal(one[name], other[name]), (step, name)


def test_infinite_decay_is_a_held_mask() -> None:
    options: dict[str, Any] = {"prune_every": 3, "cooldown": 0.2, "latent_decay": float("inf")}
    latent = _train(_build("parp-latent", **options), weight_decay=0.1)
    held = _train(_build("mpi"), weight_decay=0.1)
    _assert_equal(latent[1:], held[1:])  # before the first step the latent values are still there


class _SRSTE(torch.autograd.Function):
    """The masked weight forward, its gradient to all entries backward."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor) -> Tensor:
        return weight * mask

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def _train_sr_ste(decay: float) -> list[dict[str, Tensor]]:
    """SR-STE as its paper has it, ranked globally in each forward pass, the decay decoupled."""
    weights: dict[str, Tensor] = dict(_model().named_parameters())
    adam = torch.optim.AdamW(weights.values(), betas=(0.9, 0.98), weight_decay=0.0)
    rate = Optimizer(_model(), 0.05, 0.05, (), STEPS)
    seen = []
    for step in range(1, STEPS + 1):
        seen.append({name: weight.detach().clone() for name, weight in weights.items()})
        cut = torch.cat([w.detach().abs().flatten() for w in weights.values()]).quantile(0.5)
        masks = {name: weight.detach().abs() > cut for name, weight in weights.items()}
        w0, b0, w1, b1 = (_SRSTE.apply(weights[name], masks[name]) for name in weights)
        x, y = _batch(step)
        loss = (F.linear(F.linear(x, w0, b0).tanh(), w1, b1) - y).square().mean()
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights.values(), 1.0)
        rate.step(step - 1, torch.zeros(()))
        adam.param_groups[0]["lr"] = rate.lr
        adam.step()
        for name, weight in weights.items():
            weight.data[~masks[name]] *= 1 - rate.lr * decay * min(1.0, step / (STEPS / 4))
    return seen


@pytest.mark.parametrize("decay", [0.0, 2.0])
def test_reprune_in_every_step_is_sr_ste(decay: float) -> None:
    schedule = _build("parp-latent", prune_every=1, cooldown=0.0, latent_decay=decay)
    for ours, theirs in zip(_train(schedule), _train_sr_ste(decay), strict=False):
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-9, atol=1e-12)


def test_zeroing_in_place_of_keeping_is_parp() -> None:
    schedule = _build("parp-latent", prune_every=3, cooldown=0.0)
    schedule.latent = False
    _assert_equal(_train(schedule), _train(_build("parp", prune_every=3)))


def test_latent_weight_comes_back_sooner_than_a_zeroed_one() -> None:
    revived = {}
    for latent in (True, False):
        schedule = _build("parp-latent", prune_every=3, cooldown=0.2)
        schedule.latent = latent
        _train(schedule)
        first, last = schedule.first_masks, schedule.masks
        revived[latent] = sum(int((last[name] & ~first[name]).sum()) for name in last)
    assert revived[True] > revived[False]


@pytest.mark.parametrize("options", [{}, {"latent": True}], ids=["zeroed", "latent"])
def test_gradual_pruning_is_dense_bit_for_bit_until_its_first_prune(options: Any) -> None:
    schedule = _build("gmp", prune_every=3, dense_share=0.25, **options)
    pruned, dense = _train(schedule), _train(_build("dense"))
    first = next(step for step in range(STEPS) if schedule.prunes_at(step))
    assert schedule.dense_steps < first
    _assert_equal(pruned[:first], dense[:first])


@pytest.mark.parametrize("latent", [False, True])
def test_gradual_pruning_holds_real_zeros_from_the_target_on(latent: bool) -> None:
    schedule = _build("gmp", 0.6, prune_every=3, latent=latent)
    weights = _train(schedule)
    assert schedule.last_prune == 16
    assert measured_sparsity(weights[schedule.last_prune - 1]) < 0.6
    zeros = [{n: w == 0 for n, w in each.items()} for each in weights[schedule.last_prune :]]
    assert measured_sparsity(weights[-1]) == pytest.approx(0.6, abs=0.005)
    _assert_equal(zeros[1:], zeros[:-1])


@given(
    target=st.floats(0.1, 0.95),
    dense=st.floats(0.0, 0.5),
    cooldown=st.floats(0.0, 0.4),
    steps=st.integers(1, 50),
)
@settings(max_examples=50, deadline=None)
def test_gradual_sparsity_rises_from_zero_to_its_target_when_the_hold_begins(
    target: float, dense: float, cooldown: float, steps: int
) -> None:
    schedule = _build("gmp", target, dense_share=dense, cooldown=cooldown, prune_every=1)
    assert isinstance(schedule, GradualPruning)
    schedule.start({"w": nn.Parameter(torch.randn(50))}, steps)
    risen = [schedule.sparsity_at(step) for step in range(steps + 1)]
    assert risen == sorted(risen)
    assert not any(risen[: min(schedule.dense_steps + 1, schedule.last_prune)])
    assert all(risen[min(schedule.dense_steps + 1, schedule.last_prune) :])
    assert risen[schedule.last_prune :] == [target] * (steps + 1 - schedule.last_prune)


def test_growth_is_cubic() -> None:
    schedule = _build("gmp", 0.8, dense_share=0.1, cooldown=0.3)
    schedule.start({"w": nn.Parameter(torch.randn(50))}, 100)
    assert schedule.sparsity_at(40) == pytest.approx(0.8 * (1 - 0.5**3))


def test_gradual_pruning_without_steps_to_grow_in_is_refused() -> None:
    with pytest.raises(ValueError, match="dense_share 0.7 and cooldown 0.333333 leave no steps"):
        _build("gmp", dense_share=0.7)


def test_decay_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="latent_decay -1 is negative"):
        MethodOptions(latent_decay=-1.0)


def test_forward_pass_sees_the_ranked_weights_and_training_all() -> None:
    schedule = _build("parp-latent", prune_every=1)
    assert isinstance(schedule, LatentPARP)
    params: dict[str, Tensor] = dict(_model().named_parameters())
    schedule.start(params, STEPS)
    before = {name: param.detach().clone() for name, param in params.items()}
    with schedule.forward_weights(params, 1):
        ranked = magnitude_masks(before, 0.5)
        _assert_equal([dict(params)], [{n: before[n] * ranked[n] for n in ranked}])
    _assert_equal([dict(params)], [before])
