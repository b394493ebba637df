"""Phones or characters as tokens: one id for each symbol of a closed set."""

from collections.abc import Iterable, Sequence

from data.files import JsonObject

_BLANK, _EOS, _START = "<pad>", "<|endoftext|>", "<|startoftranscript|>"
_SPACE = "|"


class SymbolTokenizer:
    """One id per phone or character.

    The text of ``kind`` "phone" is phones joined by single spaces ("sil sh iy"); that of "char"
    is plain text, in which the symbol "|" stands for the space, as in wav2vec 2.0's letter
    vocabularies. A char symbol of more than one character ("<s>") is never text: it only keeps
    the place of an id that the weights have.

    Args:
        kind: "phone" or "char".
        symbols: All symbols, special ones included; a symbol's index is its id.
        blank_id: CTC's blank, or None.
        eos_id: End of sequence, or None.
        start_ids: Ids that a sequence starts with, or None.

    Raises:
        ValueError: If the kind is unknown, a symbol is empty, repeated or holds white space, or
            a special id is not a symbol's.
    """

    def __init__(
        self,
        kind: str,
        symbols: Sequence[str],
        blank_id: int | None = None,
        eos_id: int | None = None,
        start_ids: Sequence[int] | None = None,
    ) -> None:
        if kind not in ("phone", "char"):
            raise ValueError(f"kind {kind!r} is not 'phone' or 'char'")
        for symbol in symbols:
            if not symbol or symbol.split() != [symbol]:
                raise ValueError(
                    f"{kind} symbol {symbol!r} is empty or holds white space: in char, the space "
                    "is written '|'"
                )

        repeated = sorted({symbol for symbol in symbols if symbols.count(symbol) > 1})
        if repeated:
            raise ValueError(f"{kind} symbols listed more than once: {' '.join(repeated)}")
        self.kind = kind
        self.symbols = tuple(symbols)
        self.blank_id = blank_id
        self.eos_id = eos_id
        self.start_ids = None if start_ids is None else tuple(start_ids)
        special = {i for i in (blank_id, eos_id, *(start_ids or ())) if i is not None}
        for special_id in special:
            if not 0 <= special_id < len(symbols):
                raise ValueError(f"special id {special_id} is not one of {len(symbols)} symbols")

        if kind == "char":
            special |= {i for i, symbol in enumerate(symbols) if len(symbol) > 1}
        self._text = {i: symbol for i, symbol in enumerate(symbols) if i not in special}
        self._ids = {symbol: i for i, symbol in self._text.items()}

    @classmethod
    def for_ctc(cls, kind: str, symbols: Iterable[str]) -> "SymbolTokenizer":
        """Build a tokenizer for CTC: id 0 is the blank, then the symbols, sorted.

        Args:
            kind: "phone" or "char".
            symbols: Any order, repeats allowed: all characters of a corpus will do. A space
                becomes "|".

        Returns:
            The tokenizer; ``blank_id`` is 0.

        Raises:
            ValueError: As the constructor does.
        """
        return cls(kind, [_BLANK, *_sorted_symbols(kind, symbols)], blank_id=0)

    @classmethod
    def for_seq2seq(cls, kind: str, symbols: Iterable[str]) -> "SymbolTokenizer":
        """Build a tokenizer for a decoder: the symbols, sorted, then end and start.

        Args:
            kind: "phone" or "char".
            symbols: As for ``for_ctc``.

        Returns:
            The tokenizer; with n symbols ``eos_id`` is n and ``start_ids`` is (n + 1,).

        Raises:
            ValueError: As the constructor does.
        """
        ordered = _sorted_symbols(kind, symbols)
        n = len(ordered)
        return cls(kind, [*ordered, _EOS, _START], eos_id=n, start_ids=(n + 1,))

    @property
    def vocab_size(self) -> int:
        """Return the number of symbols, special ones included."""
        return len(self.symbols)

    def encode(self, text: str) -> list[int]:
        """Return one id per phone or character of ``text``.

        Args:
            text: Phones between white space, or plain text; "" gives no ids.

        Returns:
            Ids without blank, start or end.

        Raises:
            ValueError: If a phone or character is not one of the symbols.
        """
        if self.kind == "phone":
            symbols = text.split()
        else:
            # A literal "|" would come back as a space, so it is refused like any unknown one.
            symbols = [_SPACE if c == " " else "" if c == _SPACE else c for c in text]
        for position, symbol in enumerate(symbols):
            if symbol not in self._ids:
                shown = symbol if self.kind == "phone" else text[position]
                raise ValueError(
                    f"{self.kind} {shown!r} (number {position + 1} of the text) is not in the "
                    f"tokenizer: expected one of {' '.join(self._ids)}"
                )
        return [self._ids[symbol] for symbol in symbols]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids``, special ids left out.

        Args:
            ids: Ids in [0, vocab_size).

        Returns:
            Phones joined by one space, or plain text.

        Raises:
            ValueError: If an id is out of range.
        """
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"id {i} is not one of this tokenizer's {self.vocab_size} ids")
        symbols = [self._text[i] for i in ids if i in self._text]
        if self.kind == "phone":
            return " ".join(symbols)
        return "".join(symbols).replace(_SPACE, " ")

    def spec(self) -> JsonObject:
        """Return what ``build_tokenizer`` needs, in JSON's own types."""
        return {
            "kind": self.kind,
            "symbols": list(self.symbols),
            "blank_id": self.blank_id,
            "eos_id": self.eos_id,
            "start_ids": None if self.start_ids is None else list(self.start_ids),
        }


def _sorted_symbols(kind: str, symbols: Iterable[str]) -> list[str]:
    return sorted({_SPACE if kind == "char" and s == " " else s for s in symbols})
