"""Our byte-level BPE against Hugging Face's tokenizers, on real and on small vocabularies."""

import json
import random
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.tokenizers import ByteBPETokenizer, build_tokenizer, hf_tokenizer_json
from models.tokenizers.byte_bpe import split_words

MERGES = ["h e", "l l", "ll o", "he llo", "Ġ w", "a a", "aa aa", "' s", "Ã ©", "l o"]
SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>"]
SPECIAL += ["<|transcribe|>", "<|notimestamps|>"]
CHARACTERS = [chr(c) for c in range(sys.maxunicode + 1) if not 0xD800 <= c < 0xE000]


@pytest.fixture(scope="module")
def tiny_en(tiny_en_folder):
    return ByteBPETokenizer.from_json(tiny_en_folder / "tokenizer.json")


@pytest.fixture(scope="module")
def tiny_en_hf(tiny_en_folder):
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(tiny_en_folder / "tokenizer.json"))


def small_parts(multilingual=True, timestamps=False):
    """Vocabulary, merges and special tokens laid out as Whisper's, with a few merges."""
    from tokenizers.pre_tokenizers import ByteLevel

    vocab = sorted(ByteLevel.alphabet()) + [merge.replace(" ", "") for merge in MERGES]
    vocab += [""] if multilingual else []
    special = SPECIAL + [f"<|{i * 0.02:.2f}|>" for i in range(1501 if timestamps else 0)]
    added = {token: len(vocab) + i for i, token in enumerate(special)}
    return vocab, list(MERGES), added


def small(multilingual=True, timestamps=False, **options):
    return ByteBPETokenizer(*small_parts(multilingual, timestamps), **options)


