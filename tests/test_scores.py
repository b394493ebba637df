"""Scores in place of magnitudes, against what they are defined as."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models.training.optim import Optimizer, learning_rate_factor, restarted_factor
from pruning.interface import Schedule
from pruning.masks import count_zeros, magnitude_masks
from pruning.schedules import SCHEDULES, MethodOptions, build_schedule
from pruning.scores import fisher_scores, lamp_scores


def _weights(seed: int) -> dict[str, Tensor]:
    """Tensors of very different sizes, with zeros and equal magnitudes."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"b.weight": (7, 9), "a.weight": (5, 4), "c.bias": (11,), "d.bias": (1,)}
    weights = {}
    for number, (name, shape) in enumerate(shapes.items()):
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
        weights[name] = (drawn * 4).round() / 4 * 10.0 ** (number - 1)
    return weights


def _lamp(weight: Tensor) -> list[float]:
    values = [abs(float(value)) for value in weight.flatten()]
    return [x**2 / sum(other**2 for other in values if other >= x) if x else 0.0 for x in values]


@pytest.mark.parametrize("seed", range(5))
def test_lamp_is_the_share_of_what_is_not_smaller(seed: int) -> None:
    weights = _weights(seed)
    scores = lamp_scores(weights)
    for name, weight in weights.items():
        assert scores[name].shape == weight.shape
        expected = torch.tensor(_lamp(weight), dtype=torch.float64).view_as(weight)
        torch.testing.assert_close(scores[name], expected, rtol=1e-12, atol=0.0)


def test_lamp_of_a_tensor_of_zeros_is_zero() -> None:
    assert lamp_scores({"b": torch.zeros(3)})["b"].tolist() == [0.0, 0.0, 0.0]


def test_lamp_does_not_depend_on_the_scale_of_a_tensor() -> None:
    weights = _weights(0)
    scaled = {name: weight * 8.0 for name, weight in weights.items()}
    for name, scores in lamp_scores(weights).items():
        assert torch.equal(scores, lamp_scores(scaled)[name])


@given(sparsity=st.floats(0.0, 0.97), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_lamp_masks_drop_the_exact_count_and_order_each_tensor_by_magnitude(
    sparsity: float, seed: int
) -> None:
    weights = _weights(seed)
    masks = magnitude_masks(lamp_scores(weights), sparsity)
    dropped, total = count_zeros(masks)
    assert dropped == round(sparsity * total)
    for name, mask in masks.items():
        kept, gone = weights[name][mask].abs(), weights[name][~mask].abs()
        assert not len(kept) or not len(gone) or kept.min() >= gone.max()


def test_lamp_of_float32_weights_tells_neighbours_apart() -> None:
    first = torch.tensor(1.0)
    weights = {"w": torch.stack([first, first.nextafter(torch.tensor(2.0)), torch.tensor(0.5)])}
    scores = lamp_scores(weights)["w"]
    assert scores[0] < scores[1]


def test_fisher_weighs_magnitude_by_the_root_of_the_second_moment() -> None:
    weights = {"w": torch.tensor([-2.0, 1.0, 3.0])}
    moments = {"w": torch.tensor([4.0, 9.0, 0.0])}
    scores = fisher_scores(weights, moments, eps=0.5)
    assert scores["w"].tolist() == [5.0, 3.5, 1.5]


def _fit(schedule: Schedule, steps: int = 12) -> tuple[dict[str, Tensor], Optimizer]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4)).double()
    params: dict[str, Tensor] = dict(model.named_parameters())
    optimizer = Optimizer(model, 0.02, 0.02, (), steps)
    schedule.start(params, steps)
    schedule.optimizer = optimizer
    for step in range(1, steps + 1):
        x = torch.randn(16, 6, dtype=torch.float64)
        with schedule.forward_weights(params, step):
            loss = (model(x) - x[:, :4].sin()).square().mean()
            optimizer.backward(loss)
        optimizer.step(step - 1, loss.detach())
        schedule.after_step(params, step)
    schedule.finish(params, steps)
    return params, optimizer


