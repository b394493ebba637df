import dataclasses
import json
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.draw import Draw
from models.masking import DroppedLayers, DroppedOnDevice, draw_masks, draw_spans
from models.packing import WholeRows
from models.wav2vec2 import PRUNE_SCOPES, Wav2Vec2, Wav2Vec2Config
from models.wav2vec2.convs import convolve, convolve_by_fft

SMALL = Wav2Vec2Config(
    conv_dims=(12, 12, 12),
    conv_kernels=(10, 3, 2),
    conv_strides=(5, 2, 2),
    d_model=24,
    num_layers=2,
    num_heads=4,
    ffn_dim=40,
    positional_kernel=8,
    positional_groups=4,
    vocab_size=11,
    mask_time_length=3,
    mask_channel_length=4,
)
LARGE = dataclasses.replace(SMALL, conv_norm="layer", conv_bias=True, norm_first=True)
VARIANTS = [pytest.param(SMALL, id="base"), pytest.param(LARGE, id="large")]


def build(
    randomise, config: Wav2Vec2Config = SMALL, padding: str = "hf", **changes: object
) -> Wav2Vec2:
    torch.set_default_dtype(torch.float64)
    model = randomise(Wav2Vec2(dataclasses.replace(config, **changes))).eval()
    model.padding = padding
    return model


def padded_batch(num_samples: list[int], width: int | None = None) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor(num_samples)
    waveform = torch.randn(len(num_samples), width or max(num_samples))
    return waveform * (torch.arange(waveform.shape[1]) < lengths[:, None]), lengths


# Padding


@pytest.mark.parametrize("config", VARIANTS)
@pytest.mark.parametrize("padding", ["independent", "packed"])
def test_logits_without_padding_to_see_equal_the_utterance_alone(randomise, config, padding):
    model = build(randomise, config, padding=padding)
    waveform, lengths = padded_batch([777, 503, 41], width=900)
    batched = model.logits(waveform, lengths)
    for row, samples in zip(range(3), lengths.tolist(), strict=True):
        alone = model.logits(waveform[row : row + 1, :samples])
        difference = batched[row, : alone.shape[1]] - alone[0]
        assert difference.abs().max() <= 1e-10  # observed up to 1.3e-15


def test_logits_with_hf_padding_and_group_norm_depend_on_the_padding(randomise):
    model = build(randomise, padding="hf")
    waveform, lengths = padded_batch([777, 503])
    alone = model.logits(waveform[1:, :503])
    difference = model.logits(waveform, lengths)[1, : alone.shape[1]] - alone[0]
    assert difference.abs().max() > 1e-3  # observed 0.25


@pytest.mark.parametrize("padding", ["independent", "packed"])
def test_gradients_without_padding_to_see_equal_the_utterance_alone(randomise, padding):
    model = build(randomise, padding=padding)
    waveform, lengths = padded_batch([503], width=900)
    gradients = []
    for logits in (model.logits(waveform, lengths)[:, :24], model.logits(waveform[:, :503])):
        model.zero_grad()
        (logits**2).sum().backward()
        used = [p.grad for name, p in model.named_parameters() if name != "masked_embedding"]
        gradients.append(torch.cat([gradient.flatten() for gradient in used]))
    assert logits.shape[1] == 24
    assert (gradients[0] - gradients[1]).abs().max() <= 1e-10  # observed 1.5e-14


@pytest.mark.parametrize("config", VARIANTS)
def test_packed_training_step_equals_the_padded_one(randomise, config):
    # Masks are drawn alike, dropout is not.
    model = build(randomise, config, activation_dropout=0.0, layer_drop=0.4).train()
    waveform, lengths = padded_batch([777, 503, 41], width=900)
    results = []
    for padding in ("independent", "packed"):
        model.padding = padding
        model.zero_grad()
        torch.manual_seed(5)
        logits = model.logits(waveform, lengths)
        is_frame = torch.arange(logits.shape[1]) < model.num_frames(lengths)[:, None]
        (logits[is_frame] ** 2).sum().backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        results.append((logits[is_frame], grads))
    (padded, padded_grads), (packed, packed_grads) = results
    assert padded.abs().max() > 0.1
    torch.testing.assert_close(packed, padded, rtol=0, atol=1e-10)  # observed 8.9e-16
    torch.testing.assert_close(packed_grads, padded_grads, rtol=0, atol=1e-10)  # observed 6e-14


