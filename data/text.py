"""Written words as error rates compare them."""

import re
import unicodedata

NORMALIZER = "words split at punctuation (normaliser 2)"
"""What the protocol says of :func:`normalize_text`; the number grows when a rate would change.

Normaliser 1, of protocol lines without a number, dropped punctuation where it stood and so joined
the words on both sides of a dash.
"""

_APOSTROPHES = dict.fromkeys(map(ord, "\u2018\u2019\u201b\u02bc\u02b9\u00b4\u0060\uff07"), "'")
_ZERO_WIDTH_SPACE = "\u200b"


def normalize_text(text: str) -> str:
    """Return ``text`` as the words that WER compares.

    Lower case, with ligatures, full-width letters and their like written out (NFKC). Punctuation
    and symbols stand between words: "co-op" is "co op" and "and/or" is "and or". Apostrophes inside
    a word stay, every one as the plain one. Signs without a width, such as soft hyphens, are
    dropped; runs of white space become one space. Letters of every script, their accents and digits
    stay.

    Source:
        The basic normaliser of openai-whisper (``whisper/normalizers/basic.py``) splits words
        alike, but also at apostrophes and combining marks, and leaves out words in brackets. Its
        English one keeps apostrophes.
    """
    text = text.translate(_APOSTROPHES).replace(_ZERO_WIDTH_SPACE, " ")
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).lower())
    text = "".join(map(_as_compared, text.translate(_APOSTROPHES)))
    text = re.sub(r"(?<!\w)'|'(?!\w)", " ", text)
    return unicodedata.normalize("NFKC", " ".join(text.split()))  # what was dropped stood between


def _as_compared(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Cf":
        return ""
    return " " if category[0] in "PS" and character != "'" else character
