"""``eval.py --audio`` and ``Transcriber``: recordings of any length to text and times."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data.audio import read_audio
from data.metrics import METRICS, error_rate
from data.sphere import write_sphere
from data.timit import load_timit
from eval import Transcriber, main
from models import build_model
from models.checkpoint import Checkpoint, save_checkpoint
from models.convert import load_weights
from models.tokenizers import SymbolTokenizer
from models.transcription import timed_words

RATE = 16000


def ctc_checkpoint(kind: str = "phone") -> Checkpoint:
    tokenizer = SymbolTokenizer.for_ctc(kind, ["aa", "ah", "b"] if kind == "phone" else "abc ")
    model = build_model("w2v2-demo", vocab_size=tokenizer.vocab_size)
    with torch.no_grad():
        model.head.weight.mul_(30)  # so that it says more than blanks
    frontend = {"kind": "waveform", "normalize": True}
    return Checkpoint(model, tokenizer, frontend=frontend, decoding={"blank_id": 0})


def whisper_checkpoint(audio_ctx: float | str | None) -> Checkpoint:
    tokenizer = SymbolTokenizer.for_seq2seq("phone", ["aa", "ah", "b"])
    model = build_model("whisper-demo", vocab_size=tokenizer.vocab_size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    decoding = {"start_ids": list(tokenizer.start_ids), "eos_id": tokenizer.eos_id}
    decoding |= {"max_tokens": 6, "suppress_ids": [tokenizer.eos_id], "begin_suppress_ids": []}
    frontend = {"kind": "log_mel", "num_mels": 80, "audio_ctx": audio_ctx}
    return Checkpoint(model, tokenizer, frontend=frontend, decoding=decoding)


def recording(seconds: float) -> torch.Tensor:
    return (0.2 * torch.randn(int(seconds * RATE))).clamp(-0.9, 0.9)


def write(path: Path, waveform: torch.Tensor) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_sphere(path, (32767 * waveform).round().to(torch.int16).numpy())
    return path


@pytest.mark.parametrize("audio_ctx", [2.0, "own", None])
def test_a_long_recording_is_its_pieces_one_after_another(audio_ctx):
    transcriber = Transcriber(whisper_checkpoint(audio_ctx), piece_seconds=1.5)
    waveform = recording(7)
    whole = transcriber.transcribe(waveform)
    spans = [(round(piece.start * RATE), round(piece.end * RATE)) for piece in whole.pieces]
    assert len(spans) > 4
    assert (spans[0][0], spans[-1][1]) == (0, len(waveform))
    alone = [transcriber.transcribe(waveform[start:stop]) for start, stop in spans]
    assert whole.text == " ".join(each.text for each in alone)
    assert len(whole.text.split()) > len(spans)
    assert whole.words == ()


def test_pieces_are_no_longer_than_the_context():
    whole = Transcriber(whisper_checkpoint(2.0)).transcribe(recording(7))
    assert max(piece.end - piece.start for piece in whole.pieces) <= 2.0
    with pytest.raises(ValueError, match="--piece-seconds 3 is longer than the model's audio cont"):
        Transcriber(whisper_checkpoint(2.0), piece_seconds=3)


def test_pieces_of_a_model_without_a_context_are_of_fifteen_seconds_at_most():
    whole = Transcriber(ctc_checkpoint()).transcribe(recording(40))
    lengths = [piece.end - piece.start for piece in whole.pieces]
    assert len(lengths) >= 3
    assert max(lengths) <= 15.0


@pytest.mark.parametrize("kind", ["phone", "char"])
def test_times_of_a_ctc_model_are_in_order_and_within_their_piece(kind):
    transcriber = Transcriber(ctc_checkpoint(kind), piece_seconds=1.0)
    found = transcriber.transcribe(recording(3))
    assert [word.text for word in found.words] == found.text.split() != []
    bounds = [time for word in found.words for time in (word.start, word.end)]
    assert bounds == sorted(bounds)
    assert 0 <= bounds[0] < bounds[-1] <= 3.0 + 1e-6


def test_words_last_from_their_first_symbol_to_their_last():
    tokenizer = SymbolTokenizer.for_ctc("char", "ab ")
    ids = tokenizer.encode("ab b")
    spans = [(0.0, 0.1), (0.2, 0.3), (0.4, 0.5), (0.6, 0.7)]
    words = timed_words(tokenizer, ids, spans, offset=10.0)
    assert [(word.text, word.start, word.end) for word in words] == [
        ("ab", 10.0, 10.3),
        ("b", 10.6, 10.7),
    ]


@pytest.mark.parametrize("checkpoint", [ctc_checkpoint(), whisper_checkpoint(None)])
def test_a_recording_of_one_sample_is_taken(checkpoint):
    assert Transcriber(checkpoint).transcribe([0.1]).seconds == pytest.approx(1 / RATE)


def test_a_result_does_not_depend_on_the_recordings_beside_it():
    transcriber = Transcriber(ctc_checkpoint())
    waveforms = [recording(1.0), recording(2.5), recording(0.3)]
    together = transcriber.transcribe_all(waveforms)
    assert together == [transcriber.transcribe(waveform) for waveform in waveforms]


def test_eval_prints_path_and_text_and_writes_times(tmp_path, capsys):
    checkpoint = ctc_checkpoint()
    save_checkpoint(tmp_path / "a.pt", checkpoint)
    waveforms = {name: recording(1) for name in ("in/b.wav", "in/c.wav", "a.wav")}
    paths = {name: write(tmp_path / name, waveform) for name, waveform in waveforms.items()}
    audio = [str(paths["a.wav"]), str(tmp_path / "in")]
    report = tmp_path / "out.json"
    assert main(["--ckpt", str(tmp_path / "a.pt"), "--audio", *audio, "--json", str(report)]) == 0

    order = [paths[name] for name in ("a.wav", "in/b.wav", "in/c.wav")]
    texts = [Transcriber(checkpoint).transcribe(read_audio(path)).text for path in order]
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert lines == [[str(path), text] for path, text in zip(order, texts, strict=True)]
    recordings = json.loads(report.read_text())["recordings"]
    assert [each["path"] for each in recordings] == [str(path) for path in order]
    assert [phone["text"] for phone in recordings[0]["phones"]] == texts[0].split()
    assert recordings[0]["pieces"] == [{"start": 0.0, "end": 1.0, "text": texts[0]}]


def test_eval_takes_other_rates_and_formats(tmp_path, capsys):
    soundfile = pytest.importorskip("soundfile")
    save_checkpoint(tmp_path / "a.pt", ctc_checkpoint())
    soundfile.write(tmp_path / "a.flac", 0.1 * np.random.default_rng(0).normal(size=8000), 8000)
    assert main(["--ckpt", str(tmp_path / "a.pt"), "--audio", str(tmp_path / "a.flac")]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'a.flac'}\t")


def test_a_broken_recording_is_named_before_any_is_transcribed(tmp_path, capsys):
    save_checkpoint(tmp_path / "a.pt", ctc_checkpoint())
    write(tmp_path / "a.wav", recording(1))
    (tmp_path / "b.wav").write_bytes(b"no audio")
    assert main(["--ckpt", str(tmp_path / "a.pt"), "--audio", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "b.wav" in printed.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--audio", "x.wav", "--data", "demo"], "--data is for scoring"),
        (["--audio", "x.wav", "--trn", "out"], "--trn is for scoring"),
        (["--piece-seconds", "3"], "--piece-seconds is for recordings"),
        (["--audio", "x.wav"], "no recording at x.wav"),
    ],
)
def test_flags_that_do_nothing_are_refused(tmp_path, capsys, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    save_checkpoint(tmp_path / "a.pt", ctc_checkpoint())
    assert main(["--ckpt", "a.pt", *flags]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.speech
@pytest.mark.long
def test_a_minute_of_joined_speech_says_what_the_utterances_say(speech_root, tiny_en_folder):
    chosen = load_timit(speech_root, "test")[:16]
    waveforms = [read_audio(utterance.path) for utterance in chosen]
    transcriber = Transcriber(load_weights(tiny_en_folder))
    joined = torch.cat(waveforms)
    whole = transcriber.transcribe(joined)
    assert whole.seconds > 60
    assert len(whole.pieces) > 1

    # No cut is within a word: a fifth of a second around each has a hundredth of the mean energy.
    for piece in whole.pieces[:-1]:
        middle = round(piece.end * RATE)
        around = joined[middle - RATE // 10 : middle + RATE // 10]
        assert around.square().mean() < 0.01 * joined.square().mean()
    tokens = METRICS["wer"].tokens
    words = tokens(" ".join(each.text for each in transcriber.transcribe_all(waveforms)))
    reference = tokens(" ".join(utterance.text for utterance in chosen))
    rate = error_rate([reference], [tokens(whole.text)]).rate
    # Observed 0.110 against 0.186: with what is said before and after the model hears better.
    assert rate <= error_rate([reference], [words]).rate
