"""A made-up corpus in TIMIT's layout, to run everything end to end without a licence.

Each of the 39 scored phone classes has its own sound: formant-like bands that glide from one set of
frequencies to another, drawn from the seed and kept apart from each other. Allophones of a class
sound nearly alike, closures and pauses are nearly silent, and made-up speakers differ in pitch,
formants, loudness and speed. No number obtained on it says anything about speech.

    python -m data.synthetic data/demo            # writes a corpus, about 20 MB
"""

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.files import (
    IDLE_SECONDS,
    read_json,
    remove_left_overs,
    temporary_beside,
    write_json,
)
from data.options import OptionParser, command, run_program
from data.phones import PHONES_61, fold_phones
from data.sphere import SAMPLE_RATE, write_sphere

Array = NDArray[np.float64]

_VERSION = 1  # raise it when the same seed would give another corpus
_MARKER = "demo_corpus.json"

_VOWELS = {
    **{"iy": "ee", "ih": "i", "eh": "e", "ey": "ay", "ae": "a", "aa": "ar", "aw": "ow", "ay": "ie"},
    **{"ah": "u", "ao": "aw", "oy": "oy", "ow": "o", "uh": "ou", "uw": "oo", "ux": "ue"},
    **{"er": "ur", "ax": "uh", "ix": "y", "axr": "er", "ax-h": "eh"},
    **{"el": "le", "em": "om", "en": "on", "eng": "ong"},
}
_CONSONANTS = {
    **{"b": "b", "d": "d", "g": "g", "p": "p", "t": "t", "k": "k", "ch": "ch", "jh": "j"},
    **{"f": "f", "v": "v", "th": "th", "dh": "dh", "s": "s", "z": "z", "sh": "sh", "zh": "zh"},
    **{"hh": "h", "hv": "hv", "m": "m", "n": "n", "ng": "ng", "nx": "nn", "l": "l", "r": "r"},
    **{"w": "w", "y": "y", "dx": "dd"},
}
_CLOSURES = {"b": "bcl", "d": "dcl", "g": "gcl", "p": "pcl", "t": "tcl", "k": "kcl"}
_CLOSURES |= {"ch": "tcl", "jh": "dcl"}
_SONORANTS = frozenset("m n ng nx l r w y el em en eng".split())
_BURSTS = frozenset("b d g p t k ch jh dx".split())
_VOICED = frozenset("b d g jh v dh z zh dx hv".split())
_SILENCES = frozenset("h# pau epi q".split()) | frozenset(_CLOSURES.values())

_BAND_LIMITS = ((260, 850), (950, 2300), (2500, 3900), (700, 3000), (3200, 7200))  # Hz
_BAND_WIDTHS = np.array([90.0, 140.0, 200.0, 350.0, 600.0])  # Hz
_VOICED_BANDS = 3  # the first three are filled with a pulse train, the others with noise
_FRAME, _HOP = 256, 64


@dataclass(frozen=True)
class _Sound:
    """What one phone sounds like."""

    bands: Array  # (2, 5) Hz: centres at the start and at the end
    voice: float  # level of the voiced bands
    noise: float  # level of the noise bands
    seconds: float
    decays: bool


@dataclass(frozen=True)
class _Speaker:
    name: str
    dialect: int
    pitch: float  # Hz
    formant_scale: float
    level: float  # full scale = 1
    pace: float  # factor on durations


def write_demo_corpus(
    root: str | Path,
    seed: int = 0,
    train_speakers: int = 24,
    test_speakers: int = 8,
    sx_per_speaker: int = 6,
    si_per_speaker: int = 4,
) -> None:
    """Write the corpus: SPHERE recordings of 1 to 2 s with ``.PHN``, ``.WRD`` and ``.TXT``.

    Every speaker also has SA1 and SA2, the same two sentences for all. TRAIN and TEST share the
    lexicon and no speaker. The same arguments give the same bytes.

    Args:
        root: Folder to fill; created, or there and empty.
        seed: Draws sounds, lexicon, speakers and sentences; 0 or more.
        train_speakers: Number of speakers in TRAIN, dealt to DR1 to DR8 in turn.
        test_speakers: The same of TEST.
        sx_per_speaker: Number of SX sentences each.
        si_per_speaker: Number of SI sentences each.

    Raises:
        ValueError: If ``root`` holds something.
    """
    root = Path(root)
    if _is_foreign(root) or (root / _MARKER).exists():
        raise ValueError(f"{root} is not an empty folder: give a new one for the demo corpus")
    sounds = _draw_sounds(np.random.default_rng([seed, 0]))
    lexicon = _draw_lexicon(np.random.default_rng([seed, 1]))
    deck = _Deck(lexicon, np.random.default_rng([seed, 2]))
    dialect_sentences = [deck.draw_sentence() for _ in range(2)]
    written = 0

    for part, count in (("TRAIN", train_speakers), ("TEST", test_speakers)):
        part_id = 3 + (part == "TEST")
        for index in range(count):
            rng = np.random.default_rng([seed, part_id, index])
            speaker = _draw_speaker(rng, part, index)
            folder = root / part / f"DR{speaker.dialect}" / speaker.name.upper()
            folder.mkdir(parents=True)
            sentences = {f"SA{number}": s for number, s in enumerate(dialect_sentences, 1)}
            for kind, each in (("SX", sx_per_speaker), ("SI", si_per_speaker)):
                first = 1 + index * each + (part == "TEST") * train_speakers * each
                for number in range(first, first + each):
                    sentences[f"{kind}{number}"] = deck.draw_sentence()
            for name, words in sentences.items():
                _write_utterance(folder / name, words, lexicon, speaker, sounds, rng)
                written += 4

    marker = {"version": _VERSION, "seed": seed, "files": written}
    write_json(root / _MARKER, marker, indent=None)


