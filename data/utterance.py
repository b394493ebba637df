"""One labelled recording: what every corpus format gives and everything else takes."""

from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from data.sphere import SAMPLE_RATE

PHONES, TEXT = "phones", "text"
LABELS = frozenset({PHONES, TEXT})


@dataclass(frozen=True)
class Phone:
    """One labelled stretch of a recording.

    Times are in samples, ``end`` excluded; both are 0 where the corpus gives none.
    """

    start: int
    end: int
    label: str


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """A recording or a part of one, and its labels.

    Attributes:
        utt_id: Its name, of which a corpus has no second; without white space.
        path: The recording.
        num_samples: Length in samples at 16 kHz.
        start: Sample of the recording at which the utterance begins.
        sample_rate: Of the recording, in Hz; what is not 16 kHz is resampled when it is read.
        speaker: Who speaks; empty where the corpus does not say.
        text: The words as they are written; empty where there are none.
        phones: Of one of TIMIT's sets; empty where there are none.
        sex: "m", "f", or empty where the corpus does not say.
        dialect: TIMIT's dialect region, 1 to 8; 0 elsewhere.
        sentence: TIMIT's name of the sentence, "sx139"; empty elsewhere.
        words: Of TIMIT's .WRD; empty where there is none.
        is_timit: The corpus holds TIMIT's core-test or development speakers.
    """

    utt_id: str
    path: Path
    num_samples: int
    start: int = 0
    sample_rate: int = SAMPLE_RATE
    speaker: str = ""
    text: str = ""
    phones: tuple[Phone, ...] = ()
    sex: str = ""
    dialect: int = 0
    sentence: str = ""
    words: tuple[str, ...] = ()
    is_timit: bool = False

    @property
    def seconds(self) -> float:
        """Length."""
        return self.num_samples / SAMPLE_RATE

    def label(self, kind: str) -> str:
        """Return the phones, joined by spaces, or the text: ``kind`` is "phones" or "text"."""
        return self.text if kind == TEXT else " ".join(phone.label for phone in self.phones)


@dataclass(frozen=True)
class Wanted:
    """What a run asks of a corpus.

    Attributes:
        labels: The labels, "phones" or "text" or both, that every utterance must have. Others are
            read where they are there.
        resample: Whether recordings of other rates than 16 kHz will do.
    """

    labels: Set[str] = LABELS
    resample: bool = False


class CorpusFormat:
    """Reads one format of corpora; a line in FORMATS of data/corpus.py makes it known.

    Attributes:
        looks_for: What :meth:`find` looks for, for the error where nothing is found.
        whole_test: The split that holds every utterance of the test part.
    """

    looks_for: str
    whole_test = "test"

    def find(self, data: Path) -> Path | None:
        """Return the root of the corpus that ``data`` is or holds, or None; ``data`` exists."""
        raise NotImplementedError

    def almost(self, data: Path) -> str:
        """Return what is there of a corpus that :meth:`find` did not find, with what to do."""
        return ""

    def parts(self, root: Path) -> list[str]:
        """Return the names by which the corpus itself is divided, by default a nameless whole.

        A split consists of the part of its name, or of all parts whose names begin with its name
        and a hyphen or an underscore: test of test-clean and test-other. What is missing of train,
        dev and test is drawn, see ``data.splits.draw_splits``.
        """
        return [""]

    def read(self, root: Path, part: str, wanted: Wanted) -> list[Utterance]:
        """Return the utterances of one part, in any order.

        Raises:
            ValueError: If a recording or a label is damaged. That no wanted label is missing is
                checked by ``Corpus`` as well.
        """
        raise NotImplementedError

    def describe(self, split: str) -> str:
        """Return how the protocol line names a split."""
        return split

    def warnings(self, split: str, utterances: list[Utterance]) -> list[str]:
        """Return a line for everything that a reader of a number on ``split`` must know."""
        return []
