from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from models.whisper import Whisper, WhisperConfig
from models.whisper.kv_cache import ProjectedAudio
from tests.whisper_hf import SMALL, hf_model, native_name, ours_from

pytest.importorskip("transformers")

Pair = tuple[nn.Module, Whisper]


@pytest.fixture
def pair(randomise: Callable) -> Pair:
    hf = randomise(hf_model(SMALL).double(), scale=0.3)
    return hf, ours_from(hf, SMALL)


def _inputs(batch: int = 3, num_frames: int = 40) -> tuple[Tensor, Tensor]:
    log_mel = torch.randn(batch, SMALL.num_mels, num_frames, dtype=torch.float64)
    return log_mel, torch.randint(0, SMALL.vocab_size - 1, (batch, 9))


def _difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


def test_whisper_logits_equal_hf(pair: Pair) -> None:
    hf, ours = pair
    log_mel, ids = _inputs()
    expected = hf(log_mel, decoder_input_ids=ids).logits
    assert _difference(ours.logits(log_mel, ids), expected) <= 1e-10  # observed 4e-15


def test_whisper_encoder_layers_equal_hf(pair: Pair) -> None:
    hf, ours = pair
    log_mel, _ = _inputs()
    expected = hf.model.encoder(log_mel, output_hidden_states=True).hidden_states
    x = ours.encoder.embed(log_mel)
    outputs = [x]
    for layer in ours.encoder.layers:
        x = layer(x)
        outputs.append(x)
    outputs[-1] = ours.encoder.final_norm(x)  # theirs is listed after the norm
    assert len(outputs) == len(expected)
    for mine, theirs in zip(outputs, expected, strict=True):
        assert _difference(mine, theirs) <= 1e-10  # observed 4e-15


def test_whisper_decoder_layers_equal_hf(pair: Pair) -> None:
    hf, ours = pair
    log_mel, ids = _inputs()
    expected = hf(log_mel, decoder_input_ids=ids, output_hidden_states=True).decoder_hidden_states
    encoded = ours.encode(log_mel)
    x = ours.decoder.embed(ids, ours.decoder.positions[: ids.shape[1]])
    outputs = [x]
    for layer in ours.decoder.layers:
        x = layer(x, ProjectedAudio(*layer.cross_attn.keys_values(encoded)))
        outputs.append(x)
    outputs[-1] = ours.decoder.final_norm(x)
    assert len(outputs) == len(expected)
    for mine, theirs in zip(outputs, expected, strict=True):
        assert _difference(mine, theirs) <= 1e-10  # observed 6e-15


def test_whisper_loss_and_gradients_equal_hf(pair: Pair) -> None:
    hf, ours = pair
    log_mel, ids = _inputs()
    targets = torch.randint(0, SMALL.vocab_size, ids.shape)
    targets[0, 6:] = -100
    loss = hf(log_mel, decoder_input_ids=ids, labels=targets).loss
    our_loss = nn.functional.cross_entropy(
        ours.logits(log_mel, ids).flatten(0, 1), targets.flatten()
    )
    assert _difference(our_loss, loss) <= 1e-10  # observed 4e-16
    loss.backward()
    our_loss.backward()
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    assert gradients.pop("encoder.positions") is None
    compared = 0
    for name, parameter in hf.named_parameters():
        if parameter.requires_grad:
            gradient = gradients[native_name(name)]
            assert gradient is not None
            assert _difference(gradient, parameter.grad) <= 1e-10, name  # observed 9e-16
            compared += 1
    assert compared == len(gradients)


def test_whisper_in_training_drops_what_hf_drops(randomise: Callable) -> None:
    config = replace(SMALL, dropout=0.3, attention_dropout=0.2, activation_dropout=0.1)
    hf = randomise(hf_model(config).double(), scale=0.3).train()
    ours = ours_from(hf, config).train()
    _, ids = _inputs()
    encoded = torch.randn(3, SMALL.audio_positions, SMALL.d_model, dtype=torch.float64)
    # The encoder as a whole draws in another order, its input being laid out differently there.
    torch.manual_seed(1)
    expected = hf.model.encoder.layers[0](encoded, None)
    expected_logits = hf(encoder_outputs=(encoded,), decoder_input_ids=ids).logits
    torch.manual_seed(1)
    assert _difference(ours.encoder.layers[0](encoded), expected) <= 1e-10  # observed 1e-14
    assert _difference(ours.decode(ids, encoded), expected_logits) <= 1e-10  # observed 6e-15


def test_whisper_cached_decoding_equals_hf_cached_decoding(pair: Pair) -> None:
    hf, ours = pair
    log_mel, ids = _inputs()
    encoded = ours.encode(log_mel)
    cache = ours.new_cache(encoded, ids.shape[1])
    past = None
    hf_encoded = hf.model.encoder(log_mel)
    for start, end in [(0, 3), *((i, i + 1) for i in range(3, ids.shape[1]))]:
        expected = hf(
            encoder_outputs=hf_encoded,
            decoder_input_ids=ids[:, start:end],
            past_key_values=past,
            use_cache=True,
        )
        past = expected.past_key_values
        logits = ours.decode(ids[:, start:end], cache=cache)
        assert _difference(logits, expected.logits) <= 1e-10  # observed 4e-15


def test_whisper_truncated_context_equals_hf_with_fewer_positions(pair: Pair) -> None:
    hf, ours = pair
    log_mel, ids = _inputs(num_frames=26)
    positions = hf.model.encoder.embed_positions.weight
    hf.model.encoder.embed_positions = nn.Embedding.from_pretrained(positions[:13])
    hf.config.max_source_positions = 13
    expected = hf(log_mel, decoder_input_ids=ids).logits
    assert _difference(ours.logits(log_mel, ids), expected) <= 1e-10  # observed 5e-15


def test_whisper_fresh_weights_are_spread_as_hf_fresh_weights() -> None:
    config = WhisperConfig(encoder_layers=1, decoder_layers=1, vocab_size=2000)
    ours, hf = Whisper(config), hf_model(config)
    parameters = dict(ours.named_parameters())
    for name, theirs in hf.named_parameters():
        mine = parameters[native_name(name)]
        assert mine.requires_grad == theirs.requires_grad, name
        if name.endswith("encoder.embed_positions.weight"):
            assert torch.equal(mine, theirs)
        mine, theirs = mine.detach(), theirs.detach()
        assert _difference(mine.mean(), theirs.mean()) <= 1e-3, name  # observed 1.2e-4
        assert _difference(mine.std(), theirs.std()) <= 1e-3, name  # observed 1.2e-4


@pytest.mark.long
def test_whisper_at_real_size_equals_hf_in_float32(randomise: Callable) -> None:
    config = WhisperConfig(vocab_size=51864)
    hf = randomise(hf_model(config), scale=0.02)
    ours = ours_from(hf, config)
    log_mel, ids = torch.randn(1, 80, 3000), torch.randint(0, 51000, (1, 24))
    with torch.inference_mode():
        expected = hf(log_mel, decoder_input_ids=ids).logits
        difference = _difference(ours.logits(log_mel, ids), expected)
    assert difference <= 5e-5  # observed 0: heads of 64 make the scale a power of two
