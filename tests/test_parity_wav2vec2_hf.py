"""Our wav2vec2 against Hugging Face's, every parameter randomised."""

import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.wav2vec2 import Wav2Vec2, Wav2Vec2Config

BOUND = 1e-10  # float64; observed up to 1.4e-15 (states, logits) and 3.4e-13 (gradients)
SIZES = {
    "conv_dims": (12, 12, 12),
    "conv_kernels": (10, 3, 2),
    "conv_strides": (5, 2, 2),
    "d_model": 24,
    "num_layers": 2,
    "num_heads": 4,
    "ffn_dim": 40,
    "vocab_size": 11,
    "layer_norm_eps": 1e-3,
}
VARIANTS = {
    "base": {"positional_kernel": 8, "positional_groups": 4},
    "large": {
        "positional_kernel": 7,
        "positional_groups": 2,
        "conv_norm": "layer",
        "conv_bias": True,
        "norm_first": True,
    },
}
HF_FIELDS = {
    "conv_dims": "conv_dim",
    "conv_kernels": "conv_kernel",
    "conv_strides": "conv_stride",
    "conv_bias": "conv_bias",
    "conv_norm": "feat_extract_norm",
    "d_model": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "ffn_dim": "intermediate_size",
    "positional_kernel": "num_conv_pos_embeddings",
    "positional_groups": "num_conv_pos_embedding_groups",
    "norm_first": "do_stable_layer_norm",
    "vocab_size": "vocab_size",
    "layer_norm_eps": "layer_norm_eps",
}
RENAMES = [
    (r"^wav2vec2\.", ""),
    (r"^masked_spec_embed", "masked_embedding"),
    (r"^feature_extractor\.conv_layers\.(\d+)\.layer_norm", r"feature_encoder.layers.\1.norm"),
    (r"^feature_extractor\.conv_layers", "feature_encoder.layers"),
    (r"^feature_projection\.layer_norm", "feature_projection.norm"),
    (r"^feature_projection\.projection", "feature_projection.proj"),
    (r"pos_conv_embed\.conv\.parametrizations\.weight\.original0", "positional_conv.weight_g"),
    (r"pos_conv_embed\.conv\.parametrizations\.weight\.original1", "positional_conv.weight_v"),
    (r"pos_conv_embed\.conv\.bias", "positional_conv.bias"),
    (r"^encoder\.layer_norm", "encoder.norm"),
    (r"\.attention\.", ".self_attn."),
    (r"\.final_layer_norm", ".ffn_norm"),
    (r"(layers\.\d+)\.layer_norm", r"\1.attn_norm"),
    (r"\.feed_forward\.intermediate_dense", ".ffn.fc1"),
    (r"\.feed_forward\.output_dense", ".ffn.fc2"),
    (r"^lm_head", "head"),
]


def native_name(name: str) -> str:
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def build_pair(randomise, config: Wav2Vec2Config) -> tuple[nn.Module, Wav2Vec2]:
    import transformers

    fields = {hf: getattr(config, ours) for ours, hf in HF_FIELDS.items()}
    hf_config = transformers.Wav2Vec2Config(**fields, ctc_loss_reduction="sum")
    theirs = randomise(transformers.Wav2Vec2ForCTC(hf_config)).eval()
    ours = Wav2Vec2(config).eval()
    ours.load_state_dict({native_name(k): v for k, v in theirs.state_dict().items()}, strict=True)
    return theirs, ours


def build_small(randomise, variant: str) -> tuple[nn.Module, Wav2Vec2]:
    torch.set_default_dtype(torch.float64)
    return build_pair(randomise, Wav2Vec2Config(**SIZES, **VARIANTS[variant]))


