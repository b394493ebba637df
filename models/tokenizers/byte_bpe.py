"""Whisper's own tokens: GPT-2's byte-level byte-pair encoding, without the regex package.

Which words the merges run in depends on which characters are letters and which are numbers. The
reference implementation (Hugging Face's ``tokenizers``, tried with 0.23) goes by Unicode 16, and
Python's ``unicodedata`` by 13 (Python 3.10) to 16 (Python 3.14). The letters and numbers that
came in between are listed here, so ids do not depend on the Python in use; no other category that
matters changed. A Python with Unicode 17 may cut the characters new in 17 differently.
"""

import copy
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.files import JsonObject
from models.fields import Field, JsonFile, shown, take_fields, take_table

# Assigned in Unicode 14, 15, 15.1 and 16: ranges of hexadecimal code points, last one included.
_NEW_LETTERS = """
870-887 889-88e 8b5 8c8-8c9 c5d cdd 170d 171f 1b4c 1c89-1c8a 2c2f 2c5f 9ffd-9fff a7c0-a7c1
a7cb-a7cd a7d0-a7d1 a7d3 a7d5-a7dc a7f2-a7f4 10570-1057a 1057c-1058a 1058c-10592 10594-10595
10597-105a1 105a3-105b1 105b3-105b9 105bb-105bc 105c0-105f3 10780-10785 10787-107b0
107b2-107ba 10d4a-10d65 10d6f-10d85 10ec2-10ec4 10f70-10f81 11071-11072 11075 1123f-11240
11380-11389 1138b 1138e 11390-113b5 113b7 113d1 113d3 11740-11746 11ab0-11abf 11bc0-11be0
11f02 11f04-11f10 11f12-11f33 12f90-12ff0 1342f 13441-13446 13460-143fa 16100-1611d
16a70-16abe 16d40-16d6c 18cff 1aff0-1aff3 1aff5-1affb 1affd-1affe 1b11f-1b122 1b132 1b155
1df00-1df1e 1df25-1df2a 1e030-1e06d 1e290-1e2ad 1e4d0-1e4eb 1e5d0-1e5ed 1e5f0 1e7e0-1e7e6
1e7e8-1e7eb 1e7ed-1e7ee 1e7f0-1e7fe 2a6de-2a6df 2b735-2b739 2ebf0-2ee5d 31350-323af
"""
_NEW_NUMBERS = """
10d40-10d49 116d0-116e3 11bf0-11bf9 11f50-11f59 16130-16139 16ac0-16ac9 16d70-16d79
1ccf0-1ccf9 1d2c0-1d2d3 1e4f0-1e4f9 1e5f1-1e5fa
"""
# GPT-2's pattern over a string of classes: see _CharacterClasses. Contractions are the reason for
# letters that stay themselves.
_WORD = re.compile(r"'(?:s|t|re|ve|m|ll|d)| ?[Ldelmrstv]+| ?N+| ?['.]+|[ _]+(?![^ _])|[ _]+")
_TIMESTAMP = re.compile(r"<\|\d+\.\d\d\|>")
_NUM_TIMESTAMPS = 1501  # 0.00 to 30.00 seconds in steps of 0.02
_NO_MERGE = (float("inf"), -1)
_MAX_CACHED_WORDS = 1 << 16
_TOKENIZER_JSON = {
    "model": Field("dict of any", {}),
    "added_tokens": Field("list of dict of any or null", []),
    "normalizer": Field("any"),
    "pre_tokenizer": Field("dict of any or null", {}),
}
_MODEL = {
    "vocab": Field("dict of id"),
    "merges": Field("list of str or list of list of str"),
}
_ADDED = {"content": Field("str"), "id": Field("id")}
TASKS = ("transcribe", "translate")
_EOS, _START, _NO_TIMESTAMPS = "<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"


