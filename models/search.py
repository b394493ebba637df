"""The search for hypotheses: each option of decoding in one place.

An option is a field of :class:`Search`. The field says what its flag is, what the protocol line
says of it, and by its name what it sets in the search of a model: a parameter of ``beam_decode`` in
models/ctc.py, or a field of ``DecodingOptions`` in models/whisper/config.py.
"""

from collections.abc import Set
from dataclasses import dataclass, field, fields
from typing import Any

from data.options import option


def search_option(help: str, default: Any, says: str, positive: bool = False) -> Any:
    """Describe an option of beam search.

    Args:
        help: Of the flag.
        default: With which the search is as it would be without the option.
        says: What the protocol line says of it, with ``{}`` for the value.
        positive: Whether the value must be.
    """
    metadata = {"help": help, "choices": None, "positive": positive, "says": says}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Search:
    """How hypotheses are searched for."""

    decode: str = option("search", "greedy", ("greedy", "beam"))
    beam_size: int = search_option(
        "hypotheses kept by --decode beam", 5, says="beam {}", positive=True
    )

    @classmethod
    def of(cls, options: "Search") -> "Search":
        """Return what ``options``, which may have more fields, say of the search alone."""
        return cls(**{each.name: getattr(options, each.name) for each in fields(cls)})

    @property
    def is_greedy(self) -> bool:
        """Whether only the best hypothesis is kept, and no option of beam search matters."""
        return self.decode == "greedy" or self.beam_size == 1

    def settings(self) -> dict[str, Any]:
        """Return what a model's search is to be given, by name; beam size 1 is greedy."""
        if self.is_greedy:
            return {"beam_size": 1}
        return {each.name: getattr(self, each.name) for each in self._beam_options()}

    def describe(self) -> str:
        """Return the search in words: "greedy", or what is said of every option not at its default.

        The size of the beam is always said.
        """
        if self.is_greedy:
            return "greedy"
        said = [
            each for each in self._beam_options() if each.name in {"beam_size", *self._changed()}
        ]
        return ", ".join(each.metadata["says"].format(getattr(self, each.name)) for each in said)

    def check(self, takes: Set[str], model: str) -> None:
        """Make sure that every option that was changed has an effect.

        Args:
            takes: Names of the options that the model's search has.
            model: What to call it.

        Raises:
            ValueError: If one has none.
        """
        for name in self._changed():
            flag = "--" + name.replace("_", "-")
            if self.decode == "greedy":
                raise ValueError(f"{flag} is for beam search: add --decode beam, or leave it out")
            if name not in takes:
                raise ValueError(f"{flag} is not for {model}: leave it out")

    def _beam_options(self) -> list[Any]:
        return [each for each in fields(self) if "says" in each.metadata]

    def _changed(self) -> list[str]:
        options = self._beam_options()
        return [each.name for each in options if getattr(self, each.name) != each.default]


GREEDY = Search()
