"""Tokenizer, preprocessor and generation files of Hugging Face folders, in and out."""

import json
from pathlib import Path

import pytest
import torch

from models import build_model
from models.convert import load_weights, to_hf
from models.tokenizers import ByteBPETokenizer, SubwordTokenizer, SymbolTokenizer

transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")

PHONES = ["aa", "ah", "b", "dcl", "sil", "sh"]


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def ctc_folder(tmp_path: Path, tokenizer) -> Path:
    model = build_model("w2v2-demo", vocab_size=tokenizer.vocab_size)
    decoding, frontend = {"blank_id": tokenizer.blank_id}, {"kind": "waveform", "normalize": False}
    to_hf(model, tmp_path / "out", tokenizer, decoding, frontend)
    return tmp_path / "out"


def whisper_decoding(tokenizer) -> dict:
    return {
        "start_ids": list(tokenizer.start_ids),
        "eos_id": tokenizer.eos_id,
        "suppress_ids": [1, 3],
        "begin_suppress_ids": [2],
        "max_tokens": 12,
    }


def whisper_folder(tmp_path: Path, tokenizer, audio_ctx: float | str | None = None) -> Path:
    model = build_model("whisper-demo", vocab_size=tokenizer.vocab_size, d_model=16)
    frontend = {"kind": "log_mel", "num_mels": 80, "audio_ctx": audio_ctx}
    to_hf(model, tmp_path / "out", tokenizer, whisper_decoding(tokenizer), frontend)
    return tmp_path / "out"


