"""Recordings to transcribe: what is found, what arrays are taken, and where they are cut."""

import re

import numpy as np
import pytest
import torch

from data.recordings import as_waveform, cut_at_silence, find_recordings
from data.resample import resample

RATE = 16000


def speech_with_pauses(*seconds: float) -> torch.Tensor:
    """Noise and near silence by turns."""
    parts = [
        (0.3 if i % 2 == 0 else 1e-4) * torch.randn(int(length * RATE))
        for i, length in enumerate(seconds)
    ]
    return torch.cat(parts)


def ends(pieces: list[tuple[int, int]]) -> list[float]:
    return [stop / RATE for _, stop in pieces]


def test_what_is_short_enough_is_one_piece():
    assert cut_at_silence(torch.randn(RATE), RATE, RATE // 2) == [(0, RATE)]


def test_pieces_are_the_recording_without_gaps():
    waveform = torch.randn(95_123)
    pieces = cut_at_silence(waveform, 20_000, 10_000)
    joined = torch.cat([waveform[start:stop] for start, stop in pieces])
    assert torch.equal(joined, waveform)
    assert all(0 < stop - start <= 20_000 for start, stop in pieces)


def test_cut_is_in_the_middle_of_the_first_pause_after_the_shortest_piece():
    waveform = speech_with_pauses(2, 1, 3, 1, 2)  # pauses from 2 to 3 and from 6 to 7
    assert ends(cut_at_silence(waveform, 8 * RATE, 4 * RATE)) == [pytest.approx(6.5, abs=0.1), 9.0]
    assert ends(cut_at_silence(waveform, 8 * RATE, 1 * RATE))[0] == pytest.approx(2.5, abs=0.1)


def test_without_a_pause_the_cut_is_where_it_is_quietest():
    waveform = 0.3 * torch.randn(10 * RATE)
    waveform[int(6.0 * RATE) : int(6.4 * RATE)] *= 0.5  # only 6 dB
    assert ends(cut_at_silence(waveform, 8 * RATE, 4 * RATE))[0] == pytest.approx(6.2, abs=0.1)


def test_digital_silence_is_cut_too():
    pieces = cut_at_silence(torch.zeros(3 * RATE + 5), RATE, RATE // 2)
    assert pieces[-1][1] == 3 * RATE + 5
    assert all(stop - start <= RATE for start, stop in pieces)


@pytest.mark.parametrize("longest", [1600, 5000])
def test_very_short_pieces_are_possible(longest):
    pieces = cut_at_silence(torch.randn(20_000), longest, longest // 2)
    assert all(0 < stop - start <= longest for start, stop in pieces)
    assert pieces[-1][1] == 20_000


WAVE = torch.linspace(-0.9, 0.9, 100)


@pytest.mark.parametrize(
    "samples",
    [
        WAVE,
        WAVE.double(),
        WAVE.numpy(),
        WAVE.tolist(),
        WAVE[None],
        WAVE[:, None].numpy(),
        (WAVE * 32768).round().to(torch.int16),
        (WAVE.double() * 2**31).round().to(torch.int32).numpy(),
        (WAVE * 128 + 128).round().to(torch.uint8).numpy(),
    ],
)
def test_arrays_of_any_common_form_are_one_waveform(samples):
    found = as_waveform(samples)
    assert found.dtype == torch.float32
    assert found.shape == (100,)
    assert (found - WAVE).abs().max() < 0.5001 / 128


def test_other_rates_are_resampled():
    wave = torch.randn(800).clamp(-1, 1)
    assert torch.equal(as_waveform(wave, 8000), resample(wave, 8000, 16000))


@pytest.mark.parametrize(
    ("samples", "rate", "message"),
    [
        ([], RATE, "without samples"),
        (np.zeros((2, 5)), RATE, "shape (2, 5), expected (samples,): give one channel"),
        ([0.1, float("nan")], RATE, "NaN or infinite"),
        ([0.1, 3000.0], RATE, "values of up to 3000, expected [-1, 1]: divide"),
        (["a"], RATE, "give numbers"),
        ([0.1], 0, "sample rate of 0"),
        ([0.1], 16000.0, "sample rate of 16000.0"),
    ],
)
def test_arrays_that_are_no_waveform_are_refused(samples, rate, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        as_waveform(samples, rate)


def test_folders_are_searched_and_files_taken_as_they_are(tmp_path):
    for name in ("b/2.FLAC", "b/1.wav", "b/deep/3.Mp3", "b/notes.txt", "odd.raw"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = find_recordings([str(tmp_path / "odd.raw"), str(tmp_path / "b")])
    names = [path.relative_to(tmp_path).as_posix() for path in found]
    assert names == ["odd.raw", "b/1.wav", "b/2.FLAC", "b/deep/3.Mp3"]


def test_missing_recordings_are_named(tmp_path):
    with pytest.raises(ValueError, match="no recordings in .*: looked for files that end in .wav"):
        find_recordings([str(tmp_path)])
    with pytest.raises(ValueError, match="no recording at .*x.wav"):
        find_recordings([str(tmp_path / "x.wav")])
