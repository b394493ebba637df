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
