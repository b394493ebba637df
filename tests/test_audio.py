"""Reading recordings: SPHERE and RIFF, and what is refused."""

import io
import struct
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from data.audio import measure, normalize_waveform, num_samples, read_audio
from data.resample import resample
from data.sphere import write_sphere

SAMPLES = np.array([0, 1, -1, 32767, -32768, 300], dtype=np.int16)
RAW = SAMPLES.tobytes()
PCM_GUID = bytes.fromhex("0100000000001000800000aa00389b71")
SPHERE_FIELDS = {
    "database_id": "-s5 A B C",
    "channel_count": "-i 1",
    "sample_count": f"-i {len(SAMPLES)}",
    "sample_rate": "-i 16000",
    "sample_max": "-r 1.5",
    "sample_n_bytes": "-i 2",
    "sample_byte_format": "-s2 01",
}


def sphere_bytes(data: bytes, header_size: int = 1024, **fields: str | None) -> bytes:
    lines = [f"{k} {v}" for k, v in (SPHERE_FIELDS | fields).items() if v is not None]
    header = "\n".join(["NIST_1A", f"{header_size:7d}", *lines, "end_head\n"])
    return header.encode().ljust(header_size) + data


def chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def format_chunk(
    tag: int = 1, channels: int = 1, rate: int = 16000, bits: int = 16, tail: bytes = b""
) -> bytes:
    width = channels * bits // 8
    head = struct.pack("<HHIIHH", tag, channels, rate, rate * width, width, bits)
    return chunk(b"fmt ", head + tail)


def riff_bytes(*chunks: bytes) -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


DATA = chunk(b"data", SAMPLES.astype("<i2").tobytes())
EXPECTED = torch.tensor(SAMPLES.astype(np.float32) / 32768)


def write(folder: Path, content: bytes) -> Path:
    path = folder / "a.WAV"
    path.write_bytes(content)
    return path


@given(samples=arrays(np.int16, st.integers(1, 3000)))
def test_write_sphere_then_read_audio_is_the_identity(
    tmp_path_factory: pytest.TempPathFactory, samples: np.ndarray
) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip.wav"
    write_sphere(path, samples)
    waveform = read_audio(path)
    assert waveform.dtype == torch.float32
    assert torch.equal(waveform * 32768, torch.tensor(samples).float())
    assert num_samples(path) == len(samples)


@given(
    samples=arrays(np.int16, st.integers(1, 50)),
    blocks=st.integers(1, 4),
    order=st.sampled_from(["01", "10"]),
    trailing=st.binary(max_size=9),
)
def test_read_audio_takes_any_header_size_and_byte_order(
    tmp_path_factory: pytest.TempPathFactory,
    samples: np.ndarray,
    blocks: int,
    order: str,
    trailing: bytes,
) -> None:
    content = sphere_bytes(
        samples.astype("<i2" if order == "01" else ">i2").tobytes() + trailing,
        1024 * blocks,
        sample_count=f"-i {len(samples)}",
        sample_byte_format=f"-s2 {order}",
    )
    path = write(tmp_path_factory.getbasetemp(), content)
    assert torch.equal(read_audio(path) * 32768, torch.tensor(samples).float())


def test_read_audio_takes_header_fields_of_later_blocks_and_skips_comments(tmp_path: Path) -> None:
    fields = {"note": f"-s1500 {'x' * 1500}", "; a comment": "", "sample_byte_format": "-s2 01  "}
    content = sphere_bytes(RAW, 2048, sample_byte_format=None).replace(
        b"end_head", "".join(f"{k} {v}\n" for k, v in fields.items()).encode() + b"end_head"
    )
    surplus = len(content) - 2048 - len(RAW)
    path = write(tmp_path, content.replace(b" " * surplus + RAW, RAW))
    assert torch.equal(read_audio(path), EXPECTED)


@pytest.mark.parametrize(
    "content",
    [
        riff_bytes(format_chunk(), DATA),
        riff_bytes(DATA, format_chunk()),
        riff_bytes(chunk(b"LIST", b"odd"), format_chunk(), chunk(b"fact", b"12345"), DATA),
        riff_bytes(format_chunk(tail=b"\0\0"), DATA),
        riff_bytes(format_chunk(0xFFFE, tail=struct.pack("<HHI", 22, 16, 4) + PCM_GUID), DATA),
        riff_bytes(format_chunk(), DATA, chunk(b"LIST", b"after")) + b"trailing",
    ],
    ids=["plain", "data first", "odd chunks", "long fmt", "extensible", "more after"],
)
def test_read_audio_of_riff_finds_the_samples(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path, content)
    assert torch.equal(read_audio(path), EXPECTED)
    assert num_samples(path) == len(SAMPLES)