class ByteBPETokenizer:
    """Byte-level byte-pair encoding with Whisper's special tokens.

    A special token that stands in the text ("<|en|>") is taken as that token, as the reference
    does; nothing is added to the text. Multilingual vocabularies are told from English-only ones
    by their unused id between the last merge and the end of text.

    Args:
        vocab: Tokens in GPT-2's printable form; a token's index is its id.
        merges: Pairs "left right", most urgent first.
        added_tokens: Special tokens and their ids, which follow those of ``vocab`` without a gap
            or, where ``vocab`` lists the token too, equal them.
        language: Language that a multilingual sequence starts with, as in "<|en|>".
        task: "transcribe" or "translate".

    Raises:
        ValueError: If the parts contradict one another, a special token is missing, or an
            English-only vocabulary is asked for another language or task.

    Source:
        Radford et al. 2019 ("Language Models are Unsupervised Multitask Learners"), section 2.2;
        Radford et al. 2022 (arXiv:2212.04356), section 2.3, for the special tokens.
    """

    kind = "bpe"
    blank_id = None

    def __init__(
        self,
        vocab: Sequence[str],
        merges: Sequence[str],
        added_tokens: Mapping[str, int],
        language: str = "en",
        task: str = "transcribe",
    ) -> None:
        self.vocab, self.merges = list(vocab), list(merges)
        self.added_tokens = dict(sorted(added_tokens.items(), key=lambda item: item[1]))
        self.language = language
        self.task = task
        ids = {token: i for i, token in enumerate(self.vocab)}
        self._check(ids)
        self._byte_ids = [ids[character] for character in _BYTE_CHARACTERS]
        self._merges: dict[tuple[int, int], tuple[float, int]] = {}
        for rank, merge in enumerate(self.merges):
            left, _, right = merge.partition(" ")
            if not {left, right, left + right} <= ids.keys():
                raise ValueError(f"merge {merge!r} is of, or gives, a token not in the vocabulary")
            self._merges.setdefault((ids[left], ids[right]), (rank, ids[left + right]))
        self._token_bytes = [bytes(map(_CHARACTER_BYTES.__getitem__, t)) for t in self.vocab]
        longest_first = sorted(self.added_tokens, key=len, reverse=True)
        self._special = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        self._special_text = {i: token for token, i in self.added_tokens.items()}
        self._cache: dict[str, list[int]] = {}
        self.eos_id = self._special_id(_EOS)
        # Older files do not list the timestamps, but the weights have their ids all the same.
        self.vocab_size = max(
            len(ids.keys() | self.added_tokens.keys()),
            self._special_id(_NO_TIMESTAMPS) + 1 + _NUM_TIMESTAMPS,
        )
        self.start_ids = self._find_start_ids()

    @classmethod
    def from_json(
        cls, path: str | Path, language: str = "en", task: str = "transcribe"
    ) -> "ByteBPETokenizer":
        """Read a Hugging Face ``tokenizer.json``.

        Args:
            path: The file.
            language: As the constructor's.
            task: As the constructor's.

        Returns:
            A tokenizer that gives the ids that the file describes.

        Raises:
            ValueError: If the file cannot be read, or describes another tokenizer than a
                byte-level one.
        """
        file = JsonFile.read(Path(path), needed=True)
        content = take_fields(_TOKENIZER_JSON, file)
        model = take_fields(_MODEL, JsonFile(file.path, content["model"]))
        tokens = [
            take_fields(_ADDED, JsonFile(file.path, each)) for each in content["added_tokens"]
        ]
        _refuse_other_pipelines(content, path)
        if model["vocab"] is None or model["merges"] is None:
            raise ValueError(
                f"{path}: not a byte-level BPE tokenizer.json; expected model.vocab, model.merges "
                "and added_tokens"
            )
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        added = {token["content"]: token["id"] for token in tokens}
        if None in added or None in added.values():
            raise ValueError(f"{path}: an added token lacks its content or id: restore the file")
        try:
            return cls(_by_id(model["vocab"], path), merges, added, language, task)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def from_slow_files(
        cls,
        vocab: str | Path,
        merges: str | Path,
        added_tokens: str | Path | None = None,
        language: str = "en",
        task: str = "transcribe",
    ) -> "ByteBPETokenizer":
        """Read the ``vocab.json``, ``merges.txt``, ``added_tokens.json`` of older folders.

        Args:
            vocab: JSON object, token to id.
            merges: One merge a line, with or without a first line "#version ...".
            added_tokens: JSON object, special token to id; None if ``vocab`` lists them all.
            language: As the constructor's.
            task: As the constructor's.

        Returns:
            The tokenizer. Tokens of ``vocab`` written "<|...|>" are special as well.

        Raises:
            ValueError: If a file cannot be read or the files do not fit together.
        """
        tokens = take_table(JsonFile.read(Path(vocab), needed=True), "id")
        lines = _read_text(merges).split("\n")
        lines = lines[1:] if lines[0].startswith("#version") else lines
        added = {t: i for t, i in tokens.items() if t.startswith("<|") and t.endswith("|>")}
        if added_tokens is not None:
            added |= take_table(JsonFile.read(Path(added_tokens), needed=True), "id")
        ordinary = {t: i for t, i in tokens.items() if t not in added}
        try:
            return cls(_by_id(ordinary, vocab), [m for m in lines if m], added, language, task)
        except ValueError as error:
            raise ValueError(f"{vocab} and {merges} do not fit together: {error}") from None

    @property
    def is_multilingual(self) -> bool:
        """Return whether the vocabulary is the multilingual one, whatever language it speaks."""
        return self.eos_id > len(_BYTE_CHARACTERS) + len(self.merges)

    def speaking(self, start_ids: Sequence[int]) -> "ByteBPETokenizer":
        """Return this tokenizer with the language and task that are among ``start_ids``.

        Args:
            start_ids: Where they name no language or task, it stays what it was.
        """
        found = {self._special_text[i][2:-2] for i in start_ids if i in self._special_text}
        other = copy.copy(self)
        if self.is_multilingual:
            other.task = next((task for task in TASKS if task in found), self.task)
            rest = found - {*TASKS, _START[2:-2], _NO_TIMESTAMPS[2:-2], _EOS[2:-2]}
            other.language = next((name for name in rest if name.isalpha()), self.language)
            other.start_ids = other._find_start_ids()
        return other

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text``, nothing added before or after.

        Args:
            text: Any text without lone surrogates; special tokens in it are taken as such.

        Returns:
            Ids; ``decode(ids)`` is ``text`` again if no special token is in it.
        """
        ids: list[int] = []
        for index, piece in enumerate(self._special.split(text)):
            if index % 2:  # re.split puts what the group matched between the other pieces
                ids.append(self.added_tokens[piece])
                continue
            for word in split_words(piece):
                ids += self._word_ids(word)
        return ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Return the text of ``ids``.

        Args:
            ids: Ids in [0, vocab_size).
            skip_special: Leave special tokens, timestamps too, out of the text.

        Returns:
            The text; bytes that are not UTF-8 become U+FFFD.

        Raises:
            ValueError: If an id is out of range.
        """
        return self.decode_bytes(ids, skip_special).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Sequence[int], skip_special: bool = True) -> bytes:
        """Return the bytes of ``ids``, which need not be whole characters.

        Args:
            ids: Ids in [0, vocab_size).
            skip_special: Leave special tokens, timestamps too, out.

        Returns:
            The bytes.

        Raises:
            ValueError: If an id is out of range.
        """
        parts = []
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"id {i} is not one of this tokenizer's {self.vocab_size} ids")
            if i in self._special_text:
                parts.append(b"" if skip_special else self._special_text[i].encode())
            elif i < len(self._token_bytes):
                parts.append(self._token_bytes[i])
        return b"".join(parts)

    def spec(self) -> JsonObject:
        """Return what ``build_tokenizer`` needs, in JSON's own types; 1 to 2 MB as JSON."""
        return {
            "kind": self.kind,
            "vocab": list(self.vocab),
            "merges": list(self.merges),
            "added_tokens": dict(self.added_tokens),
            "language": self.language,
            "task": self.task,
        }

    def _check(self, ids: Mapping[str, int]) -> None:
        if len(ids) != len(self.vocab):
            raise ValueError("a token stands in the vocabulary more than once")
        missing = [c for c in _BYTE_CHARACTERS if c not in ids]
        if missing:
            raise ValueError(
                f"the vocabulary lacks {len(missing)} of the 256 byte tokens, {missing[0]!r} "
                "first: expected GPT-2's byte-level form"
            )
        foreign = sorted(set("".join(self.vocab)) - set(_BYTE_CHARACTERS))
        if foreign:
            raise ValueError(f"{foreign[0]!r} is in a token but is not GPT-2's form of any byte")
        added = self.added_tokens
        if "" in added:
            raise ValueError("an added token is empty")
        new_ids = iter(range(len(ids), len(ids) + len(added)))
        for token, i in added.items():
            wanted = ids[token] if token in ids else next(new_ids)
            if i != wanted:
                raise ValueError(f"added token {token!r} has id {i}: expected {wanted}")

    def _special_id(self, token: str) -> int:
        if token not in self.added_tokens:
            raise ValueError(f"{token} is not among the special tokens: use the model's own")
        return self.added_tokens[token]

    def _find_start_ids(self) -> tuple[int, ...]:
        start = self._special_id(_START)
        end = self._special_id(_NO_TIMESTAMPS)
        if self.is_multilingual:
            language = f"<|{self.language}|>"
            task = f"<|{self.task}|>"
            return start, self._special_id(language), self._special_id(task), end
        if (self.language, self.task) != ("en", "transcribe"):
            raise ValueError(
                f"language {self.language!r} and task {self.task!r} asked of an English-only "
                "vocabulary: it knows 'en' and 'transcribe'"
            )
        return start, end

    def _word_ids(self, word: str) -> list[int]:
        if word not in self._cache:
            if len(self._cache) >= _MAX_CACHED_WORDS:
                self._cache.clear()
            self._cache[word] = self._merge([self._byte_ids[byte] for byte in word.encode()])
        return self._cache[word]

    def _merge(self, ids: list[int]) -> list[int]:
        """Apply the most urgent merge everywhere, left to right, until none applies."""
        while len(ids) > 1:
            pairs = zip(ids, ids[1:], strict=False)
            best = min(pairs, key=lambda pair: self._merges.get(pair, _NO_MERGE))
            if best not in self._merges:
                break
            merged = []
            position = 0
            while position < len(ids):
                if (*ids[position : position + 2],) == best:
                    merged.append(self._merges[best][1])
                    position += 2
                else:
                    merged.append(ids[position])
                    position += 1
            ids = merged
        return ids


