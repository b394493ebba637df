"""SpecAugment: what training hides of a log-mel.

Shape letters: B batch, M mels, F mel frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.device import send
from models.draw import Draw

MASKS = 2  # of frames, and as many of mels


@dataclass(frozen=True)
class SpecAugment:
    """Two masks of neighbouring frames and two of neighbouring mels, anew in every step.

    Each mask is up to the share wide, every width being as likely, so that two of them hide the
    share on average where they do not overlap. What is hidden becomes the mean of the log-mel.

    Attributes:
        frames: Share of the frames; 0 hides none.
        mels: Share of the mels; 0 hides none.

    Raises:
        ValueError: If a share is not in [0, 1].

    Source:
        Park et al. 2019 (arXiv:1904.08779), section 2: masks of uniform width and place, two of
        each kind as in the policies LD and SM, the width of time masks bounded by a share of the
        frames, the mean in their place. There the bound is the smaller of that share and a number
        of frames. Time warping, of which they find the least use, is left out.
    """

    frames: float = 0.0
    mels: float = 0.0

    def __post_init__(self) -> None:
        for name, share in (("frames", self.frames), ("mels", self.mels)):
            if not 0 <= share <= 1:
                raise ValueError(f"the share of {name} to mask is {share}: give one in [0, 1]")

    def __call__(self, log_mel: Tensor, draw: Draw | None = None) -> Tensor:
        """Return a copy of log-mel (B, M, F) with masks on it; nothing waits for the device.

        What is hidden of an utterance depends on the seed, its row of ``draw``, M and F;
        without ``draw`` the seed comes from torch's global CPU generator.
        """
        if not (self.frames or self.mels):
            return log_mel
        draw = draw or Draw.anew(len(log_mel))
        generators = [draw.generator(row) for row in draw.rows]
        _, num_mels, num_frames = log_mel.shape
        hidden_frames = _draw_bands(num_frames, self.frames, generators)
        hidden_mels = _draw_bands(num_mels, self.mels, generators)
        hidden = send(hidden_mels, log_mel.device)[:, :, None]
        hidden = hidden | send(hidden_frames, log_mel.device)[:, None]
        return torch.where(hidden, log_mel.mean((1, 2), keepdim=True), log_mel)


def _draw_bands(width: int, share: float, generators: Sequence[torch.Generator]) -> Tensor:
    """Return bool (B, width), True in each row's masks."""
    widest = round(share * width)
    hidden = torch.zeros(len(generators), width, dtype=torch.bool)
    for row, generator in zip(hidden, generators, strict=True):
        for _ in range(MASKS):
            size = int(torch.randint(widest + 1, (), generator=generator))
            start = int(torch.randint(width - size + 1, (), generator=generator))
            row[start : start + size] = True
    return hidden
