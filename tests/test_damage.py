"""Recordings that a copy has damaged are refused, and those that only look odd are read."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from data import files
from data.audio import measure, read_audio

RATE = 16_000


def _speech_like(seconds: float = 2.0, peak: int = 3000, seed: int = 0) -> np.ndarray:
    """A tone whose loudness comes and goes, in noise: smooth high bytes, random low ones."""
    generator = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) / RATE
    tone = np.sin(2 * np.pi * 250 * time) * np.sin(2 * np.pi * 2 * time)
    noise = 0.1 * generator.standard_normal(len(time))
    return np.clip(peak * (tone + noise), -32768, 32767).astype(np.int16)


def _sphere(samples: np.ndarray, order: str = "01", newline: str = "\n") -> bytes:
    lines = ["NIST_1A", "   1024", "channel_count -i 1", f"sample_count -i {len(samples)}"]
    lines += ["sample_rate -i 16000", "sample_n_bytes -i 2", f"sample_byte_format -s2 {order}"]
    header = newline.join([*lines, "end_head", ""]).encode().ljust(1024)
    return header + samples.astype("<i2" if order == "01" else ">i2").tobytes()


def _riff(samples: np.ndarray, size: int | None = None, data_size: int | None = None) -> bytes:
    data = samples.astype("<i2").tobytes()
    form = struct.pack("<IHHIIHH", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    stated = len(data) if data_size is None else data_size
    body = b"WAVEfmt " + form + b"data" + struct.pack("<I", stated) + data
    return b"RIFF" + struct.pack("<I", len(body) if size is None else size) + body


SAMPLES = _speech_like()


def _to_crlf(content: bytes) -> bytes:
    return content.replace(b"\n", b"\r\n")


def _bare_to_crlf(content: bytes) -> bytes:
    """As tools do that leave the pairs alone that are there."""
    return content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def _write(folder: Path, content: bytes) -> Path:
    path = folder / "a.WAV"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("container", [_sphere, _riff])
@pytest.mark.parametrize("copy", [_to_crlf, _bare_to_crlf])
@pytest.mark.parametrize("seconds", [0.2, 2.0, 70.0])  # 70 s: more than is looked at at once
def test_a_text_mode_copy_is_refused_by_its_size_when_it_is_measured(
    tmp_path: Path,
    container: Callable[[np.ndarray], bytes],
    copy: Callable[[bytes], bytes],
    seconds: float,
) -> None:
    good = container(_speech_like(seconds))
    damaged = copy(good)
    path = _write(tmp_path, damaged)
    surplus = len(damaged) - len(good)
    with pytest.raises(ValueError, match=f"a.WAV: a text-mode copy has put {surplus} CR bytes"):
        measure(path)


@pytest.mark.parametrize("container", [_sphere, _riff])
def test_a_lossy_way_back_with_the_size_patched_up_is_refused_by_its_bytes(
    tmp_path: Path, container: Callable[[np.ndarray], bytes]
) -> None:
    samples = SAMPLES.copy()
    samples[5000] = struct.unpack("<h", b"\r\n")[0]
    good = container(samples)
    damaged = good.replace(b"\r\n", b"\n")
    assert len(damaged) < len(good)
    path = _write(tmp_path, damaged.ljust(len(good), b"\0"))
    assert measure(path).num_samples == len(samples)
    with pytest.raises(ValueError, match="its samples are noise, for bytes are missing"):
        read_audio(path)
    assert len(read_audio(path, 0, 4096)) == 4096  # what lies before the damage is sound


@pytest.mark.parametrize("peak", [30, 300, 3000, 20000])
@pytest.mark.parametrize("damage", ["swapped", "one byte late"])
@pytest.mark.parametrize("order", ["01", "10"])
def test_bytes_in_the_other_order_are_refused_however_loud(
    tmp_path: Path, peak: int, damage: str, order: str
) -> None:
    content = _sphere(_speech_like(peak=peak), order)
    if damage == "swapped":
        other = "10" if order == "01" else "01"
        content = content.replace(f"-s2 {order}".encode(), f"-s2 {other}".encode())
    else:
        content = content[:1024] + content[1025:] + b"\0"
    with pytest.raises(ValueError, match="its samples are noise, for bytes are missing"):
        read_audio(_write(tmp_path, content))


SOUND = {
    "speech": SAMPLES,
    "quiet": _speech_like(peak=20),
    "clipped": _speech_like(peak=100_000),
    "white noise": np.random.default_rng(0).integers(-32768, 32768, 20_000).astype(np.int16),
    "8-bit": (_speech_like(peak=30_000) // 256 * 256).astype(np.int16),
    "8-bit noise": (np.random.default_rng(0).integers(-128, 128, 9000) * 256).astype(np.int16),
    "square wave": np.tile(np.array([20_000, -20_000], np.int16), 4000),
    "silence": np.zeros(4000, np.int16),
    "dither": np.random.default_rng(0).integers(-1, 2, 4000).astype(np.int16),
    "one sample": SAMPLES[:1],
}


def test_bytes_written_as_utf_8_are_refused(tmp_path: Path) -> None:
    path = _write(tmp_path, _sphere(SAMPLES).decode("latin-1").encode())
    with pytest.raises(ValueError, match="taken for Latin-1 text and written as UTF-8"):
        measure(path)


def test_a_copy_of_seven_bits_a_byte_is_refused(tmp_path: Path) -> None:
    content = _sphere(SAMPLES)
    path = _write(tmp_path, content[:1024] + bytes(byte & 0x7F for byte in content[1024:]))
    with pytest.raises(ValueError, match="no byte of its samples has the top bit"):
        read_audio(path)


def test_a_recording_that_is_refused_is_not_warned_of_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_SAID", set())
    content = _sphere(SAMPLES)
    damaged = bytes(byte & 0x7F for byte in content[1024:])
    path = _write(tmp_path, content[:1024] + damaged + b"stray")
    with pytest.raises(ValueError, match="top bit"):
        read_audio(path)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(("size", "data_size"), [(0xFFFFFFFF, 0xFFFFFFFF), (0, 0), (36, 0)])
def test_a_riff_whose_sizes_were_never_stated_is_read_to_its_end(
    tmp_path: Path, size: int, data_size: int
) -> None:
    path = _write(tmp_path, _riff(SAMPLES, size, data_size))
    assert measure(path).num_samples == len(SAMPLES)
    assert torch.equal(read_audio(path), torch.from_numpy(SAMPLES.astype(np.float32) / 32768))


def test_a_riff_without_samples_and_with_a_chunk_behind_is_empty(tmp_path: Path) -> None:
    content = _riff(SAMPLES[:0]) + b"LIST" + struct.pack("<I", 4) + b"INFO"
    path = _write(tmp_path, content[:4] + struct.pack("<I", len(content) - 8) + content[8:])
    with pytest.raises(ValueError, match="no samples"):
        measure(path)


@pytest.mark.parametrize("samples", SOUND.values(), ids=SOUND)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_odd_but_sound_recordings_are_read_whole(
    tmp_path: Path, samples: np.ndarray, newline: str
) -> None:
    # A header with CRLF lines, padded to the stated size, is no damage to the samples.
    for order in ("01", "10"):
        waveform = read_audio(_write(tmp_path, _sphere(samples, order, newline)))
        assert torch.equal(waveform * 32768, torch.tensor(samples).float())


@pytest.mark.parametrize(
    "content",
    [
        _sphere(SAMPLES) + b"stray",
        _riff(SAMPLES) + b"stray",
        _sphere(SAMPLES, newline="\r\n") + b"\r\n",
        _riff(SAMPLES, size=0) + b"stray",
    ],
    ids=["sphere", "riff", "sphere with CRLF lines", "riff of unknown size"],
)
def test_stray_bytes_after_the_end_are_said_once_and_change_nothing(
    tmp_path: Path,
    content: bytes,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(files, "_SAID", set())
    path = _write(tmp_path, content)
    for _ in range(2):
        assert torch.equal(read_audio(path) * 32768, torch.tensor(SAMPLES).float())
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert "bytes after its end, which are not read" in errors[0]


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 36])
def test_a_riff_written_into_a_pipe_has_no_stray_bytes(
    tmp_path: Path, size: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_SAID", set())
    assert len(read_audio(_write(tmp_path, _riff(SAMPLES, size=size)))) == len(SAMPLES)
    assert capsys.readouterr().err == ""


def test_a_corpus_that_went_through_a_text_mode_copy_is_refused_before_training(
    small_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    corpus = Path(shutil.copytree(small_corpus, tmp_path / "corpus"))
    for path in corpus.rglob("*.WAV"):
        path.write_bytes(_to_crlf(path.read_bytes()))
    argv = ["--model", "w2v2-demo", "--data", str(corpus), "--out", str(tmp_path / "run")]
    assert train.main(argv) == 2
    assert "a text-mode copy has put" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.speech
def test_no_real_recording_is_refused_and_every_swapped_one_is(speech_root: Path) -> None:
    from data.damage import has_shifted_bytes

    recordings = sorted(speech_root.rglob("*.WAV"))[::10]
    assert len(recordings) > 100
    for path in recordings:
        samples = (read_audio(path) * 32768).numpy().astype("<i2").tobytes()
        assert has_shifted_bytes(samples, little_endian=False)
        assert has_shifted_bytes(samples[1:] + b"\0", little_endian=True)