def ensure_demo_corpus(root: str | Path, seed: int = 0) -> Path:
    """Return the folder of a complete demo corpus of this version and seed, writing it if needed.

    It is written beside ``root`` and moved there when complete, so an interrupted or a parallel run
    never leaves or sees half a corpus. A demo corpus of another version or seed is replaced.

    Raises:
        ValueError: If ``root`` holds something that is not a demo corpus, or cannot be written.
    """
    root = Path(root)
    if _is_complete(root, seed):
        return root
    if _is_foreign(root):
        raise ValueError(
            f"{root} holds something that is not a demo corpus: give another folder, or empty it"
        )

    new = temporary_beside(root, "new")
    old = temporary_beside(root, "old")
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        remove_left_overs(root.parent, IDLE_SECONDS)
        write_demo_corpus(new, seed)
        if root.exists() and not _is_complete(root, seed):
            root.rename(old)
        new.rename(root)
    except OSError as error:
        if not _is_complete(root, seed):  # else another process was faster, with the same bytes
            raise ValueError(
                f"cannot write the demo corpus to {root}: {error.strerror}: give another folder"
            ) from None
    finally:
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)

    return root


def _is_foreign(root: Path) -> bool:
    """Return whether ``root`` is something else than a demo corpus, an empty folder or nothing."""
    if not root.is_dir():
        return root.exists()
    return not (root / _MARKER).is_file() and any(root.iterdir())


def _is_complete(root: Path, seed: int) -> bool:
    try:
        marker = read_json(root / _MARKER)
    except ValueError:
        return False
    files = sum(len(names) for _, _, names in os.walk(root)) - 1
    return marker == {"version": _VERSION, "seed": seed, "files": files}


def _draw_sounds(rng: np.random.Generator) -> dict[str, _Sound]:
    """Give each of the 61 phones a sound, allophones of one class a similar one."""
    classes: dict[str, Array] = {}
    sounds = {}
    for phone in PHONES_61:
        folded = fold_phones([phone], 39) or ["q"]
        if folded[0] not in classes:
            classes[folded[0]] = _draw_apart(rng, list(classes.values()))
        bands = classes[folded[0]] * (1 + 0.04 * (2 * rng.random((2, 5)) - 1))
        sounds[phone] = _make_sound(phone, bands)
    return sounds


def _draw_apart(rng: np.random.Generator, others: list[Array]) -> Array:
    """Draw (2, 5) band centres: of 100 candidates the one farthest from all others."""
    low, high = np.array(_BAND_LIMITS, dtype=np.float64).T
    candidates = rng.random((100, 2, 5))
    if others:
        taken = np.log(np.stack(others) / low) / np.log(high / low)
        gaps = np.abs(candidates[:, None] - taken[None])  # (100, others, 2, 5)
        # Voiced and noise bands must each be apart, for most phones have one kind only.
        voiced, noisy = (np.square(g).sum((2, 3)) for g in np.split(gaps, [_VOICED_BANDS], axis=3))
        candidates = candidates[np.argmax(np.minimum(voiced, noisy).min(1))][None]
    return low * (high / low) ** candidates[0]


