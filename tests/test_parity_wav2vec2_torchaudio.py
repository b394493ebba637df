"""Our wav2vec2 against torchaudio's, every parameter randomised."""

import pytest
import torch
from torch import Tensor, nn

from benchmarks.training import native_name
from models.wav2vec2 import Wav2Vec2, Wav2Vec2Config

BOUND = 1e-10  # float64; observed up to 1.2e-15


def copy_weights(theirs: nn.Module, ours: Wav2Vec2) -> None:
    weights = {"masked_embedding": ours.masked_embedding.detach()}  # torchaudio has no masking here
    for name, value in theirs.state_dict().items():
        weights[native_name(name)] = value
    ours.load_state_dict(weights, strict=True)


def build_small(randomise, variant: str) -> tuple[nn.Module, Wav2Vec2]:
    import torchaudio

    torch.set_default_dtype(torch.float64)
    large = variant == "large"
    convs = [(12, 10, 5), (12, 3, 2), (12, 2, 2)]
    theirs = torchaudio.models.wav2vec2_model(
        extractor_mode="layer_norm" if large else "group_norm",
        extractor_conv_layer_config=convs,
        extractor_conv_bias=large,
        encoder_embed_dim=24,
        encoder_projection_dropout=0.0,
        encoder_pos_conv_kernel=8,
        encoder_pos_conv_groups=4,
        encoder_num_layers=2,
        encoder_num_heads=4,
        encoder_attention_dropout=0.0,
        encoder_ff_interm_features=40,
        encoder_ff_interm_dropout=0.0,
        encoder_dropout=0.0,
        encoder_layer_norm_first=large,
        encoder_layer_drop=0.0,
        aux_num_out=11,
    )
    dims, kernels, strides = zip(*convs, strict=True)
    config = Wav2Vec2Config(
        conv_dims=dims,
        conv_kernels=kernels,
        conv_strides=strides,
        conv_norm="layer" if large else "group",
        conv_bias=large,
        d_model=24,
        positional_kernel=8,
        positional_groups=4,
        num_layers=2,
        num_heads=4,
        ffn_dim=40,
        norm_first=large,
        vocab_size=11,
    )
    ours = Wav2Vec2(config).eval()
    copy_weights(randomise(theirs.eval()), ours)
    return theirs, ours


def padded_batch(num_samples: list[int]) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor(num_samples)
    waveform = torch.randn(len(num_samples), max(num_samples))
    return waveform * (torch.arange(max(num_samples)) < lengths[:, None]), lengths


@pytest.mark.parametrize("variant", ["base", "large"])
@pytest.mark.parametrize("padded", [False, True])
def test_logits_equal_torchaudio(randomise, variant, padded):
    theirs, ours = build_small(randomise, variant)
    waveform, lengths = padded_batch([777, 500])
    lengths = lengths if padded else None
    expected, _ = theirs(waveform, lengths)
    assert (ours.logits(waveform, lengths) - expected).abs().max() <= BOUND


@pytest.mark.parametrize("variant", ["base", "large"])
def test_num_frames_equal_torchaudio(randomise, variant):
    theirs, ours = build_small(randomise, variant)
    waveform, lengths = padded_batch([777, 500, 101])
    _, expected = theirs(waveform, lengths)
    assert torch.equal(ours.num_frames(lengths), expected)


@pytest.mark.long
@pytest.mark.slow
def test_logits_of_base_size_in_float32_equal_torchaudio(randomise):
    import torchaudio

    theirs = randomise(torchaudio.models.wav2vec2_base(aux_num_out=32).eval(), scale=0.02)
    ours = Wav2Vec2(Wav2Vec2Config()).eval()
    copy_weights(theirs, ours)
    waveform, lengths = padded_batch([16000, 11111])
    with torch.no_grad():
        expected, _ = theirs(waveform, lengths)
        actual = ours.logits(waveform, lengths)
    assert (actual - expected).abs().max() <= 5e-5  # observed 2.4e-6, logits up to 2.4
