"""Our log-mel against Hugging Face's feature extractor, which uses torch where it is installed."""

import numpy as np
import pytest
import torch

from data.audio import read_audio
from data.log_mel import log_mel, mel_filters

BOUND = 1e-5  # float32; observed 0.0 with torch 2.11, on speech too


def hf_log_mel(waveform, num_mels=80, seconds=30):
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(feature_size=num_mels, chunk_length=seconds)
    features = extractor(np.asarray(waveform), sampling_rate=16_000, return_tensors="pt")
    return features["input_features"][0]


def noise(num_samples, scale=0.1):
    return (np.random.default_rng(0).standard_normal(num_samples) * scale).astype(np.float32)


def tone(num_samples):
    return np.sin(2 * np.pi * 437.3 / 16_000 * np.arange(num_samples)).astype(np.float32)


SIGNALS = {
    "noise": noise(50_001),
    "quiet noise": noise(50_001, scale=1e-5),
    "silence": np.zeros(16_000, dtype=np.float32),
    "tone": tone(480_000),
    "one sample": np.ones(1, dtype=np.float32),
    "longer than 30 s": noise(500_000),
}


@pytest.mark.parametrize("num_mels", [80, 128])
@pytest.mark.parametrize("signal", SIGNALS)
def test_log_mel_of_signals_equals_hf(signal, num_mels):
    ours = log_mel(torch.from_numpy(SIGNALS[signal]), num_mels)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, hf_log_mel(SIGNALS[signal], num_mels), rtol=0, atol=BOUND)


@pytest.mark.speech
def test_log_mel_of_real_speech_equals_hf(speech_root):
    paths = sorted(p for p in speech_root.rglob("*") if p.suffix.lower() == ".wav")[::60]
    assert paths
    for path in paths:
        waveform = read_audio(path)
        torch.testing.assert_close(log_mel(waveform), hf_log_mel(waveform), rtol=0, atol=BOUND)


def test_log_mel_of_shorter_context_equals_hf():
    ours = log_mel(SIGNALS["noise"], seconds=2.0)
    torch.testing.assert_close(ours, hf_log_mel(SIGNALS["noise"], seconds=2), rtol=0, atol=BOUND)


@pytest.mark.parametrize(
    ("num_samples", "seconds", "num_frames"),
    [
        (16_000, 30.0, 3000),
        (16_000, 6.5, 650),
        (16_000, 0.29, 29),
        (16_000, None, 100),
        (16_001, None, 101),
        (1, None, 2),
    ],
)
def test_log_mel_frames_are_a_hundred_a_second(num_samples, seconds, num_frames):
    assert log_mel(noise(num_samples), seconds=seconds).shape == (80, num_frames)


def test_log_mel_without_padding_equals_padding_to_the_same_length():
    waveform = noise(15_999)
    assert torch.equal(log_mel(waveform, seconds=None), log_mel(waveform, seconds=1.0))


def test_log_mel_of_padding_is_the_floor_of_the_utterance():
    padded = log_mel(noise(16_000))
    floor = (padded.max() - 2.0).expand(80, 2890)  # 8 decades under the loudest, over 4
    torch.testing.assert_close(padded[:, 110:], floor, rtol=0, atol=1e-6)  # observed 1.2e-7


def test_log_mel_leaves_the_waveform_unchanged():
    waveform = torch.from_numpy(noise(1000))
    before = waveform.clone()
    log_mel(waveform)
    assert torch.equal(waveform, before)


@pytest.mark.parametrize("num_mels", [80, 128])
def test_mel_filters_equal_hf(num_mels):
    from transformers.audio_utils import mel_filter_bank

    theirs = mel_filter_bank(
        num_frequency_bins=201,
        num_mel_filters=num_mels,
        min_frequency=0.0,
        max_frequency=8000.0,
        sampling_rate=16_000,
        norm="slaney",
        mel_scale="slaney",
    )
    theirs = torch.from_numpy(theirs.T).float()
    # observed 0.0 of weights up to 0.042
    torch.testing.assert_close(mel_filters(num_mels), theirs, rtol=0, atol=1e-8)


@pytest.mark.parametrize("waveform", [torch.zeros(2, 100), torch.zeros(0)])
def test_log_mel_of_no_single_channel_raises(waveform):
    with pytest.raises(ValueError, match="expected one channel of samples"):
        log_mel(waveform)


def test_log_mel_of_too_short_context_raises():
    with pytest.raises(ValueError, match="seconds 0.01 is too short"):
        log_mel(torch.zeros(100), seconds=0.01)
