"""Training logits of padded batches from captured graphs, for both kinds of model.

Batches are padded to one of a few shapes and everything that is drawn is an input, as
models/cuda_graphs.py asks for. The padding changes no number but for what dropout draws.

Shape letters: B utterances, T encoder frames, C feature channels, M mels, F mel frames, L tokens,
V vocab.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from models.cuda_graphs import GraphedLogits
from models.device import send
from models.draw import Draw
from models.family import SpeechModel
from models.masking import DroppedLayers, DroppedOnDevice, TrainingMasks, draw_masks

ROWS, FRAMES, TOKENS = 2, 16, 8  # batches are padded to multiples of these


class GraphedCTC:
    """A CTC model in training, on features of its frozen feature encoder.

    Args:
        model: In train mode whenever this is called.
    """

    def __init__(self, model: SpeechModel) -> None:
        self._model = model
        self._graphed = GraphedLogits(_PaddedCTC(model))

    def __call__(self, features: Sequence[Tensor], draw: Draw | None = None) -> Tensor:
        """Map features (frames, C) of each utterance to logits (B, T, V).

        Randomness: as the model draws it for a batch in train mode.
        """
        device = next(self._model.parameters()).device
        config = self._model.config
        lengths = [len(rows) for rows in features]
        batch = _up(len(lengths), ROWS)
        width = _up(max(lengths), FRAMES)
        drawn = draw_masks(lengths, max(lengths), config, draw)
        frames = send(_grow(drawn.frames, batch, width), device)
        channels = send(_grow(drawn.channels, batch, config.d_model), device)
        assert isinstance(drawn.layers, DroppedLayers)
        skipped = torch.tensor(drawn.layers.skipped or [False] * config.num_layers)
        # A row that stands for no utterance has one frame, so that its attention is defined.
        grown = torch.tensor([*lengths, *[1] * (batch - len(lengths))])
        is_frame = send(torch.arange(width) < grown[:, None], device)
        padded = send(pad_sequence(list(features), batch_first=True), device)
        padded = F.pad(padded, (0, 0, 0, width - max(lengths), 0, batch - len(lengths)))
        logits = self._graphed(padded, is_frame, frames, channels, send(skipped, device))
        return logits[: len(lengths), : max(lengths)]


class GraphedSeq2Seq:
    """A sequence-to-sequence model in training.

    Args:
        model: In train mode whenever this is called.
    """

    def __init__(self, model: SpeechModel) -> None:
        self._graphed = GraphedLogits(model)

    def __call__(self, log_mel: Tensor, decoder_ids: Tensor) -> Tensor:
        """Map log-mel (B, M, F) and ids (B, L) to logits (B, L, V)."""
        batch, length = decoder_ids.shape
        rows = _up(batch, ROWS) - batch
        tokens = _up(length, TOKENS) - length
        log_mel = F.pad(log_mel, (0, 0, 0, 0, 0, rows))
        decoder_ids = F.pad(decoder_ids, (0, tokens, 0, rows))  # later ids change no earlier score
        return self._graphed(log_mel, decoder_ids)[:batch, :length]


class _PaddedCTC(nn.Module):
    def __init__(self, model: SpeechModel) -> None:
        super().__init__()
        self.model: Any = model

    def forward(
        self, features: Tensor, is_frame: Tensor, frames: Tensor, channels: Tensor, layers: Tensor
    ) -> Tensor:
        masks = TrainingMasks(frames, channels, DroppedOnDevice(layers))
        logits: Tensor = self.model.masked_logits(features, is_frame, masks)
        return logits


def _up(size: int, step: int) -> int:
    return -(-size // step) * step


def _grow(mask: Tensor | None, rows: int, columns: int) -> Tensor:
    """Return a bool mask (rows, columns) that begins with ``mask`` and hides nothing else."""
    grown = torch.zeros(rows, columns, dtype=torch.bool)
    if mask is not None:
        grown[: mask.shape[0], : mask.shape[1]] = mask
    return grown
