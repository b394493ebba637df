import json
from pathlib import Path

import pytest
import torch

import eval as evaluation
from data.phones import PHONES_39
from models import build_model
from models.checkpoint import Checkpoint, save_checkpoint
from models.facts import RunFacts
from models.tokenizers.symbols import SymbolTokenizer


@pytest.fixture(scope="module")
def noisy_checkpoint(
    small_corpus: Path, uneven_corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Random models whose hypotheses are long and differ from utterance to utterance."""
    folder = tmp_path_factory.mktemp("checkpoints")
    paths = {}
    torch.manual_seed(0)
    for name, audio_ctx in (("w2v2-demo", None), ("whisper-demo", 3.0), ("whisper-demo", "own")):
        ctc = name == "w2v2-demo"
        build = SymbolTokenizer.for_ctc if ctc else SymbolTokenizer.for_seq2seq
        tokenizer = build("phone", PHONES_39)
        overrides = {"conv_norm": "group", "conv_bias": False}
        model = build_model(name, vocab_size=tokenizer.vocab_size, **(overrides if ctc else {}))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        start_ids = list(tokenizer.start_ids or ())
        suppressed = {"suppress_ids": [], "begin_suppress_ids": []}
        seq2seq = {"start_ids": start_ids, "eos_id": tokenizer.eos_id, "max_tokens": 12}
        checkpoint = Checkpoint(
            model,
            tokenizer,
            frontend={"kind": "waveform", "normalize": True}
            if ctc
            else {"kind": "log_mel", "num_mels": 80, "audio_ctx": audio_ctx},
            decoding={"blank_id": 0} if ctc else {**seq2seq, **suppressed},
            run=RunFacts(
                model=name, data=str(uneven_corpus if audio_ctx == "own" else small_corpus)
            ),
        )
        key = f"{name}-own" if audio_ctx == "own" else name
        paths[key] = folder / f"{key}.pt"
        save_checkpoint(paths[key], checkpoint)
    return paths


def _transcripts(path: Path, out: Path, *flags: str) -> str:
    assert evaluation.main(["--ckpt", str(path), "--trn", str(out), *flags]) == 0
    return (out / "hyp.trn").read_text()


@pytest.mark.parametrize("name", ["w2v2-demo", "whisper-demo", "whisper-demo-own"])
@pytest.mark.parametrize("search", [("greedy", "5"), ("beam", "3")])
def test_hypotheses_do_not_depend_on_batch_size(
    noisy_checkpoint: dict[str, Path], tmp_path: Path, name: str, search: tuple[str, str]
) -> None:
    flags = ("--decode", search[0], "--beam-size", search[1])
    path = noisy_checkpoint[name]
    alone = _transcripts(path, tmp_path / "alone", *flags, "--batch-seconds", "0.1")
    together = _transcripts(path, tmp_path / "together", *flags, "--batch-seconds", "100")
    assert alone == together
    assert len(set(alone.splitlines())) > 1


def test_json_holds_the_counts_of_the_split(
    noisy_checkpoint: dict[str, Path], tmp_path: Path
) -> None:
    path = noisy_checkpoint["w2v2-demo"]
    flags = ["--split", "full-test", "--json", str(tmp_path / "r" / "results.json")]
    assert evaluation.main(["--ckpt", str(path), *flags]) == 0
    report = json.loads((tmp_path / "r" / "results.json").read_text())
    assert (report["split"], report["utterances"]) == ("full-test", 6)
    assert (report["per"]["ci95"], report["per"]["ci_unit"]) == (None, None)  # under ten
    assert report["protocol"].endswith("no interval, which takes 10 utterances")


def test_merged_silence_shortens_references(
    noisy_checkpoint: dict[str, Path], tmp_path: Path
) -> None:
    path = noisy_checkpoint["w2v2-demo"]
    counts = []
    for flag in ("--no-merge-sil", "--merge-sil"):
        target = tmp_path / f"{flag}.json"
        assert evaluation.main(["--ckpt", str(path), flag, "--json", str(target)]) == 0
        counts.append(json.loads(target.read_text())["per"]["reference_tokens"])
    assert counts[1] < counts[0]


def test_utterance_longer_than_the_context_is_refused(
    noisy_checkpoint: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(noisy_checkpoint["whisper-demo"], weights_only=True)
    content["frontend"]["audio_ctx"] = 0.5
    torch.save(content, tmp_path / "short.pt")
    assert evaluation.main(["--ckpt", str(tmp_path / "short.pt")]) == 2
    assert "longer than the model's audio context of 0.5 s" in capsys.readouterr().err


def test_protocol_is_one_line_with_its_rules(
    noisy_checkpoint: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluation.main(["--ckpt", str(noisy_checkpoint["w2v2-demo"])]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    for rule in ("6 utterances", "39 phones", "every sil kept", "greedy", "no language model"):
        assert rule in first


@pytest.mark.parametrize(
    ("name", "padded"),
    [
        ("whisper-demo", "audio padded to 3 s, at most 12 tokens"),
        ("whisper-demo-own", "audio padded to each utterance's own length, rounded up to a second"),
    ],
)
def test_protocol_says_what_audio_is_padded_to(
    noisy_checkpoint: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    name: str,
    padded: str,
) -> None:
    assert evaluation.main(["--ckpt", str(noisy_checkpoint[name])]) == 0
    assert padded in capsys.readouterr().out.splitlines()[0]


def test_results_are_written_before_anything_is_printed(
    noisy_checkpoint: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody_reads(*args: object, **kwargs: object) -> None:
        raise ValueError("nobody reads")

    monkeypatch.setattr("builtins.print", nobody_reads)
    flags = ["--trn", str(tmp_path / "trn"), "--json", str(tmp_path / "a.json")]
    assert evaluation.main(["--ckpt", str(noisy_checkpoint["w2v2-demo"]), *flags]) == 2
    assert json.loads((tmp_path / "a.json").read_text())["split"] == "test"
    assert (tmp_path / "trn" / "hyp.trn").is_file()
