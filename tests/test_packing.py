import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.packing import Packing

LENGTHS, WIDTH = [5, 9, 1], 10
CPU = torch.device("cpu")


def padded_heads() -> list[Tensor]:
    """Queries, keys and values (B, T, H, K)."""
    generator = torch.Generator().manual_seed(0)
    shape = (3, len(LENGTHS), WIDTH, 4, 6)
    return list(torch.randn(shape, generator=generator, dtype=torch.float64))


def is_frame() -> Tensor:
    return torch.arange(WIDTH) < torch.tensor(LENGTHS)[:, None]


def test_pack_takes_the_frames_of_each_utterance_in_order() -> None:
    padded = padded_heads()[0]
    packed = Packing(LENGTHS, WIDTH, CPU).pack(padded)
    expected = torch.cat([row[:n] for row, n in zip(padded, LENGTHS, strict=True)])
    assert torch.equal(packed, expected)


def test_unpack_puts_frames_back_with_zeros_as_padding() -> None:
    padded, packing = padded_heads()[0], Packing(LENGTHS, WIDTH, CPU)
    unpacked = packing.unpack(packing.pack(padded))
    assert torch.equal(unpacked, padded * is_frame()[:, :, None, None])


@pytest.mark.parametrize("at_once", [False, True])
def test_attention_within_utterances_equals_masked_attention_of_padded_rows(at_once: bool) -> None:
    padded = [x.requires_grad_() for x in padded_heads()]
    packing = Packing(LENGTHS, WIDTH, CPU, at_once)
    mask = is_frame()[:, None, None]
    masked = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in padded), attn_mask=mask)
    expected = masked.transpose(1, 2)[is_frame()]
    actual = packing.attend(*map(packing.pack, padded), dropout=0.0)
    upstream = torch.randn_like(expected)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)  # observed 5e-16
    torch.testing.assert_close(
        torch.autograd.grad(actual, padded, upstream),
        torch.autograd.grad(expected, padded, upstream),
        rtol=0,
        atol=1e-10,
    )


@pytest.mark.parametrize("at_once", [False, True])
def test_attention_within_utterances_drops_weights_out(at_once: bool) -> None:
    packing = Packing(LENGTHS, WIDTH, CPU, at_once)
    heads = [packing.pack(x) for x in padded_heads()]
    plain = packing.attend(*heads, dropout=0.0)
    assert not torch.allclose(packing.attend(*heads, dropout=0.5), plain)