def _make_sound(phone: str, bands: Array) -> _Sound:
    if phone in _SILENCES:
        seconds = {"h#": 0.13, "pau": 0.11, "epi": 0.05, "q": 0.05}.get(phone, 0.06)
        humming = 0.02 if phone in ("bcl", "dcl", "gcl", "q") else 0.0
        return _Sound(bands, humming, 0.004, seconds, False)
    if phone in _BURSTS:
        return _Sound(bands, 0.3 * (phone in _VOICED), 1.0, 0.07, phone not in ("ch", "jh"))
    if phone in _SONORANTS:
        return _Sound(bands, 0.6, 0.0, 0.11, False)
    if phone in _VOWELS:
        return _Sound(bands, 1.0, 0.0, 0.09 if phone in ("ax", "ix", "ax-h") else 0.14, False)
    return _Sound(bands, 0.4 * (phone in _VOICED), 0.6, 0.12, False)


def _draw_lexicon(rng: np.random.Generator, num_words: int = 72) -> dict[str, tuple[str, ...]]:
    """Invent pronounceable words of one or two syllables that use every phone again and again."""
    queues: dict[int, list[str]] = {0: [], 1: []}

    def deal(kind: int) -> str:
        letters = list((_CONSONANTS, _VOWELS)[kind])
        if not queues[kind]:
            queues[kind] = [letters[i] for i in rng.permutation(len(letters))]
        return queues[kind].pop()

    lexicon: dict[str, tuple[str, ...]] = {}
    patterns = ("cv", "cvc", "vc", "cvcv")
    while len(lexicon) < num_words:
        pattern = patterns[len(lexicon) % len(patterns)]
        sounds = [deal(int(kind == "v")) for kind in pattern]
        spelling = "".join((_CONSONANTS | _VOWELS)[sound] for sound in sounds)
        if spelling not in lexicon:
            with_closures = [(_CLOSURES[s], s) if s in _CLOSURES else (s,) for s in sounds]
            lexicon[spelling] = tuple(phone for pair in with_closures for phone in pair)
    return lexicon


class _Deck:
    """Deals the words of the lexicon evenly, so that no word and no phone is rare."""

    def __init__(self, lexicon: dict[str, tuple[str, ...]], rng: np.random.Generator) -> None:
        self._lexicon = lexicon
        self._rng = rng
        self._words: list[str] = []
        self._dealt: set[tuple[str, ...]] = set()

    def draw_sentence(self) -> list[str]:
        """Return a new sentence: two to five words of 9 to 14 phones together."""
        sentence: list[str] = []
        while sum(len(self._lexicon[word]) for word in sentence) < 9:
            if not self._words:
                words = list(self._lexicon)
                self._words = [words[i] for i in self._rng.permutation(len(words))]
            sentence.append(self._words.pop())
        if tuple(sentence) in self._dealt:
            return self.draw_sentence()
        self._dealt.add(tuple(sentence))
        return sentence