def test_read_audio_of_the_wave_module_finds_the_samples(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(SAMPLES.tobytes())
    assert torch.equal(read_audio(write(tmp_path, buffer.getvalue())), EXPECTED)


def test_read_audio_stays_in_the_half_open_unit_range(tmp_path: Path) -> None:
    waveform = read_audio(write(tmp_path, riff_bytes(format_chunk(), DATA)))
    assert waveform.min() == -1.0
    assert waveform.max() < 1.0


REFUSED = {
    "shorten": (
        sphere_bytes(RAW, sample_coding="-s26 pcm,embedded-shorten-v2.00"),
        "shorten.*sph2pipe",
    ),
    "ulaw": (sphere_bytes(RAW, sample_coding="-s4 ulaw"), "ulaw.*only pcm"),
    "sphere rate": (
        sphere_bytes(RAW, sample_rate="-i 8000"),
        "8000 Hz, wanted 16000: give --resample",
    ),
    "sphere stereo": (sphere_bytes(RAW, channel_count="-i 2"), "channel_count is 2, wanted 1"),
    "sphere 8 bit": (sphere_bytes(RAW, sample_n_bytes="-i 1"), "sample_n_bytes is 1, wanted 2"),
    "sphere no rate": (sphere_bytes(RAW, sample_rate=None), "sample_rate is missing"),
    "sphere no count": (sphere_bytes(RAW, sample_count=None), "sample_count is missing"),
    "sphere order": (sphere_bytes(RAW, sample_byte_format="-s2 11"), "sample_byte_format is 11"),
    "sphere truncated": (sphere_bytes(RAW[:-1]), "truncated.* 6 samples and 5"),
    "sphere empty": (sphere_bytes(b"", sample_count="-i 0"), "no samples"),
    "sphere type": (sphere_bytes(RAW, sample_max="-x 3"), "'sample_max -x 3' is not"),
    "sphere integer": (sphere_bytes(RAW, sample_count="-i six"), "'sample_count -i six' is not"),
    "sphere no end": (sphere_bytes(RAW).replace(b"end_head", b"no__head"), "no end"),
    "sphere cut header": (sphere_bytes(b"")[:500], "no end"),
    "sphere size": (sphere_bytes(RAW).replace(b"   1024", b"   1000"), "no SPHERE header size"),
    "riff rate": (riff_bytes(format_chunk(rate=44100), DATA), "44100 Hz, wanted 16000.*sox"),
    "riff stereo": (riff_bytes(format_chunk(channels=2), DATA), "2 channels, wanted 1"),
    "riff 24 bit": (riff_bytes(format_chunk(bits=24), DATA), "24 bits a sample, wanted 16"),
    "riff float": (riff_bytes(format_chunk(3, bits=32), DATA), "floating point"),
    "riff mu-law": (riff_bytes(format_chunk(7, bits=8), DATA), "mu-law"),
    "riff unknown": (riff_bytes(format_chunk(0x1234), DATA), "format 0x1234"),
    "riff extensible float": (
        riff_bytes(
            format_chunk(0xFFFE, tail=struct.pack("<HHI", 22, 16, 4) + b"\3" + PCM_GUID[1:]), DATA
        ),
        "floating point",
    ),
    "riff truncated": (riff_bytes(format_chunk(), DATA)[:-3], "truncated.* 6 samples and 4"),
    "riff empty": (riff_bytes(format_chunk(), chunk(b"data", b"")), "no samples"),
    "riff odd": (riff_bytes(format_chunk(), chunk(b"data", b"123")), "3 bytes are no whole"),
    "riff no fmt": (riff_bytes(DATA), "without a fmt"),
    "riff no data": (riff_bytes(format_chunk()), "without a data"),
    "riff short fmt": (riff_bytes(chunk(b"fmt ", b"1234"), DATA), "4 bytes of 16"),
    "riff avi": (b"RIFF\0\0\0\0AVI ", "not WAVE"),
    "flac": (b"fLaC" + bytes(50), "FLAC that cannot be decoded"),
    "mp3": (b"ID3" + bytes(50), "MP3 that cannot be decoded"),
    "riff no rate": (riff_bytes(format_chunk(rate=0), DATA), "a sample rate of 0 Hz"),
    "m4a": (b"\0\0\0\x20ftypM4A", "begins b'.*NIST_1A"),
    "no bytes": (b"", "is empty, wanted NIST"),
}


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_read_audio_of_a_bad_file_names_file_and_fault_in_one_line(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = write(tmp_path, content)
    for read in (read_audio, num_samples):
        with pytest.raises(ValueError, match=message) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def _tone(num_samples: int, rate: int) -> np.ndarray:
    return np.round(9000 * np.sin(2 * np.pi * 440 * np.arange(num_samples) / rate)).astype(np.int16)


@pytest.mark.parametrize("kind", ["FLAC", "OGG", "MP3"])
def test_read_audio_takes_compressed_recordings(tmp_path: Path, kind: str) -> None:
    samples = _tone(16000, 16000)
    path = tmp_path / "a.wav"  # the name says nothing
    soundfile.write(path, samples, 16000, format=kind)
    expected = torch.tensor(samples.astype(np.float32) / 32768)
    assert measure(path) == (path, 0, 16000, 16000)
    tolerance = 0.0 if kind == "FLAC" else 0.02  # of 0.27; observed 0.009 and 0.010
    assert (read_audio(path) - expected).abs().max() <= tolerance
    part = read_audio(path, 4000, 1000)
    assert (part - expected[4000:5000]).abs().max() <= tolerance


def test_compressed_recordings_without_soundfile_ask_for_it_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, _tone(100, 16000), 16000)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(
        ValueError, match=r'a.flac is FLAC, which needs soundfile: pip install -e ".'
    ):
        read_audio(path)


def test_stereo_and_cut_flac_are_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "two.flac", np.stack([_tone(100, 16000)] * 2, 1), 16000)
    with pytest.raises(ValueError, match="two.flac: 2 channels, wanted 1"):
        measure(tmp_path / "two.flac")
    noise = np.random.default_rng(0).integers(-30000, 30000, 40000).astype(np.int16)
    soundfile.write(tmp_path / "cut.flac", noise, 16000)
    content = (tmp_path / "cut.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="cut.flac: (FLAC that cannot be decoded|truncated)"):
        read_audio(tmp_path / "cut.flac")


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000, 11025])
def test_resample_equals_torchaudio(rate: int) -> None:
    import torchaudio

    waveform = torch.randn(5001, dtype=torch.float64)
    theirs = torchaudio.functional.resample(waveform, rate, 16000)
    ours = resample(waveform, rate, 16000)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 1e-10  # observed 9e-16


