"""TIMIT's 61 phones and how they fold to 48 and to 39.

The 61 symbols are those of the ``.PHN`` files; 48 is a usual training set, and 39 is the set every
phone error rate is counted on. The glottal stop ``q`` has no place in 48 or 39: it is deleted, not
turned into silence.

Source:
    The folding of Lee and Hon (1989) as Kaldi's ``egs/timit/s5`` has it, row by row.
"""

from collections.abc import Sequence

# phone61: (phone48, phone39); None = deleted
_FOLDS: dict[str, tuple[str, str] | None] = {
    "aa": ("aa", "aa"),
    "ae": ("ae", "ae"),
    "ah": ("ah", "ah"),
    "ao": ("ao", "aa"),
    "aw": ("aw", "aw"),
    "ax": ("ax", "ah"),
    "ax-h": ("ax", "ah"),
    "axr": ("er", "er"),
    "ay": ("ay", "ay"),
    "b": ("b", "b"),
    "bcl": ("vcl", "sil"),
    "ch": ("ch", "ch"),
    "d": ("d", "d"),
    "dcl": ("vcl", "sil"),
    "dh": ("dh", "dh"),
    "dx": ("dx", "dx"),
    "eh": ("eh", "eh"),
    "el": ("el", "l"),
    "em": ("m", "m"),
    "en": ("en", "n"),
    "eng": ("ng", "ng"),
    "epi": ("epi", "sil"),
    "er": ("er", "er"),
    "ey": ("ey", "ey"),
    "f": ("f", "f"),
    "g": ("g", "g"),
    "gcl": ("vcl", "sil"),
    "h#": ("sil", "sil"),
    "hh": ("hh", "hh"),
    "hv": ("hh", "hh"),
    "ih": ("ih", "ih"),
    "ix": ("ix", "ih"),
    "iy": ("iy", "iy"),
    "jh": ("jh", "jh"),
    "k": ("k", "k"),
    "kcl": ("cl", "sil"),
    "l": ("l", "l"),
    "m": ("m", "m"),
    "n": ("n", "n"),
    "ng": ("ng", "ng"),
    "nx": ("n", "n"),
    "ow": ("ow", "ow"),
    "oy": ("oy", "oy"),
    "p": ("p", "p"),
    "pau": ("sil", "sil"),
    "pcl": ("cl", "sil"),
    "q": None,
    "r": ("r", "r"),
    "s": ("s", "s"),
    "sh": ("sh", "sh"),
    "t": ("t", "t"),
    "tcl": ("cl", "sil"),
    "th": ("th", "th"),
    "uh": ("uh", "uh"),
    "uw": ("uw", "uw"),
    "ux": ("uw", "uw"),
    "v": ("v", "v"),
    "w": ("w", "w"),
    "y": ("y", "y"),
    "z": ("z", "z"),
    "zh": ("zh", "sh"),
}

PHONES_61: tuple[str, ...] = tuple(sorted(_FOLDS))
PHONES_48: tuple[str, ...] = tuple(sorted({fold[0] for fold in _FOLDS.values() if fold}))
PHONES_39: tuple[str, ...] = tuple(sorted({fold[1] for fold in _FOLDS.values() if fold}))

PHONE_SETS: dict[int, tuple[str, ...]] = {61: PHONES_61, 48: PHONES_48, 39: PHONES_39}

# Symbols of the smaller sets fold as well, so that a model trained on 48 can be scored on 39.
_TO_48: dict[str, str | None] = {phone: fold and fold[0] for phone, fold in _FOLDS.items()}
_TO_48 |= {phone: phone for phone in PHONES_48}
_TO_39: dict[str, str | None] = {fold[0]: fold[1] for fold in _FOLDS.values() if fold}
_TO_39 |= {phone: fold and fold[1] for phone, fold in _FOLDS.items()}
_TABLES: dict[int, dict[str, str | None]] = {
    61: {phone: phone for phone in PHONES_61},
    48: _TO_48,
    39: _TO_39,
}


def fold_phones(phones: Sequence[str], num_phones: int = 39) -> list[str]:
    """Fold phones to a smaller TIMIT set.

    Args:
        phones: Symbols of the 61 set; for ``num_phones`` 48 and 39 symbols of any of the smaller
            sets too, so folding twice changes nothing.
        num_phones: 61 keeps every symbol, ``q`` included (a training set; scoring is on 39);
            48 and 39 fold and delete ``q``.

    Returns:
        The folded symbols in order; runs of ``sil`` are kept (see ``merge_silence``).

    Raises:
        ValueError: If a symbol is unknown, or ``num_phones`` is not 61, 48 or 39.
    """
    if num_phones not in _TABLES:
        raise ValueError(f"no TIMIT phone set has {num_phones} phones: choose 61, 48 or 39")
    table = _TABLES[num_phones]
    folded = []
    for phone in phones:
        if phone not in table:
            raise ValueError(
                f"unknown phone {phone!r}: looked in TIMIT's 61 phones (h#, aa, bcl, ...)"
                + ("" if num_phones == 61 else " and their 48 and 39 folds")
            )
        symbol = table[phone]
        if symbol is not None:
            folded.append(symbol)
    return folded


def check_phones(phones: Sequence[str], where: str) -> Sequence[str]:
    """Return ``phones`` if each is a symbol of the 61, 48 or 39 set.

    Args:
        phones: Symbols.
        where: File and line, named in the error.

    Raises:
        ValueError: If one is not.
    """
    for phone in phones:
        if phone not in _TO_39:
            raise ValueError(
                f"{where}: unknown phone {phone!r}, not one of TIMIT's 61 or of their 48 and 39 "
                "folds: correct it"
            )
    return phones


def merge_silence(phones: Sequence[str]) -> list[str]:
    """Collapse each run of ``sil`` to one, as SpeechBrain scores; Kaldi keeps every ``sil``."""
    return [
        phone
        for index, phone in enumerate(phones)
        if phone != "sil" or index == 0 or phones[index - 1] != "sil"
    ]