@pytest.mark.parametrize("config", VARIANTS)
def test_packed_hidden_states_equal_the_padded_ones(randomise, config):
    lengths, features = torch.tensor([40, 31, 2]), torch.randn(3, 40, 12, dtype=torch.float64)
    model, states = build(randomise, config), []
    for padding in ("independent", "packed"):
        model.padding = padding
        states.append(model.hidden_states(features, lengths))
    is_frame = torch.arange(40) < lengths[:, None]
    for padded, packed in zip(*states, strict=True):
        torch.testing.assert_close(packed[is_frame], padded[is_frame], rtol=0, atol=1e-10)
        assert not packed[~is_frame].any()


@pytest.mark.parametrize(("taps", "groups"), [(8, 4), (7, 2), (1, 1), (128, 24)])
def test_positional_convolutions_equal_conv1d(taps, groups):
    x = torch.randn(3, 29, 24, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(24, 24 // groups, taps, dtype=torch.float64, requires_grad=True)
    expected = F.conv1d(x.mT, weight, padding=taps // 2, groups=groups).mT[:, :29]
    upstream = torch.randn_like(expected)
    grads = torch.autograd.grad(expected, (x, weight), upstream)
    for method in (convolve, convolve_by_fft):
        y = method(x, weight, groups)
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-10)  # observed 4.3e-14
        found = torch.autograd.grad(y, (x, weight), upstream)
        torch.testing.assert_close(found, grads, rtol=0, atol=1e-10)


@pytest.mark.parametrize("config", VARIANTS)
def test_logits_from_cached_features_equal_logits(randomise, config):
    model = build(randomise, config)
    waveform, lengths = padded_batch([777, 503])
    features = model.features(waveform, lengths)
    cached = model.logits_from_features(features, model.num_frames(lengths))
    assert torch.equal(cached, model.logits(waveform, lengths))


# Lengths


def test_num_frames_of_one_second_is_49():
    with torch.device("meta"):
        model = Wav2Vec2(Wav2Vec2Config())
    assert (model.num_frames(16000), model.num_frames(400), model.num_frames(399)) == (49, 1, 0)
    assert model.min_samples == 400


@pytest.mark.parametrize("config", VARIANTS)
@pytest.mark.parametrize("training", [False, True])
def test_logits_of_the_shortest_clip_are_finite(randomise, config, training):
    model = build(randomise, config).train(training)
    waveform, lengths = padded_batch([model.min_samples])
    assert model.logits(waveform, lengths).shape == (1, 1, 11)
    assert model.logits(waveform).isfinite().all()


def test_logits_of_a_clip_shorter_than_a_frame_raise(randomise):
    model = build(randomise)
    short = model.min_samples - 1
    with pytest.raises(ValueError, match=f"waveform has {short} samples; one frame needs"):
        model.logits(torch.zeros(1, short))
    with pytest.raises(ValueError, match=f"num_samples goes from {short} to 500"):
        model.logits(torch.zeros(2, 500), torch.tensor([500, short]))


def test_lengths_that_do_not_fit_raise(randomise):
    model = build(randomise)
    with pytest.raises(ValueError, match="num_samples goes from 500 to 501"):
        model.logits(torch.zeros(2, 500), torch.tensor([500, 501]))
    with pytest.raises(ValueError, match="num_samples has 1 entries for a batch of 2"):
        model.logits(torch.zeros(2, 500), torch.tensor([500]))
    with pytest.raises(ValueError, match="num_frames goes from 0 to 7"):
        model.logits_from_features(torch.zeros(2, 7, 12), torch.tensor([0, 7]))


# Training masks


def spans(lengths: list[int], width: int, **options: float) -> Tensor:
    draw = Draw(int(torch.randint(1 << 62, ())), range(len(lengths)))
    return draw_spans(lengths, width, **options, drawn=draw.of_rows(0, 1 + width))


def span_lengths(row: Tensor) -> list[int]:
    return [len(run) for run in re.findall("1+", "".join(str(int(value)) for value in row))]


def test_draw_spans_stay_within_each_length():
    lengths = list(range(0, 60))
    for _ in range(20):
        masked = spans(lengths, 60, prob=0.65, span_length=10, min_spans=2)
        for row, length in zip(masked, lengths, strict=True):
            assert not row[length:].any()
            assert all(run >= 10 for run in span_lengths(row))
            assert row.any() == (length >= 10)


def test_draw_spans_give_the_minimum_where_there_is_room():
    masked = spans([20] * 400, 20, prob=0.0, span_length=10, min_spans=2)
    assert masked.sum(1).max() == 20
    assert masked.sum(1).min() > 10  # two starts are never the same


def test_draw_spans_round_at_random():
    masked = spans([14] * 4000, 14, prob=0.25, span_length=10, min_spans=0)
    assert set(masked.sum(1).tolist()) == {0, 10}
    share = masked.any(1).double().mean().item()
    assert abs(share - 0.35) < 0.03  # 0.25 * 14 / 10 of a span; four standard deviations


def test_draw_spans_reproduce_with_the_seed():
    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return spans([100, 70], 100, prob=0.5, span_length=5, min_spans=1)

    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))