def test_resample_keeps_a_tone() -> None:
    waveform = torch.tensor(_tone(48000, 48000) / 32768)
    expected = torch.tensor(_tone(16000, 16000) / 32768)
    difference = (resample(waveform, 48000, 16000) - expected)[50:-50]  # ends have no neighbours
    assert difference.abs().max() < 3e-4  # of 0.27; observed 7e-5


@given(
    rate=st.sampled_from([8000, 11025, 22050, 44100, 48000]),
    begin=st.integers(0, 50),
    length=st.integers(1, 50),
)
def test_a_measured_part_of_any_rate_is_read_whole(
    tmp_path_factory: pytest.TempPathFactory, rate: int, begin: int, length: int
) -> None:
    path = tmp_path_factory.getbasetemp() / f"{rate}.wav"
    if not path.exists():
        soundfile.write(path, _tone(rate // 10, rate), rate)
    span = measure(path, True, begin / 1000, (begin + length) / 1000)
    waveform = read_audio(path, span.start, span.num_samples, resample=True)
    assert len(waveform) == span.num_samples
    assert abs(span.num_samples - 16 * length) <= 2


def test_measure_allows_what_rounding_explains_and_no_more(tmp_path: Path) -> None:
    write_sphere(tmp_path / "a.wav", _tone(16000, 16000))
    assert measure(tmp_path / "a.wav", end=1.01).num_samples == 16000
    assert measure(tmp_path / "a.wav", begin=0.25, end=0.5)[1:3] == (4000, 4000)
    for begin, end in ((0.0, 1.1), (1.0, None), (0.5, 0.5), (-0.1, 0.5)):
        with pytest.raises(ValueError, match="are no part of its 1 s: correct the times"):
            measure(tmp_path / "a.wav", begin=begin, end=end)


def test_read_audio_beyond_the_end_is_refused(tmp_path: Path) -> None:
    write_sphere(tmp_path / "a.wav", SAMPLES)
    assert torch.equal(read_audio(tmp_path / "a.wav", 2, 3), EXPECTED[2:5])
    with pytest.raises(ValueError, match="samples 4 to 7 are asked for, and there are 6"):
        read_audio(tmp_path / "a.wav", 4, 3)


@given(content=st.binary(max_size=200), magic=st.sampled_from([b"NIST_1A\n   1024\n", b"RIFF"]))
def test_read_audio_of_noise_raises_nothing_but_value_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, magic: bytes
) -> None:
    path = write(tmp_path_factory.getbasetemp(), magic + content)
    with pytest.raises(ValueError, match=r"a\.WAV"):
        read_audio(path)


def test_read_audio_without_a_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot read .*missing.wav: No such file"):
        read_audio(tmp_path / "missing.wav")


@pytest.mark.parametrize("bad", [np.zeros(3, np.float32), np.zeros((2, 2), np.int16)])
def test_write_sphere_of_anything_but_a_row_of_int16_raises(
    tmp_path: Path, bad: np.ndarray
) -> None:
    with pytest.raises(ValueError, match=r"takes \(S,\) int16"):
        write_sphere(tmp_path / "a.wav", bad)


def test_normalize_waveform_gives_mean_zero_variance_one() -> None:
    waveform = 3 + 0.01 * torch.randn(4000, dtype=torch.float64)
    normal = normalize_waveform(waveform)
    expected = (waveform - waveform.mean()) / (waveform.var(correction=0) + 1e-7).sqrt()
    assert abs(normal.mean()) < 1e-10  # observed 8e-14
    assert (normal - expected).abs().max() < 1e-10  # observed 5e-14


def test_normalize_waveform_of_silence_is_zero() -> None:
    assert torch.equal(normalize_waveform(torch.zeros(100)), torch.zeros(100))


def test_normalize_waveform_equals_hugging_face() -> None:
    try:
        from transformers import Wav2Vec2FeatureExtractor
    except (ImportError, RuntimeError) as error:  # also raised by a broken torchaudio beside it
        pytest.skip(f"needs transformers' feature extractor: {error}")
    waveform = 0.1 + 0.02 * torch.randn(8000, dtype=torch.float64)
    theirs = Wav2Vec2FeatureExtractor.zero_mean_unit_var_norm([waveform.numpy()], None)[0]
    ours = normalize_waveform(waveform)
    assert (ours - torch.as_tensor(theirs)).abs().max() < 1e-10  # observed 1e-14
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True)
    single = waveform.float()
    theirs = extractor(single.numpy(), sampling_rate=16000).input_values[0]
    assert (normalize_waveform(single) - torch.as_tensor(theirs)).abs().max() < 5e-5  # observed 0


