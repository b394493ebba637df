import copy

import pytest
import torch

from models.attention import MultiHeadAttention


@pytest.mark.parametrize("key_bias", [False, True])
@pytest.mark.parametrize("num_queries", [1, 5])
def test_attention_to_unprojected_source_equals_that_to_its_keys_and_values(
    randomise, key_bias: bool, num_queries: int
) -> None:
    attention = randomise(MultiHeadAttention(24, 4, key_bias).double(), scale=0.5)
    x = torch.randn(3, num_queries, 24, dtype=torch.float64)
    source = torch.randn(3, 11, 24, dtype=torch.float64)
    expected = attention(x, attention.keys_values(source))
    assert expected.std() > 0.3
    actual = attention.to_unprojected(x, source)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)  # observed 3e-15


@pytest.mark.parametrize("is_causal", [False, True])
def test_training_in_bf16_on_a_cpu_attends_as_in_float64(randomise, is_causal: bool) -> None:
    """It goes another way there, by plain products: values and gradients are the same."""
    attention = randomise(MultiHeadAttention(24, 4, key_bias=False), scale=0.3)
    exact = copy.deepcopy(attention).double()
    x = torch.randn(3, 11, 24)

    expected = exact(x.double(), is_causal=is_causal)
    expected.square().sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        actual = attention(x, is_causal=is_causal)
    assert actual.dtype == torch.bfloat16
    actual.float().square().sum().backward()

    _assert_near(actual, expected)
    for name, param in exact.named_parameters():
        _assert_near(attention.get_parameter(name).grad, param.grad)


def _assert_near(actual: torch.Tensor | None, expected: torch.Tensor | None) -> None:
    assert actual is not None
    assert expected is not None
    distance = (actual.double() - expected).norm() / expected.norm()
    assert distance < 0.03  # observed 0.007; a step of bf16 is 2**-8