def test_draw_spans_of_an_utterance_do_not_depend_on_the_padding():
    def draw(width: int) -> Tensor:
        torch.manual_seed(3)
        return spans([50], width, prob=0.65, span_length=10, min_spans=2)

    assert torch.equal(draw(50), draw(500)[:, :50])


def test_rows_drawn_in_parts_hide_what_the_whole_batch_hides():
    config = dataclasses.replace(
        SMALL, mask_time_prob=0.5, mask_channel_prob=0.5, layer_drop=0.5, num_layers=20
    )
    whole = draw_masks([40, 30, 35], 40, config, Draw(7, range(3)))
    part = draw_masks([40, 35], 40, config, Draw(7, [0, 2]))
    assert torch.equal(part.frames, whole.frames[[0, 2]])
    assert torch.equal(part.channels, whole.channels[[0, 2]])
    assert part.layers == whole.layers
    other = draw_masks([40, 30, 35], 40, config, Draw(8, range(3)))
    assert not torch.equal(other.frames, whole.frames)
    assert other.layers != whole.layers


def masked_input(model: Wav2Vec2, monkeypatch, features: Tensor, lengths: Tensor) -> Tensor:
    """What the encoder is given."""
    seen = []
    forward = model.encoder.forward

    def remember(x, *rest, **named):
        seen.append(x)
        return forward(x, *rest, **named)

    monkeypatch.setattr(model.encoder, "forward", remember)
    model.logits_from_features(features, lengths)
    return seen[0]


def test_masked_frames_get_the_embedding_and_masked_channels_get_zero(randomise, monkeypatch):
    model = build(randomise, mask_channel_prob=0.5).train()
    features, lengths = torch.randn(2, 40, 12), torch.tensor([40, 30])
    plain = model.feature_projection(features)
    x = masked_input(model, monkeypatch, features, lengths)

    zero_channels = (x == 0).all(1)
    assert zero_channels.any(1).all()
    assert not zero_channels.all(1).any()
    kept = ~zero_channels[:, None].expand_as(x)
    from_embedding = (x == model.masked_embedding) | ~kept
    masked_frames = from_embedding.all(2)
    assert masked_frames.any(1).all()
    assert not masked_frames[1, 30:].any()
    assert torch.equal(
        x[kept & ~masked_frames[:, :, None]], plain[kept & ~masked_frames[..., None]]
    )


