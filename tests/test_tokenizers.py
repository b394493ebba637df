import io
import json
import string

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.tokenizers import SubwordTokenizer, SymbolTokenizer, build_tokenizer

PHONES = ["sil", "sh", "iy", "hh", "ae"]
TEXTS = [
    "she had your dark suit in greasy wash water all year",
    "don't ask me to carry an oily rag like that",
    "a tom walks to the art room",
] * 3

phone_texts = st.lists(st.sampled_from(PHONES)).map(" ".join)
plain_texts = st.text(alphabet=string.ascii_lowercase + "' ")


@pytest.fixture(scope="module")
def subword():
    return SubwordTokenizer.train(TEXTS, vocab_size=33)


@pytest.fixture(scope="module")
def subword_seq2seq():
    return SubwordTokenizer.train(TEXTS, vocab_size=33, seq2seq=True)


def test_for_ctc_puts_blank_first_then_sorted_symbols():
    tokenizer = SymbolTokenizer.for_ctc("phone", PHONES)
    assert tokenizer.symbols == ("<pad>", "ae", "hh", "iy", "sh", "sil")
    assert (tokenizer.blank_id, tokenizer.eos_id, tokenizer.start_ids) == (0, None, None)
    assert tokenizer.vocab_size == 6


def test_for_seq2seq_puts_sorted_symbols_first_then_end_and_start():
    tokenizer = SymbolTokenizer.for_seq2seq("phone", PHONES)
    assert tokenizer.symbols[:5] == ("ae", "hh", "iy", "sh", "sil")
    assert tokenizer.symbols[5:] == ("<|endoftext|>", "<|startoftranscript|>")
    assert (tokenizer.blank_id, tokenizer.eos_id, tokenizer.start_ids) == (None, 5, (6,))


def test_char_writes_the_space_as_a_bar():
    tokenizer = SymbolTokenizer.for_ctc("char", "ab ")
    assert tokenizer.symbols == ("<pad>", "a", "b", "|")
    assert tokenizer.encode("a b") == [1, 3, 2]


@given(phone_texts)
def test_phone_text_comes_back_from_its_ids(text):
    for tokenizer in (
        SymbolTokenizer.for_ctc("phone", PHONES),
        SymbolTokenizer.for_seq2seq("phone", PHONES),
    ):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@given(plain_texts)
def test_char_text_comes_back_from_its_ids(text):
    tokenizer = SymbolTokenizer.for_ctc("char", string.ascii_lowercase + "' ")
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_symbol_decode_leaves_special_ids_out():
    tokenizer = SymbolTokenizer.for_seq2seq("phone", PHONES)
    assert tokenizer.decode([6, 3, 2, 5]) == "sh iy"


def test_char_decode_leaves_symbols_longer_than_a_character_out():
    tokenizer = SymbolTokenizer("char", ["<pad>", "<s>", "</s>", "<unk>", "|", "E"], blank_id=0)
    assert tokenizer.decode([0, 1, 2, 3, 5, 4, 5]) == "E E"


@pytest.mark.parametrize(
    ("kind", "symbols", "text", "shown"),
    [
        (
            "phone",
            PHONES,
            "sil zh",
            "phone 'zh' .number 2 of the text.*expected one of ae hh iy sh sil",
        ),
        ("phone", PHONES, "sil <pad>", "phone '<pad>'"),
        ("char", "ab ", "a B", "char 'B' .number 3 of the text.*expected one of a b |"),
        ("char", "ab ", "a|b", "char '|'"),
        ("char", "ab ", "a\nb", r"char '\\n'"),
    ],
)
def test_symbol_encode_of_unknown_symbol_names_it_in_one_line(kind, symbols, text, shown):
    with pytest.raises(ValueError, match=shown) as raised:
        SymbolTokenizer.for_ctc(kind, symbols).encode(text)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("bad", [6, -1])
def test_decode_of_id_out_of_range_raises(bad):
    with pytest.raises(ValueError, match=f"id {bad} is not one of this tokenizer's 6 ids"):
        SymbolTokenizer.for_ctc("phone", PHONES).decode([bad])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "word", "symbols": ["a"]}, "kind 'word'"),
        ({"kind": "phone", "symbols": ["a", "b", "a"]}, "more than once: a"),
        ({"kind": "phone", "symbols": ["a", "b c"]}, "'b c' is empty or holds white space"),
        ({"kind": "char", "symbols": ["a", " "]}, "' ' is empty or holds white space"),
        ({"kind": "phone", "symbols": ["a"], "blank_id": 1}, "special id 1 is not one of 1"),
        ({"kind": "phone", "symbols": ["a"], "start_ids": [-1]}, "special id -1 is not one of 1"),
    ],
)
def test_symbol_tokenizer_of_contradicting_parts_raises(arguments, message):
    with pytest.raises(ValueError, match=message):
        SymbolTokenizer(**arguments)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SymbolTokenizer.for_ctc("phone", PHONES),
        lambda: SymbolTokenizer.for_seq2seq("phone", PHONES),
        lambda: SymbolTokenizer.for_ctc("char", "".join(TEXTS)),
        lambda: SubwordTokenizer.train(TEXTS, vocab_size=33),
        lambda: SubwordTokenizer.train(TEXTS, vocab_size=33, seq2seq=True),
    ],
    ids=["phone ctc", "phone seq2seq", "char", "subword ctc", "subword seq2seq"],
)
def test_spec_survives_json_and_a_weights_only_load(make):
    tokenizer = make()
    spec = tokenizer.spec()
    file = io.BytesIO()
    torch.save(spec, file)
    file.seek(0)
    for travelled in (json.loads(json.dumps(spec)), torch.load(file, weights_only=True)):
        rebuilt = build_tokenizer(travelled)
        assert rebuilt.spec() == spec
        assert (rebuilt.kind, rebuilt.vocab_size) == (tokenizer.kind, tokenizer.vocab_size)
        assert rebuilt.blank_id == tokenizer.blank_id
        assert (rebuilt.eos_id, rebuilt.start_ids) == (tokenizer.eos_id, tokenizer.start_ids)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "word"}, "unknown tokenizer kind 'word': expected one of phone, char"),
        ({"kind": ["phone"]}, "unknown tokenizer kind"),
        ({"extra": 1}, r"missing fields \[\], unknown \['extra'\]"),
        ({"symbols": None}, "field 'symbols' is not a list of str"),
        ({"symbols": ["a", 1]}, "field 'symbols' is not a list of str"),
        ({"blank_id": True}, "field 'blank_id' is not a id or null"),
        ({"start_ids": [0.0]}, "field 'start_ids' is not a list of id or null"),
        ({"blank_id": 99}, "special id 99"),
    ],
)
def test_build_tokenizer_of_malformed_spec_raises(change, message):
    spec = SymbolTokenizer.for_ctc("phone", PHONES).spec() | change
    with pytest.raises(ValueError, match=message):
        build_tokenizer(spec)