def _build(method: str, **options: Any) -> Schedule:
    return build_schedule(method, MethodOptions(sparsity=0.5, prune_every=2, **options))


@pytest.mark.parametrize("method", [name for name in SCHEDULES if name not in ("dense", "rp")])
def test_method_ranks_by_lamp(method: str) -> None:
    weights = _weights(1)
    by_lamp = _build(method, score="lamp").rank(weights)
    expected = magnitude_masks(lamp_scores(weights), 0.5)
    assert all(torch.equal(by_lamp[name], expected[name]) for name in weights)
    by_magnitude = _build(method).rank(weights)
    assert not all(torch.equal(by_lamp[name], by_magnitude[name]) for name in weights)


@pytest.mark.parametrize("latent", [False, True])
def test_gradual_pruning_ranks_by_the_moments_of_its_optimizer(latent: bool) -> None:
    schedule = _build("gmp", score="fisher", latent=latent)
    params, optimizer = _fit(schedule)
    dropped, total = count_zeros(params)
    assert dropped == round(0.5 * total)
    moments = optimizer.second_moments(params)
    ranked = magnitude_masks(fisher_scores(params, moments), 0.25)
    by_method = schedule.rank(params, 0.25)
    assert all(torch.equal(by_method[name], ranked[name]) for name in ranked)


def test_moments_are_those_of_adam() -> None:
    model = nn.Linear(3, 2).double()
    optimizer = Optimizer(model, 0.02, 0.02, (), 10, clip=1e9)
    loss = model(torch.ones(1, 3, dtype=torch.float64)).square().sum()
    optimizer.backward(loss)
    gradient = [gradient.clone() for gradient in optimizer.gradients.views]
    optimizer.step(0, loss.detach())
    moments = optimizer.second_moments(dict(model.named_parameters()))
    for moment, expected in zip(moments.values(), gradient, strict=True):
        torch.testing.assert_close(moment, 0.02 * expected.square())


def test_moments_before_the_first_step_are_refused() -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="weight has no second moment yet"):
        Optimizer(model, 0.02, 0.02, (), 10).second_moments(dict(model.named_parameters()))


@pytest.mark.parametrize("method", ["mpi", "omp", "imp", "parp", "parp-mask", "parp-latent"])
def test_fisher_is_refused_where_untrained_weights_are_ranked(method: str) -> None:
    with pytest.raises(ValueError, match=f"{method} ranks weights .* use it with gmp, or"):
        _build(method, score="fisher")


def test_rate_starts_again_at_prunes_and_falls_to_a_tenth() -> None:
    rates = [restarted_factor(step, 100, 0.1, [30, 60]) for step in range(100)]
    assert rates[:10] == [learning_rate_factor(step, 100, 0.1, 0.0) for step in range(10)]
    assert rates[10] == rates[30] == rates[60] == 1.0
    assert rates[20] == pytest.approx(0.55)
    assert rates[29] == pytest.approx(0.1 + 0.9 / 20)
    assert rates[99] == pytest.approx(0.1 + 0.9 / 40)
    assert max(rates) == 1.0


def test_rate_of_a_phase_is_that_of_a_run_of_its_length() -> None:
    optimizer = Optimizer(nn.Linear(2, 1), 1.0, 1.0, (), steps=100, hold=0.2, phases=[40])
    rates = []
    for step in range(100):
        optimizer.step(step, torch.zeros(()))
        rates.append(optimizer.lr)
    assert rates[:40] == [learning_rate_factor(step, 40, 0.1, 0.2) for step in range(40)]
    assert rates[40:] == [learning_rate_factor(step, 60, 0.1, 0.2) for step in range(60)]


def test_prunes_in_the_warm_up_leave_it_as_it_is() -> None:
    rates = [restarted_factor(step, 100, 0.2, [10, 15]) for step in range(100)]
    assert rates[:20] == [learning_rate_factor(step, 100, 0.2, 0.0) for step in range(20)]
    assert rates[20] == 1.0
    assert rates[60] == pytest.approx(0.55)