def test_nothing_is_masked_in_eval_mode(randomise, monkeypatch):
    model = build(randomise, mask_time_prob=1.0, mask_channel_prob=1.0)
    features, lengths = torch.randn(2, 40, 12), torch.tensor([40, 30])
    x = masked_input(model, monkeypatch, features, lengths)
    assert torch.equal(x, model.feature_projection(features))


def test_train_mode_reproduces_with_the_seed(randomise):
    model = build(randomise, layer_drop=0.5, dropout=0.1).train()
    waveform, lengths = padded_batch([777, 503])

    def logits(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return model.logits(waveform, lengths)

    assert torch.equal(logits(3), logits(3))
    assert not torch.equal(logits(3), logits(4))


# Training


@pytest.mark.parametrize("config", VARIANTS)
def test_every_parameter_gets_gradient_in_train_mode(randomise, config):
    model = build(randomise, config, layer_drop=0.0).train()
    waveform, lengths = padded_batch([777, 503])
    (model.logits(waveform, lengths) ** 2).sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    # a softmax over keys ignores what all keys share, so a key bias has gradient 0 by nature
    zero = [name for name, gradient in gradients.items() if gradient.abs().max() < 1e-9]
    assert all(name.endswith("k_proj.bias") for name in zero)


def test_layer_drop_of_nearly_one_skips_every_layer_only_in_train_mode(randomise):
    model = build(randomise, layer_drop=1 - 1e-9, mask_time_prob=0.0, mask_channel_prob=0.0)
    features = model.features(torch.randn(2, 500))
    first, _, last = model.train().hidden_states(features)
    assert torch.equal(first, last)
    first, _, last = model.eval().hidden_states(features)
    assert not torch.equal(first, last)


def test_skipped_layers_given_as_a_tensor_equal_those_given_as_numbers(randomise):
    model = build(randomise)
    x = torch.randn(2, 30, 24)
    plain = model.encoder(x, WholeRows())
    for skipped in ((True, False), (False, True), (False, False)):
        expected = model.encoder(x, WholeRows(), DroppedLayers(skipped))
        assert torch.equal(expected, plain) != any(skipped)
        on_device = DroppedOnDevice(torch.tensor(skipped))
        assert torch.equal(model.encoder(x, WholeRows(), on_device), expected)


def test_each_layer_is_skipped_with_the_probability_of_layer_drop():
    config = dataclasses.replace(SMALL, layer_drop=0.3)
    drawn = torch.tensor([draw_masks([5], 5, config).layers.skipped for _ in range(2000)])
    share = drawn.double().mean(0)
    assert (share - 0.3).abs().max() < 0.045  # four standard deviations
    assert not draw_masks([5], 5, dataclasses.replace(SMALL, layer_drop=0.0)).layers.skipped


def test_a_frozen_feature_encoder_leaves_no_graph(randomise):
    model = build(randomise).train()
    model.feature_encoder.requires_grad_(False)
    assert not model.features(torch.randn(2, 500)).requires_grad


@pytest.mark.parametrize("config", VARIANTS)
def test_a_fresh_model_learns_to_label_frames_by_their_tone(config):
    quiet = {"layer_drop": 0.0, "mask_time_prob": 0.0, "mask_channel_prob": 0.0}
    model = Wav2Vec2(dataclasses.replace(config, **quiet)).train()
    seconds = torch.arange(800) / 16000
    tones = [torch.sin(2 * torch.pi * pitch * seconds) for pitch in (300, 900, 2700)]
    waveform = torch.stack([torch.cat([tones[i], tones[j]]) for i, j in ((0, 1), (2, 0), (1, 2))])
    half = model.num_frames(1600) // 2
    targets = torch.tensor([[0, 1], [2, 0], [1, 2]]).repeat_interleave(half, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        logits = model.logits(waveform)[:, : 2 * half]
        loss = F.cross_entropy(logits.transpose(1, 2), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5  # a guess costs 1.1; observed 0.06 and 0.22


# Start values, head, names


def test_start_values_are_as_documented():
    config = dataclasses.replace(LARGE, d_model=192, num_heads=4, ffn_dim=512, vocab_size=500)
    model = Wav2Vec2(config)
    layer = model.encoder.layers[0]
    for linear in (layer.self_attn.q_proj, layer.ffn.fc1, layer.ffn.fc2, model.head):
        assert abs(linear.weight.std().item() - 0.02) < 0.001
        assert not linear.bias.any()
    conv = model.encoder.positional_conv
    assert abs(conv.weight_v.std().item() * (8 * 192) ** 0.5 - 2) < 0.1
    norm = torch.linalg.vector_norm(conv.weight_v, dim=(0, 1), keepdim=True)
    assert torch.equal(conv.weight_g, norm)
    assert 0 <= model.masked_embedding.min() < 0.1 < 0.9 < model.masked_embedding.max() < 1


def test_reset_head_gives_a_fresh_head_of_the_same_dtype(randomise):
    model = build(randomise).to(torch.bfloat16)
    model.reset_head(500)
    assert model.config.vocab_size == 500
    assert model.head.weight.shape == (500, 24)
    assert model.head.weight.dtype == torch.bfloat16
    assert abs(model.head.weight.std().item() - 0.02) < 0.001
    assert not model.head.bias.any()


def test_prune_scope_matches_the_linear_layers_of_the_encoder_alone():
    names = [name for name, _ in Wav2Vec2(SMALL).named_parameters()]
    pattern = re.compile(PRUNE_SCOPES["encoder"])
    matched = {name for name in names if pattern.fullmatch(name)}
    leaves = [f"self_attn.{x}_proj" for x in ("q", "k", "v", "out")] + ["ffn.fc1", "ffn.fc2"]
    assert matched == {
        f"encoder.layers.{layer}.{leaf}.{kind}"
        for layer in range(2)
        for leaf in leaves
        for kind in ("weight", "bias")
    }


def test_parameter_names_of_the_group_norm_variant_are_fixed():
    names = {name for name, _ in Wav2Vec2(SMALL).named_parameters()}
    outside = {name for name in names if not name.startswith("encoder.layers")}
    assert outside == {
        "masked_embedding",
        "feature_encoder.layers.0.conv.weight",
        "feature_encoder.layers.0.norm.weight",
        "feature_encoder.layers.0.norm.bias",
        "feature_encoder.layers.1.conv.weight",
        "feature_encoder.layers.2.conv.weight",
        "feature_projection.norm.weight",
        "feature_projection.norm.bias",
        "feature_projection.proj.weight",
        "feature_projection.proj.bias",
        "encoder.positional_conv.weight_g",
        "encoder.positional_conv.weight_v",
        "encoder.positional_conv.bias",
        "encoder.norm.weight",
        "encoder.norm.bias",
        "head.weight",
        "head.bias",
    }


def test_base_has_94_396_320_parameters():
    with torch.device("meta"):
        model = Wav2Vec2(Wav2Vec2Config())
    assert sum(parameter.numel() for parameter in model.parameters()) == 94_396_320


# Config


def test_config_survives_json():
    assert Wav2Vec2Config(**json.loads(json.dumps(dataclasses.asdict(LARGE)))) == LARGE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv_kernels": (10, 3)}, "need one entry per layer"),
        ({"conv_norm": "batch"}, "conv_norm is 'batch'; use 'group' or 'layer'"),
        ({"num_heads": 5}, "d_model 24 is not a multiple of num_heads 5"),
        ({"positional_groups": 5}, "d_model 24 is not a multiple of positional_groups 5"),
        ({"dropout": 1.5}, r"dropout is 1.5; use a fraction in \[0, 1\]"),
        ({"layer_drop": -0.1}, "layer_drop is -0.1"),
        ({"mask_time_prob": 65}, "mask_time_prob is 65"),
        ({"mask_time_length": 0}, "mask_time_length is 0; use at least 1"),
    ],
)
def test_config_that_does_not_fit_raises(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changes)
