"""SpecAugment: what training hides of a log-mel.

Shape letters: B batch, M mels, F mel frames.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.device import send
from models.draw import Draw, Numbers

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
        _, num_mels, num_frames = log_mel.shape
        hidden_frames = _draw_bands(num_frames, self.frames, draw.of_rows(0, 2 * MASKS))
        hidden_mels = _draw_bands(num_mels, self.mels, draw.of_rows(1, 2 * MASKS))
        hidden = send(hidden_mels, log_mel.device)[:, :, None]
        hidden = hidden | send(hidden_frames, log_mel.device)[:, None]
        return torch.where(hidden, log_mel.mean((1, 2), keepdim=True), log_mel)


def _draw_bands(width: int, share: float, drawn: Numbers) -> Tensor:
    """Return bool (B, width), True in each row's masks, of uniform numbers (B, 2 * MASKS)."""
    widest = round(share * width)
    sizes = (drawn[:, :MASKS] * (widest + 1)).astype(np.int64)
    starts = (drawn[:, MASKS:] * (width - sizes + 1)).astype(np.int64)

    places = np.arange(width)
    is_past_start = places >= starts[:, :, None]
    is_before_end = places < (starts + sizes)[:, :, None]
    return torch.from_numpy((is_past_start & is_before_end).any(1))