def split_words(text: str) -> list[str]:
    """Cut ``text`` into the words that merges stay within, as GPT-2's pattern does.

    Args:
        text: Any text.

    Returns:
        Words with their leading space; joined, they are ``text``.
    """
    matches = _WORD.finditer(text.translate(_CLASSES))  # one class a character: same positions
    return [text[match.start() : match.end()] for match in matches]


def hf_tokenizer_json(tokenizer: ByteBPETokenizer) -> JsonObject:
    """Return the content of a Hugging Face ``tokenizer.json`` that gives the same ids.

    Args:
        tokenizer: The tokenizer to write.

    Returns:
        JSON-able; with special tokens added, text stands between ``start_ids`` and ``eos_id``.
    """
    names = {i: token for token, i in tokenizer.added_tokens.items()}
    around = [names[i] for i in (*tokenizer.start_ids, tokenizer.eos_id)]
    template: list[JsonObject] = [{"SpecialToken": {"id": t, "type_id": 0}} for t in around]
    template.insert(-1, {"Sequence": {"id": "A", "type_id": 0}})
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}

    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": token, **flags, "special": not _TIMESTAMP.fullmatch(token)}
            for token, i in tokenizer.added_tokens.items()
        ],
        "normalizer": None,
        "pre_tokenizer": {**byte_level, "use_regex": True},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": template,
            "pair": [*template, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {
                t: {"id": t, "ids": [tokenizer.added_tokens[t]], "tokens": [t]} for t in around
            },
        },
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "vocab": {token: i for i, token in enumerate(tokenizer.vocab)},
            "merges": list(tokenizer.merges),
        },
    }


