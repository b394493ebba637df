"""Fast dropout on the CPU: what torch's promises, from other random bits."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models import build_model
from models.dropout import Dropout
from models.training.tasks import CTCTask

SIZE = 1_000_003  # not a multiple of the four elements that are drawn at a time
DEVIATIONS = 5.0


def fast_dropout(p: float, inplace: bool = False) -> Dropout:
    module = Dropout(p, inplace)
    module.fast = True
    return module


def kept(p: float, seed: int = 0, size: int = SIZE) -> Tensor:
    torch.manual_seed(seed)
    return fast_dropout(p)(torch.ones(size, dtype=torch.float64)) != 0


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9])
def test_as_many_elements_are_dropped_as_asked_for(p: float) -> None:
    deviation = (p * (1 - p) / SIZE) ** 0.5
    assert abs(1 - kept(p).double().mean().item() - p) < DEVIATIONS * deviation + 2**-17


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_what_is_kept_is_scaled_by_what_is_left_and_nothing_else_changes(
    dtype: torch.dtype,
) -> None:
    x = torch.randn(7, 11, 13, dtype=dtype)
    dropped = round(0.1 * 2**16) / 2**16
    y = fast_dropout(0.1)(x)
    assert y.shape == x.shape
    torch.testing.assert_close(
        y[y != 0], (x * torch.tensor(1 / (1 - dropped), dtype=dtype))[y != 0]
    )
    assert 0 < (y == 0).sum() < 0.2 * y.numel()


@pytest.mark.parametrize("distance", [1, 2, 3, 4, 768])
def test_neighbours_are_dropped_independently(distance: int) -> None:
    is_kept = kept(0.5).double() - 0.5
    correlation = 4 * (is_kept[distance:] * is_kept[:-distance]).mean().item()
    assert abs(correlation) < DEVIATIONS / SIZE**0.5


def test_one_seed_draws_the_same_and_another_does_not() -> None:
    assert torch.equal(kept(0.5, seed=1), kept(0.5, seed=1))
    assert not torch.equal(kept(0.5, seed=1), kept(0.5, seed=2))


def test_gradients_are_dropped_and_scaled_as_the_values_were() -> None:
    x = torch.randn(100, 7, dtype=torch.float64, requires_grad=True)
    y = fast_dropout(0.3)(x)
    upstream = torch.randn_like(y)
    y.backward(upstream)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, upstream * (y / x).detach(), rtol=1e-12, atol=1e-12)


def test_in_place_after_a_gelu_gives_the_same_values_and_gradients() -> None:
    found = []
    for inplace in (False, True):
        torch.manual_seed(3)
        x = torch.linspace(-3, 3, 999, dtype=torch.float64, requires_grad=True)
        y = fast_dropout(0.4, inplace)(F.gelu(x))
        y.square().sum().backward()
        found.append((y.detach(), x.grad))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_eval_mode_changes_nothing(p: float) -> None:
    x = torch.randn(10)
    assert torch.equal(fast_dropout(p).eval()(x), x)


def test_probability_zero_keeps_and_one_drops_everything() -> None:
    x = torch.randn(10)
    assert torch.equal(fast_dropout(0.0)(x), x)
    assert torch.equal(fast_dropout(1.0)(x), torch.zeros(10))


@pytest.mark.parametrize("fast", [False, True])
def test_a_task_drops_what_torch_drops_unless_it_is_fast(fast: bool) -> None:
    model = build_model("w2v2-demo", activation_dropout=0.5).train()
    CTCTask(model, blank_id=0, fast=fast)
    torch.manual_seed(0)
    block = model.encoder.layers[0].ffn
    dropped = block.activation_dropout(torch.ones(100))
    torch.manual_seed(0)
    assert torch.equal(dropped, F.dropout(torch.ones(100), 0.5)) is not fast