def batch(num_samples: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Waveforms padded with zeros, their lengths, and Hugging Face's attention mask."""
    lengths = torch.tensor(num_samples)
    attention_mask = torch.arange(max(num_samples)) < lengths[:, None]
    waveform = torch.randn(attention_mask.shape, generator=torch.Generator().manual_seed(2))
    return waveform * attention_mask, lengths, attention_mask.long()


def largest_difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("samples", [501, 1000])
def test_logits_without_lengths_equal_hf(randomise, variant, samples):
    theirs, ours = build_small(randomise, variant)
    waveform, _, _ = batch([samples, samples])
    assert largest_difference(ours.logits(waveform), theirs(waveform).logits) <= BOUND


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("num_samples", [[777, 500, 41], [640, 640, 640]])
def test_logits_with_lengths_equal_hf(randomise, variant, num_samples):
    theirs, ours = build_small(randomise, variant)
    waveform, lengths, attention_mask = batch(num_samples)
    expected = theirs(waveform, attention_mask=attention_mask).logits
    actual = ours.logits(waveform, lengths)
    # padded frames too: the key mask gives every row a defined output on both sides
    assert largest_difference(actual, expected) <= BOUND


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("padded", [False, True])
def test_hidden_states_equal_hf_at_every_layer(randomise, variant, padded):
    theirs, ours = build_small(randomise, variant)
    waveform, lengths, attention_mask = batch([777, 500])
    if not padded:
        lengths = attention_mask = None
    expected = theirs(waveform, attention_mask=attention_mask, output_hidden_states=True)
    num_frames = None if lengths is None else ours.num_frames(lengths)
    states = ours.hidden_states(ours.features(waveform, lengths), num_frames)
    assert len(states) == len(expected.hidden_states) == 3
    for actual, state in zip(states, expected.hidden_states, strict=True):
        assert largest_difference(actual, state) <= BOUND


@pytest.mark.parametrize("variant", VARIANTS)
def test_features_equal_hf(randomise, variant):
    theirs, ours = build_small(randomise, variant)
    waveform, lengths, _ = batch([777, 500])
    expected = theirs.wav2vec2.feature_extractor(waveform).transpose(1, 2)
    assert largest_difference(ours.features(waveform, lengths), expected) <= BOUND


def ctc_loss(logits: Tensor, labels: Tensor, num_frames: Tensor) -> Tensor:
    target_lengths = (labels >= 0).sum(1)
    log_probs = logits.log_softmax(2).transpose(0, 1)
    return F.ctc_loss(log_probs, labels[labels >= 0], num_frames, target_lengths, reduction="sum")


LABELS = torch.tensor([[3, 3, 7, 1], [5, 2, -100, -100]])


@pytest.mark.parametrize("variant", VARIANTS)
def test_ctc_loss_equals_that_of_hf_labels(randomise, variant):
    theirs, ours = build_small(randomise, variant)
    waveform, lengths, attention_mask = batch([777, 500])
    expected = theirs(waveform, attention_mask=attention_mask, labels=LABELS).loss
    loss = ctc_loss(ours.logits(waveform, lengths), LABELS, ours.num_frames(lengths))
    # Hugging Face casts its log-probabilities to float32: observed 8e-8
    assert abs(loss.item() / expected.item() - 1) <= 1e-6


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_gradients_of_ctc_loss_equal_hf(randomise, variant):
    theirs, ours = build_small(randomise, variant)
    waveform, lengths, attention_mask = batch([777, 500])
    logits = theirs(waveform, attention_mask=attention_mask).logits
    ctc_loss(logits, LABELS, ours.num_frames(lengths)).backward()
    ctc_loss(ours.logits(waveform, lengths), LABELS, ours.num_frames(lengths)).backward()
    gradients = {name: p.grad for name, p in ours.named_parameters()}
    assert gradients.pop("masked_embedding") is None  # not used in eval mode
    for name, parameter in theirs.named_parameters():
        if parameter.grad is not None:
            gradient = gradients.pop(native_name(name))
            assert largest_difference(gradient, parameter.grad) <= BOUND, name
    assert not gradients


def test_num_frames_equal_hf(randomise):
    theirs, _ = build_small(randomise, "base")
    ours = Wav2Vec2(Wav2Vec2Config(**SIZES, **VARIANTS["base"]))
    num_samples = torch.arange(1, 3000)
    expected = theirs._get_feat_extract_output_lengths(num_samples)
    assert torch.equal(ours.num_frames(num_samples), expected)
    assert [ours.num_frames(n) for n in num_samples.tolist()] == expected.tolist()


@pytest.mark.parametrize("variant", VARIANTS)
def test_given_masked_frames_equal_hf(randomise, variant, monkeypatch):
    theirs, ours = build_small(randomise, variant)
    waveform, _, _ = batch([777])
    masked = torch.zeros(1, ours.num_frames(777), dtype=torch.bool)
    masked[0, 5:12] = True
    expected = theirs.wav2vec2(waveform, mask_time_indices=masked.clone()).last_hidden_state

    monkeypatch.setattr("models.masking.draw_spans", lambda *_: masked)
    config = Wav2Vec2Config(
        **SIZES, **VARIANTS[variant], activation_dropout=0.0, layer_drop=0.0, mask_channel_prob=0.0
    )
    training = Wav2Vec2(config)
    training.load_state_dict(ours.state_dict())
    assert largest_difference(training.logits(waveform), theirs.lm_head(expected)) <= BOUND


@pytest.mark.long
@pytest.mark.slow
def test_logits_of_base_size_in_float32_equal_hf(randomise):
    theirs, ours = build_pair(partial(randomise, scale=0.02), Wav2Vec2Config())
    waveform, lengths, attention_mask = batch([16000, 11111])
    with torch.no_grad():
        expected = theirs(waveform, attention_mask=attention_mask).logits
        actual = ours.logits(waveform, lengths)
    assert largest_difference(actual, expected) <= 5e-5  # observed 2.3e-6, logits up to 2.4