def _draw_speaker(rng: np.random.Generator, part: str, index: int) -> _Speaker:
    sex = "mf"[(index + index // 8) % 2]
    # The X keeps the name off TIMIT's lists of speakers.
    letters = "".join("abcdefghijklmnopqrstuvwxyz"[i] for i in (index // 26 % 26, index % 26))
    spread = rng.random(4)
    return _Speaker(
        name=f"{sex}x{letters}{int(part == 'TEST')}",
        dialect=index % 8 + 1,
        pitch=(100 if sex == "m" else 180) * (1 + 0.3 * spread[0]),
        formant_scale=(0.95 if sex == "m" else 1.02) + 0.05 * spread[1],
        level=0.04 + 0.05 * spread[2],
        pace=0.9 + 0.2 * spread[3],
    )


def _write_utterance(
    stem: Path,
    words: list[str],
    lexicon: dict[str, tuple[str, ...]],
    speaker: _Speaker,
    sounds: dict[str, _Sound],
    rng: np.random.Generator,
) -> None:
    """Write the four files of one sentence."""
    phones, spans = _pronounce(words, lexicon, rng)
    spread = 0.85 + 0.3 * rng.random(len(phones))
    seconds = np.array([sounds[phone].seconds for phone in phones]) * speaker.pace * spread
    edges = np.concatenate([[0], np.cumsum(np.maximum(seconds * SAMPLE_RATE, 480).astype(int))])
    write_sphere(
        stem.with_suffix(".WAV"), _synthesise([sounds[p] for p in phones], edges, speaker, rng)
    )
    lines = {
        ".PHN": [f"{edges[i]} {edges[i + 1]} {phone}" for i, phone in enumerate(phones)],
        ".WRD": [f"{edges[a]} {edges[b]} {w}" for w, (a, b) in zip(words, spans, strict=True)],
        ".TXT": [f"0 {edges[-1]} {' '.join(words).capitalize()}."],
    }
    for suffix, content in lines.items():
        stem.with_suffix(suffix).write_text("\n".join(content) + "\n", "ascii", newline="\n")


def _pronounce(
    words: list[str], lexicon: dict[str, tuple[str, ...]], rng: np.random.Generator
) -> tuple[list[str], list[tuple[int, int]]]:
    """Return the phones of a sentence and each word's first and past-the-last phone."""
    phones = ["h#"]
    spans = []
    for word in words:
        draw = rng.random()
        if lexicon[word][0] in _VOWELS and draw < 0.6:
            phones.append("q")
        elif phones[-1] != "h#" and draw < 0.2:
            phones.append("pau" if draw < 0.13 else "epi")
        spans.append((len(phones), len(phones) + len(lexicon[word])))
        phones.extend(lexicon[word])
    return [*phones, "h#"], spans


def _synthesise(
    sounds: list[_Sound], edges: NDArray[np.int64], speaker: _Speaker, rng: np.random.Generator
) -> NDArray[np.int16]:
    """Filter a pulse train and noise, frame by frame, with each phone's gliding bands.

    Returns:
        (S,) int16, S the last of ``edges``.
    """
    num_samples = int(edges[-1])
    num_frames = num_samples // _HOP + _FRAME // _HOP
    padded = (num_frames - 1) * _HOP + _FRAME
    centres = np.arange(num_frames) * _HOP  # the first half frame is cut off at the end
    index = np.clip(np.searchsorted(edges, centres, side="right") - 1, 0, len(sounds) - 1)
    place = np.clip((centres - edges[index]) / (edges[index + 1] - edges[index]), 0, 1)[:, None]

    bands = np.stack([sound.bands for sound in sounds])[index]  # (frames, 2, 5)
    bands = speaker.formant_scale * (bands[:, 0] * (1 - place) + bands[:, 1] * place)
    hertz = np.arange(_FRAME // 2 + 1) * SAMPLE_RATE / _FRAME
    shape = np.exp(-0.5 * np.square((hertz - bands[:, :, None]) / _BAND_WIDTHS[:, None]))
    fade = np.array([sound.decays for sound in sounds])[index][:, None] * 0.8 * place
    voice = np.array([sound.voice for sound in sounds])[index][:, None] * (1 - fade)
    noise = np.array([sound.noise for sound in sounds])[index][:, None] * (1 - fade)

    pitch = speaker.pitch * (1.1 - 0.2 * np.arange(padded) / padded)  # falls, as in a statement
    pulses = np.diff(np.floor(np.cumsum(pitch) / SAMPLE_RATE), prepend=0.0)
    pulses *= np.sqrt(SAMPLE_RATE / speaker.pitch)  # the power of white noise of variance 1
    window = np.sqrt(np.hanning(_FRAME + 1)[:-1])
    spans = np.arange(num_frames)[:, None] * _HOP + np.arange(_FRAME)
    spectrum = np.fft.rfft(pulses[spans] * window) * voice * shape[:, :_VOICED_BANDS].sum(1)
    hiss = rng.standard_normal(padded)
    spectrum += np.fft.rfft(hiss[spans] * window) * noise * shape[:, _VOICED_BANDS:].sum(1)
    frames = np.fft.irfft(spectrum, _FRAME) * window

    waveform = np.zeros(padded)
    for offset in range(0, _FRAME, _HOP):  # frames a window's length apart do not overlap
        rows = frames[:, offset : offset + _HOP].reshape(-1)
        waveform[offset : offset + len(rows)] += rows
    waveform = waveform[_FRAME // 2 :][:num_samples]
    waveform = speaker.level * (2 * waveform + 0.02 * rng.standard_normal(num_samples))
    return np.round(np.clip(waveform, -0.99, 0.99) * 32767).astype(np.int16)


def write_demo(arguments: Sequence[str] | None) -> None:
    """Write or reuse a demo corpus as the command line says, and print what is there."""
    description = "Write the made-up corpus to a folder."
    parser = OptionParser(prog=command("synthetic"), description=description, allow_abbrev=False)
    parser.add_argument("dir", metavar="DIR", help="new or empty folder, or one with a demo corpus")
    parser.add_argument("--seed", type=int, default=0, help="0 or more (default 0)")
    options = parser.parse_args(arguments)
    if options.seed < 0:
        raise ValueError(f"--seed {options.seed} is negative: give 0 or more")

    root = ensure_demo_corpus(options.dir, options.seed)
    for part in ("TRAIN", "TEST"):
        recordings = list((root / part).glob("DR*/*/S[IX]*.WAV"))
        seconds = sum(path.stat().st_size - 1024 for path in recordings) / (2 * SAMPLE_RATE)
        print(f"{root / part}: {len(recordings)} recordings without SA, {seconds / 60:.1f} min")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    return run_program(command("synthetic"), lambda: write_demo(arguments))


if __name__ == "__main__":
    sys.exit(main())