def hf_ids(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


def random_strings(count):
    rng = random.Random(0)
    by_category = {}
    for character in CHARACTERS:
        by_category.setdefault(unicodedata.category(character), []).append(character)
    spaces = [c for c in CHARACTERS if c.isspace()]
    numbers = by_category["Nd"] + by_category["Nl"] + by_category["No"]
    words = ["'s", "'re", " 'LL", "don't", "hello", " world", "aaaaaaa", "\n\n", "\t", "\x00"]
    words += ["<|endoftext|>", "<|en|>", "<|0.00|>", "<|endoftext", "<<|en|>|>", "\x1c", "\x85"]
    words += ["👩\u200d👩\u200d👧", "e\u0301", "🇫🇷", "\u200d", "日本語", "한국어"]
    pieces = [
        lambda: rng.choice(spaces) * rng.randint(1, 3),
        lambda: " " * rng.randint(1, 4),
        lambda: "".join(chr(rng.randrange(32, 127)) for _ in range(rng.randint(1, 8))),
        lambda: rng.choice(words),
        lambda: rng.choice(by_category[rng.choice(list(by_category))]),
        lambda: rng.choice(numbers),
        lambda: rng.choice(by_category["Mn"]),
        lambda: chr(rng.randrange(0x4E00, 0x9FFF)),
    ]
    return ["".join(rng.choice(pieces)() for _ in range(rng.randrange(25))) for _ in range(count)]


@pytest.fixture(scope="module")
def strings():
    return random_strings(10_000)


@pytest.mark.long
def test_encode_of_random_unicode_equals_hf(tiny_en, tiny_en_hf, strings):
    theirs = tiny_en_hf.encode_batch(strings, add_special_tokens=False)
    assert [tiny_en.encode(text) for text in strings] == [encoding.ids for encoding in theirs]


@pytest.mark.speech
def test_encode_of_real_transcripts_equals_hf(tiny_en, tiny_en_hf, speech_root):
    paths = [path for path in speech_root.rglob("*") if path.suffix.lower() == ".txt"]
    assert paths
    for path in paths:
        text = path.read_text().split(maxsplit=2)[2]
        for form in (text, " " + text.strip(), text.lower(), text.upper()):
            assert tiny_en.encode(form) == hf_ids(tiny_en_hf, form)


def test_encode_equals_whisper_tokenizer(tiny_en, tiny_en_folder):
    from transformers import WhisperTokenizerFast

    theirs = WhisperTokenizerFast(tokenizer_file=str(tiny_en_folder / "tokenizer.json"))
    for text in (" Don't  ask <|en|> me!", "", "hello"):
        assert tiny_en.encode(text) == theirs.encode(text, add_special_tokens=False)


@pytest.mark.long
def test_split_words_classes_code_points_as_hf_does():
    from tokenizers.pre_tokenizers import ByteLevel

    reference = ByteLevel(add_prefix_space=False)
    # Nothing is assigned from U+40000 on but tags, variation selectors and private use.
    tried = CHARACTERS[:0x40000] + CHARACTERS[0x40000::97]
    for start in range(0, len(tried), 4096):
        block = tried[start : start + 4096]
        text = "".join(f"a{c}1{c}!{c}" for c in block)
        theirs = [text[first:last] for _, (first, last) in reference.pre_tokenize_str(text)]
        assert split_words(text) == theirs, f"code points from U+{ord(block[0]):04X}"


@given(st.lists(st.sampled_from([*"helo w'sé\n\ta1!", "llo", "hello", "aaaa"])).map("".join))
def test_small_vocabulary_encode_equals_hf_of_its_own_export(text):
    from tokenizers import Tokenizer

    tokenizer = small()
    reference = Tokenizer.from_str(json.dumps(hf_tokenizer_json(tokenizer)))
    assert tokenizer.encode(text) == hf_ids(reference, text)


def test_encode_takes_the_longest_special_token_as_hf_does():
    from tokenizers import Tokenizer

    vocab, merges, added = small_parts()
    last = max(added.values())
    tokenizer = ByteBPETokenizer(vocab, merges, added | {"<|en|>a": last + 1, "<|en|>aa": last + 2})
    reference = Tokenizer.from_str(json.dumps(hf_tokenizer_json(tokenizer)))
    for text in ("<|en|>", "<|en|>a", "<|en|>aa", "<|en|>aaa"):
        assert tokenizer.encode(text) == hf_ids(reference, text)


def test_decode_bytes_gives_the_same_bytes(tiny_en, strings):
    for text in strings:
        assert tiny_en.decode_bytes(tiny_en.encode(text), skip_special=False) == text.encode()


def test_decode_leaves_special_tokens_out_unless_asked(tiny_en):
    ids = [*tiny_en.start_ids, *tiny_en.encode(" hi"), 50_400, tiny_en.eos_id]
    assert tiny_en.decode(ids) == " hi"
    shown = tiny_en.decode(ids, skip_special=False)
    assert shown == "<|startoftranscript|><|notimestamps|> hi<|endoftext|>"


def test_decode_of_half_a_character_gives_the_replacement_character():
    tokenizer = small()
    assert tokenizer.decode(tokenizer.encode("ab日")[:-1]) == "ab\ufffd"


@pytest.mark.parametrize("bad", [51_864, -1])
def test_decode_of_id_out_of_range_raises(tiny_en, bad):
    with pytest.raises(ValueError, match=f"id {bad} is not one of this tokenizer's 51864 ids"):
        tiny_en.decode([bad])


def test_english_only_start_and_end(tiny_en):
    assert tiny_en.start_ids == (50_257, 50_362)
    assert (tiny_en.eos_id, tiny_en.blank_id, tiny_en.vocab_size) == (50_256, None, 51_864)


def test_multilingual_starts_with_language_and_task():
    tokenizer = small()
    added = tokenizer.added_tokens
    names = ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
    assert tokenizer.start_ids == tuple(added[name] for name in names)
    german = small(language="de", task="translate")
    assert german.start_ids[1:3] == (added["<|de|>"], added["<|translate|>"])


def test_vocab_size_counts_timestamps_that_the_file_lacks():
    assert small(timestamps=False).vocab_size == small(timestamps=True).vocab_size


def test_multilingual_of_unknown_language_raises():
    with pytest.raises(ValueError, match=r"<\|xx\|> is not among the special tokens"):
        small(language="xx")


@pytest.mark.parametrize("options", [{"language": "de"}, {"task": "translate"}])
def test_english_only_asked_for_another_language_or_task_raises(options):
    with pytest.raises(ValueError, match="asked of an English-only vocabulary"):
        small(multilingual=False, **options)


@pytest.mark.parametrize("timestamps", [False, True])
def test_spec_survives_json(timestamps):
    tokenizer = small(timestamps=timestamps, language="de")
    rebuilt = build_tokenizer(json.loads(json.dumps(tokenizer.spec())))
    assert rebuilt.spec() == tokenizer.spec()
    assert rebuilt.start_ids == tokenizer.start_ids
    assert rebuilt.encode("hello <|en|>") == tokenizer.encode("hello <|en|>")


def test_from_json_reads_both_forms_of_merges(tmp_path):
    content = hf_tokenizer_json(small())
    specs = []
    for merges in (MERGES, [merge.split() for merge in MERGES]):
        content["model"]["merges"] = merges
        (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
        specs.append(ByteBPETokenizer.from_json(tmp_path / "tokenizer.json").spec())
    assert specs[0] == specs[1] == small().spec()


@pytest.mark.parametrize("header", ["", "#version: 0.2\n"])
@pytest.mark.parametrize("eos_in_vocab", [False, True])
@pytest.mark.parametrize("multilingual", [False, True])
def test_from_slow_files_equals_the_same_parts(tmp_path, header, eos_in_vocab, multilingual):
    vocab, merges, added = small_parts(multilingual)
    tokens = {token: i for i, token in enumerate(vocab)}
    if eos_in_vocab:
        tokens[SPECIAL[0]] = added[SPECIAL[0]]
    rest = {token: i for token, i in added.items() if token not in tokens}
    (tmp_path / "vocab.json").write_text(json.dumps(tokens), encoding="utf-8")
    (tmp_path / "merges.txt").write_text(header + "\n".join(merges) + "\n", encoding="utf-8")
    (tmp_path / "added_tokens.json").write_text(json.dumps(rest), encoding="utf-8")
    paths = [tmp_path / name for name in ("vocab.json", "merges.txt", "added_tokens.json")]
    assert ByteBPETokenizer.from_slow_files(*paths).spec() == small(multilingual).spec()


def test_hf_folder_loads_in_transformers_and_gives_the_same_ids(tmp_path, tiny_en, strings):
    from transformers import AutoTokenizer, WhisperTokenizer, WhisperTokenizerFast

    (tmp_path / "tokenizer.json").write_text(json.dumps(hf_tokenizer_json(tiny_en)))
    config = {"tokenizer_class": "WhisperTokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "whisper"}))
    for loader in (WhisperTokenizer, WhisperTokenizerFast, AutoTokenizer):
        loaded = loader.from_pretrained(tmp_path)
        ids = loaded(strings[:300], add_special_tokens=False)["input_ids"]
        assert ids == [tiny_en.encode(text) for text in strings[:300]]
        assert loaded.eos_token_id == tiny_en.eos_id


def test_hf_export_adds_start_and_end_around_text(tiny_en):
    from tokenizers import Tokenizer

    exported = Tokenizer.from_str(json.dumps(hf_tokenizer_json(tiny_en)))
    expected = [*tiny_en.start_ids, *tiny_en.encode(" hi"), tiny_en.eos_id]
    assert exported.encode(" hi").ids == expected


def test_hf_export_marks_all_but_timestamps_as_special():
    added = hf_tokenizer_json(small(timestamps=True))["added_tokens"]
    assert [token["content"] for token in added if token["special"]] == SPECIAL


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        (0, lambda vocab: vocab[1:], "lacks 1 of the 256 byte tokens, '!' first"),
        (0, lambda vocab: [*vocab[:-1], "a"], "more than once"),
        (0, lambda vocab: [*vocab[:-1], "日"], "'日' is in a token but is not GPT-2's form"),
        (1, lambda merges: [*merges, "a z"], "merge 'a z' is of, or gives, a token not in"),
        (2, lambda added: added | {"": len(added)}, "an added token is empty"),
        (2, lambda added: added | {"<|de|>": 3}, r"added token '<\|de\|>' has id 3"),
        (2, lambda added: added | {"a": 3}, "added token 'a' has id 3: expected 6"),
        (2, lambda added: added | {"<|x|>": 5000}, r"added token '<\|x\|>' has id 5000"),
        (2, lambda added: {}, r"<\|endoftext\|> is not among the special tokens"),
    ],
)
def test_contradicting_parts_raise(part, change, message):
    parts = list(small_parts())
    parts[part] = change(parts[part])
    with pytest.raises(ValueError, match=message):
        ByteBPETokenizer(*parts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalizer": {"type": "NFC"}}, "uses a normalizer"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "uses pre-tokenizer 'Whitespace'"),
        ({"pre_tokenizer": None}, "uses pre-tokenizer None"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "a space before"),
        ({"pre_tokenizer": {"type": "ByteLevel", "use_regex": False}}, "no pre-tokenisation"),
        ({"model": {"type": "Unigram", "vocab": {}, "merges": []}}, "uses model 'Unigram'"),
        ({"model": None}, "model is None, expected dict of any"),
        ({"model": {"type": "BPE", "vocab": {"a": 1}, "merges": []}}, "ids are not 0 to 0"),
        ({"added_tokens": [{"id": 1, "content": "a", "lstrip": True}]}, "tokens that strip"),
    ],
)
def test_from_json_of_another_pipeline_raises(tmp_path, change, message):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(hf_tokenizer_json(small()) | change), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        ByteBPETokenizer.from_json(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot read"), ("{", "is damaged"), ("[]", "holds no JSON object")],
)
def test_from_json_of_no_json_object_raises(tmp_path, content, message):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        ByteBPETokenizer.from_json(tmp_path / "tokenizer.json")
