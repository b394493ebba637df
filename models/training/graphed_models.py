"""Training logits of padded batches from captured graphs, for both kinds of model.

Batches are padded to one of a few shapes and everything that is drawn is an input, as
models/cuda_graphs.py asks for. The padding changes no number but for what dropout draws.

Shape letters: B utterances, T encoder frames, C feature channels, M mels, F mel frames, L tokens,
V vocab.
"""

from collections.abc import Iterable, Sequence
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
from models.training.shapes import Shape, choose_shapes, smallest_that_holds

FRAMES, TOKENS = 16, 8  # widths are multiples of these


class GraphedCTC:
    """A CTC model in training, on features of its frozen feature encoder.

    Args:
        model: In train mode whenever this is called.

    Attributes:
        shapes: What is captured.
    """

    def __init__(self, model: SpeechModel) -> None:
        self._model = model
        self._graphed = GraphedLogits(_PaddedCTC(model))
        self.shapes: list[Shape] = []

    def capture(self, batches: Iterable[Shape]) -> None:
        """Capture a step for shapes that hold all ``batches``, their widths in frames."""
        self.shapes = choose_shapes(batches, FRAMES)
        weight = next(self._model.parameters())
        channels = self._model.config.conv_dims[-1]
        examples = []
        for shape in self.shapes:
            features = [weight.new_zeros(shape.width, channels)] * shape.rows
            examples.append(self._inputs(shape, features, Draw(0, range(shape.rows))))
        self._graphed.capture(examples)

    def __call__(self, features: Sequence[Tensor], draw: Draw | None = None) -> Tensor | None:
        """Map features (frames, C) of each utterance to logits (B, T, V).

        Returns:
            None where no captured shape holds the batch.

        Randomness: as the model draws it for a batch in train mode.
        """
        batch = Shape(len(features), max(len(rows) for rows in features))
        shape = smallest_that_holds(self.shapes, batch)
        if shape is None:
            return None
        logits = self._graphed(*self._inputs(shape, features, draw))
        return logits[: batch.rows, : batch.width]

    def _inputs(
        self, shape: Shape, features: Sequence[Tensor], draw: Draw | None
    ) -> tuple[Tensor, ...]:
        """Return what is captured or replayed for a batch."""
        device = next(self._model.parameters()).device
        config = self._model.config
        lengths = [len(rows) for rows in features]
        rows, width = shape.rows - len(lengths), shape.width - max(lengths)
        drawn = draw_masks(lengths, max(lengths), config, draw)
        assert isinstance(drawn.layers, DroppedLayers)
        skipped = torch.tensor(drawn.layers.skipped or [False] * config.num_layers)

        # A row that stands for no utterance has one frame, so that its attention is defined.
        is_frame = torch.arange(shape.width) < torch.tensor([*lengths, *[1] * rows])[:, None]
        hidden = _grow(drawn.frames, shape.rows, shape.width)
        channels = _grow(drawn.channels, shape.rows, config.d_model)
        padded = F.pad(pad_sequence(list(features), batch_first=True), (0, 0, 0, width, 0, rows))
        batch = (padded, is_frame, hidden, channels, skipped)
        return tuple(send(tensor, device) for tensor in batch)


class GraphedSeq2Seq:
    """A sequence-to-sequence model in training.

    Args:
        model: In train mode whenever this is called.

    Attributes:
        shapes: What is captured.
    """

    def __init__(self, model: SpeechModel) -> None:
        self._model = model
        self._graphed = GraphedLogits(model)
        self.shapes: list[Shape] = []

    def capture(self, batches: Iterable[Shape]) -> None:
        """Capture a step for shapes that hold all ``batches``: tokens, and mel frames beside."""
        self.shapes = choose_shapes(batches, TOKENS)
        weight = next(self._model.parameters())
        num_mels = self._model.config.num_mels
        self._graphed.capture(
            [
                (
                    weight.new_zeros(shape.rows, num_mels, shape.context),
                    weight.new_zeros(shape.rows, shape.width, dtype=torch.int64),
                )
                for shape in self.shapes
            ]
        )

    def __call__(self, log_mel: Tensor, decoder_ids: Tensor) -> Tensor | None:
        """Map log-mel (B, M, F) and ids (B, L) to logits (B, L, V); None where no shape holds."""
        batch = Shape(len(decoder_ids), decoder_ids.shape[1], log_mel.shape[2])
        shape = smallest_that_holds(self.shapes, batch)
        if shape is None:
            return None
        rows, tokens = shape.rows - batch.rows, shape.width - batch.width
        log_mel = F.pad(log_mel, (0, 0, 0, 0, 0, rows))
        decoder_ids = F.pad(decoder_ids, (0, tokens, 0, rows))  # later ids change no earlier score
        return self._graphed(log_mel, decoder_ids)[: batch.rows, : batch.width]


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


def _grow(mask: Tensor | None, rows: int, columns: int) -> Tensor:
    """Return a bool mask (rows, columns) that begins with ``mask`` and hides nothing else."""
    grown = torch.zeros(rows, columns, dtype=torch.bool)
    if mask is not None:
        grown[: mask.shape[0], : mask.shape[1]] = mask
    return grown
