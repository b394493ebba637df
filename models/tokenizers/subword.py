"""SentencePiece subwords as tokens, trained on the corpus' own transcripts."""

import base64
import binascii
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

from data.files import JsonObject

_SPECIAL_PIECES: dict[bool, dict[str, Any]] = {
    False: {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1},
    True: {"pad_id": -1, "unk_id": 0, "bos_id": 1, "eos_id": 2},
}


class SubwordTokenizer:
    """SentencePiece subwords; the trained model travels inside ``spec()``.

    A model with a padding piece is for CTC and that piece, id 0, is the blank; a model with
    start and end pieces is for a decoder. The unknown piece that SentencePiece insists on is
    never encoded and leaves no trace when decoded.

    Args:
        model: A serialised SentencePiece model, base64.

    Raises:
        ValueError: If ``model`` is not such a model, or has neither a blank at id 0 nor start
            and end pieces.
    """

    kind = "subword"

    def __init__(self, model: str) -> None:
        import sentencepiece

        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(base64.b64decode(model, validate=True))
            for i in range(self._processor.GetPieceSize()):
                self._processor.IdToPiece(i)  # raises where a damaged piece is no UTF-8
        except (binascii.Error, RuntimeError, ValueError) as error:
            raise ValueError(
                "the subword model is not a base64 SentencePiece model: train one with "
                "SubwordTokenizer.train"
            ) from error
        self._model = model
        pad, start, eos = (
            self._processor.pad_id(),
            self._processor.bos_id(),
            self._processor.eos_id(),
        )
        if pad != 0 and min(start, eos) < 0:
            raise ValueError(
                "the SentencePiece model has neither a padding piece at id 0 (CTC) nor start and "
                "end pieces (a decoder): train one with SubwordTokenizer.train"
            )
        self.blank_id = 0 if pad == 0 else None
        self.eos_id = None if pad == 0 else eos
        self.start_ids = None if pad == 0 else (start,)

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int, seq2seq: bool = False
    ) -> "SubwordTokenizer":
        """Train a unigram model on ``texts``; the same texts in the same order give the same.

        Text is taken as it is, but any white space counts as one space. Every character of
        ``texts`` gets a piece.

        Args:
            texts: Transcripts.
            vocab_size: Pieces, special ones included.
            seq2seq: Start and end pieces for a decoder, in place of CTC's blank.

        Returns:
            The tokenizer, with exactly ``vocab_size`` ids.

        Raises:
            ValueError: If there is no text, or it cannot fill or does not fit ``vocab_size``.

        Source:
            Kudo 2018 (arXiv:1804.10959), as the sentencepiece package implements it.
        """
        import sentencepiece

        lines = [line for line in map(_single_spaces, texts) if line]
        if not lines:
            raise ValueError("no text to train subwords on: every transcript is empty")
        writer = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.Train(
                sentence_iterator=iter(lines),
                model_writer=writer,
                vocab_size=vocab_size,
                model_type="unigram",
                character_coverage=1.0,
                normalization_rule_name="identity",
                max_sentence_length=max(len(line.encode()) for line in lines) + 1,
                num_threads=1,  # sums in one order, so the same pieces every time
                minloglevel=2,
                pad_piece="<pad>",
                bos_piece="<|startoftranscript|>",
                eos_piece="<|endoftext|>",
                **_SPECIAL_PIECES[seq2seq],
            )
        except RuntimeError as error:
            raise ValueError(_training_message(vocab_size, str(error))) from error
        return cls(base64.b64encode(writer.getvalue()).decode())

    @property
    def vocab_size(self) -> int:
        """Return the number of pieces, special ones included."""
        return self._processor.GetPieceSize()

    def encode(self, text: str) -> list[int]:
        """Return the ids of the most likely segmentation of ``text``.

        Args:
            text: Plain text; "" gives no ids.

        Returns:
            Ids without blank, start or end.

        Raises:
            ValueError: If a character was not in the training text.
        """
        pieces = self._processor.EncodeAsPieces(_single_spaces(text))
        ids = [self._processor.PieceToId(piece) for piece in pieces]
        for piece, i in zip(pieces, ids, strict=True):
            if i == self._processor.unk_id():
                raise ValueError(
                    f"{piece.lstrip('▁')!r} in {text!r} is not covered by the subword model: "
                    "expected only characters of the text it was trained on"
                )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids``, special ids left out.

        Args:
            ids: Ids in [0, vocab_size).

        Returns:
            Plain text without leading or trailing space.

        Raises:
            ValueError: If an id is out of range.
        """
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"id {i} is not one of this tokenizer's {self.vocab_size} ids")
        special = (self._processor.unk_id(), self._processor.pad_id())
        return self._processor.DecodeIds([int(i) for i in ids if i not in special])

    def spec(self) -> JsonObject:
        """Return what ``build_tokenizer`` needs, in JSON's own types."""
        return {"kind": self.kind, "model": self._model}


def _single_spaces(text: str) -> str:
    return " ".join(text.split())


def _training_message(vocab_size: int, reason: str) -> str:
    """Turn SentencePiece's many-line error into one line with a remedy."""
    most = re.search(r"<= (\d+)", reason)
    if most:
        return f"--subword-vocab {vocab_size} is too large for this text: choose at most {most[1]}"
    least = re.search(r"\d+ vs (\d+)", reason)
    if least:
        return (
            f"--subword-vocab {vocab_size} is too small for this text: choose at least {least[1]}"
        )
    return f"no subword model of vocab_size {vocab_size} for this text: {' '.join(reason.split())}"
