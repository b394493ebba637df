"""Batches without their padding: the frames of all utterances, one after another.

Shape letters: B utterances, T frames of a padded row, N frames of all, D d_model, H heads, K head
width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from models.device import send


class Packing:
    """Where the frames of a padded batch stand once the padding is left out.

    What works on every frame alone, a linear layer or a norm, then does no work for padding, and
    attention needs no mask.

    Args:
        lengths: Frames of each utterance, each at least 1.
        width: T.
        device: Where the frames are.
        at_once: Whether attention takes all utterances at once, padded again, as a GPU likes it
            (few launches), or one by one, as a CPU does (no work for padding). None decides by
            the device.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        width: int,
        device: torch.device,
        at_once: bool | None = None,
    ) -> None:
        self._lengths = list(lengths)
        self._width = width
        self._at_once = device.type != "cpu" if at_once is None else at_once
        is_frame = torch.arange(self._width) < torch.tensor(self._lengths)[:, None]
        positions = is_frame.flatten().nonzero()[:, 0]  # on the CPU: no device waits
        self._positions = send(positions, device)
        self._attention_mask = send(is_frame[:, None, None], device)

    def pack(self, padded: Tensor) -> Tensor:
        """Map (B, T, ...) to (N, ...)."""
        return padded.flatten(0, 1).index_select(0, self._positions)

    def unpack(self, packed: Tensor) -> Tensor:
        """Map (N, ...) to (B, T, ...), zero where there is padding."""
        batch = len(self._lengths)
        width = self._width
        rows = packed.new_zeros(batch * width, *packed.shape[1:])
        return rows.index_copy(0, self._positions, packed).unflatten(0, (batch, width))

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, dropout: float) -> Tensor:
        """Attend within each utterance: scaled dot-product attention of (N, H, K) to (N, H, K)."""
        if self._at_once:
            q, k, v = (self.unpack(x).transpose(1, 2) for x in (queries, keys, values))
            mask = self._attention_mask
            attended = F.scaled_dot_product_attention(q, k, v, mask, dropout)  # (B, H, T, K)
            return self.pack(attended.transpose(1, 2))
        heads = (x.transpose(0, 1)[None].split(self._lengths, 2) for x in (queries, keys, values))
        rows = [
            F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)  # (1, H, frames, K)
            for q, k, v in zip(*heads, strict=True)
        ]
        return torch.cat(rows, 2)[0].transpose(0, 1)