@pytest.mark.parametrize("rate", [1, 999, 15_999, 44_099, 2**31 - 1])
def test_rates_that_would_take_gigabytes_are_refused_by_name(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "a.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(bytes(400))
    with pytest.raises(ValueError, match=f"a.wav: {rate} Hz can't be resampled to 16000"):
        measure(path, resample=True)


WIDTHS = {
    (1, 8): (np.round(64 * np.sin(np.arange(50))) + 128).astype("u1").tobytes(),
    (1, 16): np.round(16384 * np.sin(np.arange(50))).astype("<i2").tobytes(),
    (1, 24): b"".join(
        int(round(4194304 * np.sin(i))).to_bytes(3, "little", signed=True) for i in range(50)
    ),
    (1, 32): np.round(1073741824 * np.sin(np.arange(50))).astype("<i4").tobytes(),
    (3, 32): (0.5 * np.sin(np.arange(50))).astype("<f4").tobytes(),
    (3, 64): (0.5 * np.sin(np.arange(50))).astype("<f8").tobytes(),
}


@pytest.mark.parametrize("kind", WIDTHS, ids=str)
def test_samples_of_any_width_are_read_where_they_are_only_transcribed(
    tmp_path: Path, kind: tuple[int, int]
) -> None:
    tag, bits = kind
    path = write(tmp_path, riff_bytes(format_chunk(tag, bits=bits), chunk(b"data", WIDTHS[kind])))
    assert measure(path, mix=True).num_samples == 50
    expected = torch.from_numpy(0.5 * np.sin(np.arange(50))).float()
    torch.testing.assert_close(read_audio(path, mix=True), expected, rtol=0, atol=1.01 / 2**8)
    if kind != (1, 16):
        with pytest.raises(ValueError, match="wanted 16"):
            read_audio(path)


def test_channels_are_averaged_where_they_are_only_transcribed(tmp_path: Path) -> None:
    stereo = np.array([[100, 300], [-200, 0], [32767, -32767]], dtype="<i2")
    path = write(tmp_path, riff_bytes(format_chunk(channels=2), chunk(b"data", stereo.tobytes())))
    assert (read_audio(path, mix=True) * 32768).tolist() == [200.0, -100.0, 0.0]
    soundfile.write(tmp_path / "a.flac", stereo, 16000)
    assert (read_audio(tmp_path / "a.flac", mix=True) * 32768).tolist() == [200.0, -100.0, 0.0]
    for name in ("a.WAV", "a.flac"):
        with pytest.raises(ValueError, match="2 channels, wanted 1"):
            read_audio(tmp_path / name)
