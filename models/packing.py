"""How the frames of a padded batch are laid out for the layers: with their padding or without.

Each way has the same methods. ``silence_padding`` and ``pack`` make of a padded batch what layers
work on, ``attend`` is the attention among it, and ``unpack`` makes a padded batch again.

Shape letters: B utterances, T frames of a padded row, N frames of all, D d_model, H heads, K head
width.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from models.attention import attend
from models.device import send


class Layout(Protocol):
    """One way of laying out the frames of a padded batch."""

    def silence_padding(self, padded: Tensor) -> Tensor:
        """Return (B, T, D) with zeros as padding, for a convolution that looks at it."""
        ...

    def pack(self, padded: Tensor) -> Tensor:
        """Map (B, T, D) to what layers work on."""
        ...

    def unpack(self, packed: Tensor) -> Tensor:
        """Map what layers worked on to (B, T, D); padding is unspecified."""
        ...

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, dropout: float) -> Tensor:
        """Attend within each utterance: what layers work on, split into heads (..., H, K)."""
        ...


class WholeRows:
    """Rows (B, T, D) without padding."""

    def silence_padding(self, padded: Tensor) -> Tensor:
        """Return ``padded``: there is none."""
        return padded

    def pack(self, padded: Tensor) -> Tensor:
        """Return ``padded``: layers work on the rows."""
        return padded

    def unpack(self, packed: Tensor) -> Tensor:
        """Return ``packed``, as ``pack`` does."""
        return packed

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, dropout: float) -> Tensor:
        """Attend from every frame of a row to all of it: (B, T, H, K) to (B, T, H, K)."""
        q, k, v = (x.transpose(1, 2) for x in (queries, keys, values))
        return attend(q, k, v, None, dropout).transpose(1, 2)


class MaskedRows:
    """Rows (B, T, D) whose padding takes part in everything, but is attended to by no frame.

    Args:
        is_frame: Bool (B, T), True = no padding; at least one in each row.
    """

    def __init__(self, is_frame: Tensor) -> None:
        self._is_frame = is_frame

    def silence_padding(self, padded: Tensor) -> Tensor:
        """Set padding to zero."""
        return padded.masked_fill(~self._is_frame[:, :, None], 0.0)

    def pack(self, padded: Tensor) -> Tensor:
        """Return ``padded``: layers work on the rows."""
        return padded

    def unpack(self, packed: Tensor) -> Tensor:
        """Return ``packed``, as ``pack`` does."""
        return packed

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, dropout: float) -> Tensor:
        """Attend to the frames of the row that are no padding: (B, T, H, K) to (B, T, H, K)."""
        q, k, v = (x.transpose(1, 2) for x in (queries, keys, values))
        return attend(q, k, v, self._is_frame[:, None, None], dropout).transpose(1, 2)


class Packing:
    """The frames (N, D) of all utterances, one after another, and no padding.

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
        self._is_frame = send(is_frame, device)

    def silence_padding(self, padded: Tensor) -> Tensor:
        """Set padding to zero."""
        return padded.masked_fill(~self._is_frame[:, :, None], 0.0)

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
            mask = self._is_frame[:, None, None]
            attended = F.scaled_dot_product_attention(q, k, v, mask, dropout)  # (B, H, T, K)
            return self.pack(attended.transpose(1, 2))
        heads = (x.transpose(0, 1)[None].split(self._lengths, 2) for x in (queries, keys, values))
        rows = [
            F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)  # (1, H, frames, K)
            for q, k, v in zip(*heads, strict=True)
        ]
        return torch.cat(rows, 2)[0].transpose(0, 1)
