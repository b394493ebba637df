"""What was said when: words or phones with times, from a hypothesis and where its ids lie."""

from collections.abc import Sequence
from dataclasses import dataclass

from models.tokenizers import Tokenizer

Span = tuple[float, float]


@dataclass(frozen=True)
class Timed:
    """Text and when it is said: seconds from the recording's beginning."""

    start: float
    end: float
    text: str


def timed_words(
    tokenizer: Tokenizer, ids: Sequence[int], spans: Sequence[Span], offset: float = 0.0
) -> list[Timed]:
    """Return the words of a hypothesis, or its phones, with times.

    Args:
        tokenizer: Gives the text.
        ids: The hypothesis.
        spans: Start and end of each id, in seconds.
        offset: Added to all of them.
    """
    words = tokenizer.decode(ids).split()
    found: list[list[Span]] = [[] for _ in words]
    for place, (token, span) in enumerate(zip(ids, spans, strict=True)):
        if not tokenizer.decode([token]).strip():  # a space between words, or a special symbol
            continue
        # The word that an id belongs to is the last of the text up to it.
        index = len(tokenizer.decode(ids[: place + 1]).split()) - 1
        found[index].append(span)
    return [
        Timed(offset + spans_of[0][0], offset + spans_of[-1][1], word)
        for word, spans_of in zip(words, found, strict=True)
        if spans_of
    ]
