"""Written words as error rates compare them."""

import re
import unicodedata


def normalize_text(text: str) -> str:
    """Return ``text`` as the words that WER compares.

    Lower case; punctuation and symbols dropped, so that "co-op" becomes "coop", but for apostrophes
    inside a word (a typographic one becomes the plain one); runs of white space become one space.
    Letters of every script, their accents and digits stay.
    """
    text = unicodedata.normalize("NFC", text).lower().replace("\u2019", "'")
    text = "".join(c for c in text if c == "'" or unicodedata.category(c)[0] not in "PS")
    text = re.sub(r"(?<!\w)'|'(?!\w)", "", text)
    return unicodedata.normalize("NFC", " ".join(text.split()))  # what was dropped stood between
