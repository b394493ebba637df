"""SpecAugment: what is hidden, of whom, and what stands in its place."""

import pytest
import torch
from torch import Tensor

from models.draw import Draw
from models.spec_augment import SpecAugment

MELS, FRAMES = 80, 300


def log_mels(count: int, frames: int = FRAMES) -> Tensor:
    return torch.randn(count, MELS, frames, dtype=torch.float64) + 3.0


def hidden(masks: SpecAugment, count: int, frames: int = FRAMES) -> Tensor:
    """Return bool (B, M, F), True where something else stands."""
    x = log_mels(count, frames)
    return masks(x, Draw(0, range(count))) != x


def bands(places: Tensor) -> list[int]:
    """Return the lengths of the runs of True in bool (n,)."""
    text = "".join("x" if place else " " for place in places.tolist())
    return [len(run) for run in text.split()]


def test_hidden_places_are_whole_frames_and_whole_mels_in_two_bands_each() -> None:
    masks = SpecAugment(frames=0.12, mels=0.2)
    for row in hidden(masks, 200):
        frames, mels = row.all(0), row.all(1)
        assert torch.equal(row, frames[None] | mels[:, None])
        for places, widest in ((frames, 36), (mels, 16)):
            assert len(bands(places)) <= 2
            assert sum(bands(places)) <= 2 * widest


def test_every_width_up_to_the_share_is_as_likely_and_every_place_is_reached() -> None:
    masks = SpecAugment(frames=0.0, mels=0.2)
    found = hidden(masks, 4000, frames=3)[:, :, 0]
    assert bool(found.any(0).all())
    alone = [bands(row) for row in found]
    widths = torch.tensor([sizes[0] for sizes in alone if len(sizes) == 2])
    assert set(widths.tolist()) >= set(range(1, 17))
    assert found.double().mean().item() == pytest.approx(0.2 - 0.1**2, abs=0.01)  # they overlap


def test_what_is_hidden_becomes_the_mean_and_nothing_else_changes() -> None:
    x = log_mels(5)
    before = x.clone()
    y = SpecAugment(0.12, 0.2)(x, Draw(3, range(5)))
    means = x.mean((1, 2), keepdim=True).expand_as(x)
    changed = y != x
    assert changed.flatten(1).any(1).all()
    assert torch.equal(y[changed], means[changed])
    assert torch.equal(x, before)


def test_masks_depend_on_seed_and_row_alone() -> None:
    masks, x = SpecAugment(0.12, 0.2), log_mels(4)
    whole = masks(x, Draw(7, range(4)))
    part = masks(x[[3, 1]], Draw(7, [3, 1]))
    assert torch.equal(part, whole[[3, 1]])
    assert not torch.equal(masks(x, Draw(8, range(4))), whole)
    assert not torch.equal(whole[0] != x[0], whole[1] != x[1])


def test_masks_without_a_draw_come_from_the_global_generator() -> None:
    masks, x = SpecAugment(0.12, 0.2), log_mels(2)
    torch.manual_seed(4)
    first, second = masks(x), masks(x)
    torch.manual_seed(4)
    assert torch.equal(masks(x), first)
    assert not torch.equal(second, first)


@pytest.mark.parametrize(
    ("masks", "frames", "mels"),
    [
        (SpecAugment(), False, False),
        (SpecAugment(0.5), True, False),
        (SpecAugment(0, 0.5), False, True),
    ],
)
def test_a_share_of_zero_hides_nothing(masks: SpecAugment, frames: bool, mels: bool) -> None:
    found = hidden(masks, 50)
    assert bool(found.all(1).any()) == frames
    assert bool(found.all(2).any()) == mels


@pytest.mark.parametrize("shares", [(-0.1, 0.0), (0.0, 1.1), (float("nan"), 0.0)])
def test_a_share_out_of_range_is_refused(shares: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"give one in \[0, 1\]"):
        SpecAugment(*shares)