class _CharacterClasses(dict[int, str]):
    """Map a code point to one class character, for ``str.translate``; filled when asked.

    "L" letter, "N" number, " " the space, "_" other white space, "." anything else; the
    apostrophe and the letters of English contractions stay themselves.
    """

    def __init__(self) -> None:
        super().__init__({ord(c): c for c in " 'delmrstv"})
        for ranges, name in ((_NEW_LETTERS, "L"), (_NEW_NUMBERS, "N")):
            for bounds in ranges.split():
                first, _, last = bounds.partition("-")
                for codepoint in range(int(first, 16), int(last or first, 16) + 1):
                    self[codepoint] = name

    def __missing__(self, codepoint: int) -> str:
        character = chr(codepoint)
        category = unicodedata.category(character)[0]
        if category in "LN":
            name = category
        # Python counts four control characters as white space that Unicode does not.
        elif character.isspace() and not 0x1C <= codepoint <= 0x1F:
            name = "_"
        else:
            name = "."
        self[codepoint] = name
        return name


def _byte_characters() -> str:
    """GPT-2's printable character for each byte: its own, or one from U+0100 on."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in shown]
    return "".join(chr(b) if b in shown else chr(0x100 + hidden.index(b)) for b in range(256))


_BYTE_CHARACTERS = _byte_characters()
_CHARACTER_BYTES = {character: byte for byte, character in enumerate(_BYTE_CHARACTERS)}
_CLASSES = _CharacterClasses()


def _read_text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as text ({error})") from error


def _by_id(tokens: Mapping[str, int], path: str | Path) -> list[str]:
    ordered = sorted(tokens, key=lambda token: tokens[token])
    if [tokens[token] for token in ordered] != list(range(len(ordered))):
        raise ValueError(f"{path}: the vocabulary's ids are not 0 to {len(ordered) - 1}, once each")
    return ordered


def _refuse_other_pipelines(content: Mapping[str, Any], path: str | Path) -> None:
    """Raise where the file asks for a step that this tokenizer does not take."""
    model = content["model"]
    before = content["pre_tokenizer"]
    token_flags = ("single_word", "lstrip", "rstrip")
    reasons = {
        f"model {shown(model.get('type'))}": model.get("type", "BPE") != "BPE",
        "a normalizer": bool(content["normalizer"]),
        f"pre-tokenizer {shown(before.get('type'))}": before.get("type") != "ByteLevel",
        "a space before the text": before.get("add_prefix_space", False),
        "no pre-tokenisation pattern": not before.get("use_regex", True),
        "a prefix or suffix of subwords": bool(
            model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
        ),
        "BPE options": any(model.get(o) for o in ("dropout", "byte_fallback", "ignore_merges")),
        "special tokens that strip": any(
            t.get(f) for t in content["added_tokens"] for f in token_flags
        ),
    }
    found = [reason for reason, is_there in reasons.items() if is_there]
    if found:
        raise ValueError(f"{path}: uses {', '.join(found)}; expected plain byte-level BPE")