def test_build_tokenizer_of_spec_with_a_missing_field_raises():
    spec = SymbolTokenizer.for_ctc("phone", PHONES).spec()
    del spec["symbols"]
    with pytest.raises(ValueError, match=r"missing fields \['symbols'\]"):
        build_tokenizer(spec)


def test_build_tokenizer_of_no_dict_raises():
    with pytest.raises(ValueError, match="unknown tokenizer kind None"):
        build_tokenizer([])


def test_subword_special_ids(subword, subword_seq2seq):
    assert (subword.blank_id, subword.eos_id, subword.start_ids) == (0, None, None)
    assert subword_seq2seq.blank_id is None
    assert (subword_seq2seq.eos_id, subword_seq2seq.start_ids) == (2, (1,))
    assert subword.vocab_size == subword_seq2seq.vocab_size == 33


def test_subword_text_comes_back_from_its_ids(subword, subword_seq2seq):
    for tokenizer in (subword, subword_seq2seq):
        for text in [*TEXTS, "", "year room"]:
            assert tokenizer.decode(tokenizer.encode(text)) == text


def test_subword_counts_white_space_as_one_space(subword):
    assert subword.encode(" the\t\n room ") == subword.encode("the room")


def test_subword_encode_never_gives_a_special_id(subword):
    assert not {0, 1} & set(subword.encode(" ".join(TEXTS)))


def test_subword_decode_leaves_special_ids_out(subword, subword_seq2seq):
    assert subword.decode([0, 1, *subword.encode("art"), 0, 1]) == "art"
    assert subword_seq2seq.decode([1, 0, *subword_seq2seq.encode("art"), 2]) == "art"


def test_subword_train_twice_gives_the_same_model(subword):
    assert SubwordTokenizer.train(iter(TEXTS), vocab_size=33).spec() == subword.spec()


def test_subword_encode_of_unknown_character_names_it(subword):
    with pytest.raises(ValueError, match="'Q' in 'a Qt' is not covered"):
        subword.encode("a Qt")


@pytest.mark.parametrize("bad", [33, -1])
def test_subword_decode_of_id_out_of_range_raises(subword, bad):
    with pytest.raises(ValueError, match=f"id {bad} is not one of this tokenizer's 33 ids"):
        subword.decode([bad])


def test_subword_train_at_the_suggested_largest_vocab_size_works():
    with pytest.raises(
        ValueError, match="--subword-vocab 5000 is too large for this text"
    ) as raised:
        SubwordTokenizer.train(TEXTS, vocab_size=5000)
    largest = int(str(raised.value).split()[-1])
    assert SubwordTokenizer.train(TEXTS, vocab_size=largest).vocab_size == largest


def test_subword_train_at_the_suggested_smallest_vocab_size_works():
    with pytest.raises(ValueError, match="--subword-vocab 10 is too small for this text") as raised:
        SubwordTokenizer.train(TEXTS, vocab_size=10)
    smallest = int(str(raised.value).split()[-1])
    assert SubwordTokenizer.train(TEXTS, vocab_size=smallest).vocab_size == smallest


def test_subword_train_of_vocab_size_zero_raises_one_line():
    with pytest.raises(ValueError, match="no subword model of vocab_size 0") as raised:
        SubwordTokenizer.train(TEXTS, vocab_size=0)
    assert "\n" not in str(raised.value)


def test_subword_train_without_text_raises():
    with pytest.raises(ValueError, match="every transcript is empty"):
        SubwordTokenizer.train(["", "  "], vocab_size=10)


@pytest.mark.parametrize("model", ["not base64!", "AAAA", ""])
def test_subword_of_broken_model_raises(model):
    with pytest.raises(ValueError, match="not a base64 SentencePiece model"):
        build_tokenizer({"kind": "subword", "model": model})


def test_subword_of_model_without_blank_or_ends_raises():
    import base64

    import sentencepiece

    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(TEXTS),
        model_writer=writer,
        vocab_size=33,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    with pytest.raises(ValueError, match="neither a padding piece at id 0"):
        SubwordTokenizer(base64.b64encode(writer.getvalue()).decode())