def byte_bpe(multilingual: bool = True) -> ByteBPETokenizer:
    """A whisper tokenizer of bytes, two merges and the special tokens."""
    from tokenizers.pre_tokenizers import ByteLevel

    # Multilingual vocabularies have an unused id before the end of text.
    vocab = [*sorted(ByteLevel.alphabet()), "ab", "abc", *([""] if multilingual else [])]
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>"]
    special += ["<|transcribe|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    added = {token: len(vocab) + i for i, token in enumerate(special)}
    return ByteBPETokenizer(vocab, ["a b", "ab c"], added)


@pytest.mark.parametrize(
    ("tokenizer", "text"),
    [
        (SymbolTokenizer.for_ctc("phone", PHONES), "sil sh aa aa dcl"),
        (SymbolTokenizer.for_ctc("char", "he lo'"), "hello oh"),
    ],
    ids=["phone", "char"],
)
def test_to_hf_ctc_tokenizer_decodes_frames_as_ours(tmp_path, tokenizer, text):
    folder = ctc_folder(tmp_path, tokenizer)
    processor = transformers.AutoProcessor.from_pretrained(folder)
    ids = tokenizer.encode(text)
    frames = [i for token in ids for i in (token, token, tokenizer.blank_id)]
    assert processor.decode(frames) == text == tokenizer.decode(ids)
    assert len(processor.tokenizer) == tokenizer.vocab_size


@pytest.mark.parametrize("kind", ["phone", "char"])
def test_load_weights_of_our_ctc_export_gives_back_tokenizer_and_frontend(tmp_path, kind):
    tokenizer = SymbolTokenizer.for_ctc(kind, PHONES if kind == "phone" else "he lo'")
    checkpoint = load_weights(ctc_folder(tmp_path, tokenizer))
    assert checkpoint.tokenizer.spec() == tokenizer.spec()
    assert checkpoint.frontend == {"kind": "waveform", "normalize": False}
    assert checkpoint.decoding == {"blank_id": 0}


LETTERS = {"<s>": 1, "<pad>": 0, "</s>": 2, "<unk>": 3, "_": 4, "E": 5, "T": 6}


def test_load_weights_keeps_the_id_order_of_a_letter_vocabulary(tmp_path):
    to_hf(build_model("w2v2-demo", vocab_size=7), tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(LETTERS))
    (tmp_path / "tokenizer_config.json").write_text('{"word_delimiter_token": "_"}')
    tokenizer = load_weights(tmp_path).tokenizer
    assert tokenizer.symbols == ("<pad>", "<s>", "</s>", "<unk>", "|", "E", "T")
    assert tokenizer.decode([6, 5, 4, 5]) == "TE E"
    assert tokenizer.blank_id == 0


def test_load_weights_takes_added_tokens_for_the_ids_that_the_vocabulary_lacks(tmp_path):
    to_hf(build_model("w2v2-demo", vocab_size=7), tmp_path)
    (tmp_path / "vocab.json").write_text('{"<pad>": 0, "|": 1, "E": 2, "T": 3, "A": 4}')
    (tmp_path / "added_tokens.json").write_text('{"</s>": 6, "<s>": 5}')
    assert load_weights(tmp_path).tokenizer.symbols[5:] == ("<s>", "</s>")


def test_load_weights_without_a_head_drops_a_vocabulary_of_another_size(tmp_path):
    to_hf(build_model("w2v2-demo", vocab_size=32), tmp_path)
    weights = tmp_path / "model.safetensors"
    tensors = safetensors_torch.load_file(weights)
    safetensors_torch.save_file({n: t for n, t in tensors.items() if "lm_head" not in n}, weights)
    (tmp_path / "vocab.json").write_text(json.dumps(LETTERS))
    assert load_weights(tmp_path).tokenizer is None


SPECIAL = {"decoder_start_token_id": 50258, "no_timestamps_token_id": 50363}
MULTILINGUAL = {
    "lang_to_id": {"<|de|>": 50261, "<|en|>": 50259},
    "task_to_id": {"transcribe": 50359, "translate": 50358},
    "is_multilingual": True,
}


@pytest.mark.parametrize(
    ("settings", "start_ids"),
    [
        (
            {**SPECIAL, **MULTILINGUAL, "forced_decoder_ids": [[1, None], [2, 50359]]},
            [50258, 50259, 50359, 50363],
        ),
        (
            {**SPECIAL, **MULTILINGUAL, "forced_decoder_ids": [[1, 50261], [2, 50359]]},
            [50258, 50261, 50359, 50363],
        ),
        (
            {"decoder_start_token_id": 50257, "forced_decoder_ids": [[1, 50362]]},
            [50257, 50362],
        ),
        ({"decoder_start_token_id": 4, "is_multilingual": False}, [4]),
    ],
    ids=["multilingual", "german", "english", "none"],
)
@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_load_weights_finds_the_start_ids(tmp_path, settings, start_ids, file):
    to_hf(build_model("whisper-demo", vocab_size=51865, d_model=4), tmp_path)
    if file == "config.json":
        edit_json(tmp_path / file, **settings)
    else:
        (tmp_path / file).write_text(json.dumps(settings))
    assert load_weights(tmp_path).decoding["start_ids"] == start_ids


def test_load_weights_reads_the_suppressed_ids_of_an_old_config(tmp_path):
    to_hf(build_model("whisper-demo"), tmp_path)
    settings = {"suppress_tokens": [3, 4], "begin_suppress_tokens": [5], "eos_token_id": [6]}
    settings |= {"decoder_start_token_id": 2, "max_length": 20}
    edit_json(tmp_path / "config.json", **settings)
    assert load_weights(tmp_path).decoding == {
        "start_ids": [2],
        "eos_id": 6,
        "suppress_ids": [3, 4],
        "begin_suppress_ids": [5],
        "max_tokens": 21,
    }


def test_load_weights_reads_a_tokenizer_of_vocab_and_merges(tmp_path):
    tokenizer = byte_bpe()
    to_hf(build_model("whisper-demo", vocab_size=tokenizer.vocab_size), tmp_path)
    vocab = {token: i for i, token in enumerate(tokenizer.vocab)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(tokenizer.merges))
    (tmp_path / "added_tokens.json").write_text(json.dumps(tokenizer.added_tokens))
    assert load_weights(tmp_path).tokenizer.spec() == tokenizer.spec()


def test_to_hf_preprocessor_of_wav2vec2_follows_the_feature_norm(tmp_path):
    folder = ctc_folder(tmp_path, SymbolTokenizer.for_ctc("phone", PHONES))
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    assert isinstance(extractor, transformers.Wav2Vec2FeatureExtractor)
    assert (extractor.do_normalize, extractor.return_attention_mask) == (False, True)


def test_to_hf_subword_tokenizer_decodes_as_ours(tmp_path):
    texts = ["the cat sat on the mat", "a cat and a hat", "that is that"]
    tokenizer = SubwordTokenizer.train(texts, 18)
    folder = ctc_folder(tmp_path, tokenizer)
    ids = tokenizer.encode("the hat sat")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert theirs.decode(ids) == "the hat sat" == tokenizer.decode(ids)


@pytest.mark.parametrize("multilingual", [False, True])
def test_to_hf_whisper_text_processor_encodes_and_decodes_as_ours(tmp_path, multilingual):
    tokenizer = byte_bpe(multilingual)
    processor = transformers.WhisperProcessor.from_pretrained(whisper_folder(tmp_path, tokenizer))
    text = " abc cab, abcab é"
    ids = tokenizer.encode(text)
    assert processor.tokenizer(text, add_special_tokens=False).input_ids == ids
    assert processor.decode(ids, clean_up_tokenization_spaces=False) == text
    around = [*tokenizer.start_ids, *ids, tokenizer.eos_id]
    assert processor.tokenizer.decode(around, skip_special_tokens=True) == text


@pytest.mark.parametrize("multilingual", [False, True])
def test_load_weights_of_our_text_export_gives_back_all(tmp_path, multilingual):
    tokenizer = byte_bpe(multilingual)
    checkpoint = load_weights(whisper_folder(tmp_path, tokenizer))
    assert checkpoint.tokenizer.spec() == tokenizer.spec()
    assert checkpoint.decoding == whisper_decoding(tokenizer)
    assert checkpoint.frontend == {"kind": "log_mel", "num_mels": 80, "audio_ctx": None}


def test_to_hf_whisper_phone_tokenizer_encodes_and_decodes_as_ours(tmp_path):
    tokenizer = SymbolTokenizer.for_seq2seq("phone", PHONES)
    theirs = transformers.AutoTokenizer.from_pretrained(whisper_folder(tmp_path, tokenizer))
    ids = tokenizer.encode("sil sh aa")
    assert theirs("sil sh aa").input_ids == ids
    around = [*tokenizer.start_ids, *ids, tokenizer.eos_id]
    assert theirs.decode(around, skip_special_tokens=True) == "sil sh aa"


def test_load_weights_of_our_phone_export_gives_back_all(tmp_path):
    tokenizer = SymbolTokenizer.for_seq2seq("phone", PHONES)
    checkpoint = load_weights(whisper_folder(tmp_path, tokenizer))
    assert checkpoint.tokenizer.spec() == tokenizer.spec()
    assert checkpoint.decoding == whisper_decoding(tokenizer)


def test_to_hf_whisper_with_a_short_context_is_cut_to_it(tmp_path):
    tokenizer = SymbolTokenizer.for_seq2seq("phone", PHONES)
    folder = whisper_folder(tmp_path, tokenizer, audio_ctx=3.5)
    model = transformers.WhisperForConditionalGeneration.from_pretrained(folder)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    features = extractor([0.0] * 16000, sampling_rate=16000, return_tensors="pt").input_features
    assert features.shape == (1, 80, 400)
    assert model.model.encoder.embed_positions.weight.shape[0] == 200
    assert load_weights(folder).frontend["audio_ctx"] == 4.0


def test_to_hf_whisper_of_own_lengths_keeps_all_positions_and_reads_back_as_what_it_was(tmp_path):
    tokenizer = SymbolTokenizer.for_seq2seq("phone", PHONES)
    folder = whisper_folder(tmp_path, tokenizer, audio_ctx="own")
    model = transformers.WhisperForConditionalGeneration.from_pretrained(folder)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    features = extractor([0.0] * 16000, sampling_rate=16000, return_tensors="pt").input_features
    assert features.shape == (1, 80, 3000)
    assert model.model.encoder.embed_positions.weight.shape[0] == 1500
    assert load_weights(folder).frontend["audio_ctx"] == "own"


@pytest.mark.parametrize("kind", ["phone", "text"])
def test_to_hf_whisper_generates_as_our_greedy_decoding(tmp_path, randomise, kind):
    from models.whisper.decoding import DecodingOptions, generate

    phones = [f"p{i}" for i in range(40)]
    tokenizer = SymbolTokenizer.for_seq2seq("phone", phones) if kind == "phone" else byte_bpe()
    model = build_model("whisper-demo", vocab_size=tokenizer.vocab_size, audio_positions=50)
    randomise(model, scale=0.3)
    # Start and timestamps apart: transformers cuts its output at timestamps.
    suppressed = [tokenizer.start_ids[0], *range(268, tokenizer.vocab_size)]
    decoding = {**whisper_decoding(tokenizer), "suppress_ids": suppressed}
    to_hf(model, tmp_path / "out", tokenizer, decoding)
    theirs = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    log_mel = torch.randn(4, 80, 100)
    ids = theirs.generate(log_mel, attention_mask=torch.ones(4, 100)).tolist()
    ended = [row[: row.index(tokenizer.eos_id)] if tokenizer.eos_id in row else row for row in ids]
    ours = generate(model.eval(), log_mel, DecodingOptions(**decoding))
    assert ended == ours
    assert len({i for row in ours for i in row}) > 1  # not one token all along
