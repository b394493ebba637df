"""Tokenizers: text to ids and back, each rebuilt from the plain ``spec()`` in a checkpoint."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from data.files import JsonObject, has_type, shown
from models.tokenizers.byte_bpe import ByteBPETokenizer, hf_tokenizer_json
from models.tokenizers.subword import SubwordTokenizer
from models.tokenizers.symbols import SymbolTokenizer

__all__ = [
    "ByteBPETokenizer",
    "SubwordTokenizer",
    "SymbolTokenizer",
    "Tokenizer",
    "build_tokenizer",
    "hf_tokenizer_json",
]


class Tokenizer(Protocol):
    """What training, decoding and checkpoints ask of a tokenizer.

    ``blank_id`` is set for CTC; ``eos_id`` and ``start_ids`` (the ids that a decoder is started
    with) for sequence to sequence. The others are None.
    """

    @property
    def kind(self) -> str:
        """Return "phone", "char", "subword" or "bpe"."""

    @property
    def vocab_size(self) -> int:
        """Return the number of ids, special ones included."""

    @property
    def blank_id(self) -> int | None:
        """Return the CTC blank."""

    @property
    def eos_id(self) -> int | None:
        """Return the id that ends a sequence."""

    @property
    def start_ids(self) -> tuple[int, ...] | None:
        """Return the ids that a sequence starts with."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text``, without blank, start or end."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids``; special ids leave no trace."""

    def spec(self) -> JsonObject:
        """Return what ``build_tokenizer`` needs, in JSON's own types."""


_SYMBOL_FIELDS = {
    "kind": "str",
    "symbols": "list of str",
    "blank_id": "id or null",
    "eos_id": "id or null",
    "start_ids": "list of id or null",
}
_FIELDS = {
    "phone": _SYMBOL_FIELDS,
    "char": _SYMBOL_FIELDS,
    "subword": {"kind": "str", "model": "str"},
    "bpe": {
        "kind": "str",
        "vocab": "list of str",
        "merges": "list of str",
        "added_tokens": "dict of id",
        "language": "str",
        "task": "str",
    },
}


def build_tokenizer(spec: Mapping[str, Any]) -> Tokenizer:
    """Rebuild a tokenizer from its ``spec()``.

    Args:
        spec: A dict as ``spec()`` gives it; JSON and back leaves it equal.

    Returns:
        A tokenizer whose ``spec()`` equals ``spec`` and which gives the same ids.

    Raises:
        ValueError: If the kind is unknown, a field is missing, unknown or of another type, or
            the fields contradict one another.
    """
    kind = spec.get("kind") if isinstance(spec, Mapping) else None
    if not isinstance(kind, str) or kind not in _FIELDS:
        raise ValueError(
            f"unknown tokenizer kind {shown(kind)}: expected one of {', '.join(_FIELDS)}"
        )
    expected = _FIELDS[kind]
    if set(spec) != set(expected):
        missing, unknown = sorted(set(expected) - set(spec)), sorted(set(spec) - set(expected))
        raise ValueError(f"{kind} tokenizer spec: missing fields {missing}, unknown {unknown}")
    for name, wanted in expected.items():
        if not has_type(spec[name], wanted):
            raise ValueError(f"{kind} tokenizer spec: field {name!r} is not a {wanted}")
    fields = {name: value for name, value in spec.items() if name != "kind"}
    if kind == "subword":
        return SubwordTokenizer(**fields)
    if kind == "bpe":
        return ByteBPETokenizer(**fields)
    return SymbolTokenizer(kind, **fields)
