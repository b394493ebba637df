import re

import pytest
import torch
from torch import Tensor

from models.whisper import PRUNE_SCOPES, Whisper, WhisperConfig
from tests.whisper_hf import SMALL


@pytest.fixture
def model(randomise) -> Whisper:
    return randomise(Whisper(SMALL).double(), scale=0.3).eval()


def _inputs(batch: int = 3, num_frames: int = 40) -> tuple[Tensor, Tensor]:
    log_mel = torch.randn(batch, SMALL.num_mels, num_frames, dtype=torch.float64)
    return log_mel, torch.randint(0, SMALL.vocab_size, (batch, 9))


def _assert_close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)  # observed up to 5e-15


@pytest.mark.parametrize("pieces", [[4, 1, 1, 1, 1, 1], [9], [1] * 9, [3, 4, 2]])
def test_whisper_decode_in_cached_pieces_equals_uncached(model: Whisper, pieces: list[int]) -> None:
    log_mel, ids = _inputs()
    cache = model.new_cache(model.encode(log_mel), max_tokens=9)
    logits = [model.decode(piece, cache=cache) for piece in ids.split(pieces, dim=1)]
    _assert_close(torch.cat(logits, dim=1), model.logits(log_mel, ids))


def test_kv_cache_after_reorder_continues_the_chosen_beams(model: Whisper) -> None:
    log_mel, ids = _inputs(batch=2)
    ids = torch.cat([ids, ids.flip(1)])[[0, 2, 1, 3]]  # two beams an utterance
    rows = torch.tensor([1, 1, 3, 2])
    cache = model.new_cache(model.encode(log_mel), max_tokens=9, num_beams=2)
    model.decode(ids[:, :5], cache=cache)
    cache.reorder(rows)
    last = model.decode(ids[:, 5:6], cache=cache)
    texts = torch.cat([ids[rows, :5], ids[:, 5:6]], dim=1)
    _assert_close(last, model.logits(log_mel.repeat_interleave(2, 0), texts)[:, 5:])


def test_kv_cache_after_keep_utterances_continues_those(model: Whisper) -> None:
    log_mel, ids = _inputs(batch=3)
    kept = torch.tensor([2, 0])
    cache = model.new_cache(model.encode(log_mel), max_tokens=9, num_beams=2)
    model.decode(ids.repeat_interleave(2, 0)[:, :5], cache=cache)
    cache.keep_utterances(kept)
    last = model.decode(ids[kept].repeat_interleave(2, 0)[:, 5:6], cache=cache)
    expected = model.logits(log_mel[kept], ids[kept])[:, 5:6]
    _assert_close(last, expected.repeat_interleave(2, 0))


def test_kv_cache_too_small_is_a_value_error(model: Whisper) -> None:
    log_mel, ids = _inputs()
    cache = model.new_cache(model.encode(log_mel), max_tokens=5)
    model.decode(ids[:, :5], cache=cache)
    with pytest.raises(ValueError, match="6 tokens do not fit a cache made for 5"):
        model.decode(ids[:, 5:6], cache=cache)


@pytest.mark.parametrize(("num_frames", "num_encoded"), [(40, 20), (39, 20), (26, 13), (1, 1)])
def test_whisper_encode_yields_half_the_frames_rounded_up(
    model: Whisper, num_frames: int, num_encoded: int
) -> None:
    log_mel, _ = _inputs(num_frames=num_frames)
    assert model.encode(log_mel).shape == (3, num_encoded, SMALL.d_model)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 8, 41), "41 frames, the encoder takes 1 to 40"),
        ((2, 8, 0), "0 frames"),
        ((2, 7, 40), r"expected \(batch, 8, frames\)"),
        ((8, 40), r"expected \(batch, 8, frames\)"),
    ],
)
def test_whisper_encode_of_another_shape_is_a_value_error(
    model: Whisper, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        model.encode(torch.zeros(shape, dtype=torch.float64))


def test_whisper_with_more_tokens_than_positions_is_a_value_error(model: Whisper) -> None:
    log_mel, _ = _inputs()
    with pytest.raises(ValueError, match="17 tokens are more than the decoder's 16 positions"):
        model.logits(log_mel, torch.zeros(3, 17, dtype=torch.int64))


def test_whisper_decode_without_audio_is_a_value_error(model: Whisper) -> None:
    with pytest.raises(ValueError, match="needs the encoded audio"):
        model.decode(torch.zeros(1, 3, dtype=torch.int64))


def test_whisper_decoder_does_not_see_later_tokens(model: Whisper) -> None:
    log_mel, ids = _inputs()
    changed = ids.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % SMALL.vocab_size
    before, after = model.logits(log_mel, ids), model.logits(log_mel, changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5], after[:, 5])


def test_whisper_gradients_reach_every_trained_parameter(model: Whisper) -> None:
    log_mel, ids = _inputs()
    model.train().logits(log_mel, ids).log_softmax(-1)[..., 0].sum().backward()
    without = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert without == {"encoder.positions"}


def test_whisper_dropout_acts_only_in_training(model: Whisper) -> None:
    config = WhisperConfig(**{**vars(SMALL), "dropout": 0.5})
    dropped = Whisper(config).double()
    dropped.load_state_dict(model.state_dict())
    log_mel, ids = _inputs()
    expected = model.logits(log_mel, ids)
    assert not torch.allclose(dropped.train().logits(log_mel, ids), expected)
    assert torch.equal(dropped.eval().logits(log_mel, ids), expected)


def test_whisper_dropout_in_training_drops_encoder_inputs() -> None:
    dropped = Whisper(WhisperConfig(**{**vars(SMALL), "dropout": 0.5}))
    share = (dropped.encoder.embed(torch.randn(3, SMALL.num_mels, 40)) == 0).double().mean()
    assert 0.4 < share < 0.6  # observed 0.502


def test_whisper_reset_vocabulary_replaces_embedding_and_head(model: Whisper) -> None:
    log_mel, ids = _inputs()
    embedding = torch.randn(12, SMALL.d_model)
    model.reset_vocabulary(embedding)
    hidden = model.decoder(ids % 12, model.encode(log_mel))
    _assert_close(model.logits(log_mel, ids % 12), hidden @ embedding.double().T)
    assert model.config.vocab_size == 12
    weight = model.decoder.token_embedding.weight
    assert weight.requires_grad
    assert weight.dtype == torch.float64


def test_whisper_reset_vocabulary_copies_its_argument(model: Whisper) -> None:
    embedding = torch.randn(12, SMALL.d_model, dtype=torch.float64)
    model.reset_vocabulary(embedding)
    embedding.zero_()
    assert model.decoder.token_embedding.weight.all()


def test_whisper_reset_vocabulary_of_another_width_is_a_value_error(model: Whisper) -> None:
    with pytest.raises(ValueError, match=r"expected \(vocabulary, 24\)"):
        model.reset_vocabulary(torch.zeros(12, 23))


@pytest.mark.parametrize(
    ("scope", "num_tensors"),
    # Attention has 7 tensors (keys have no bias), feed-forward 4; decoder layers attend twice.
    [("encoder", 2 * 11), ("decoder", 2 * 18), ("encoder_decoder", 2 * 11 + 2 * 18)],
)
def test_prune_scope_matches_projections_of_its_layers(
    model: Whisper, scope: str, num_tensors: int
) -> None:
    names = [name for name, _ in model.named_parameters()]
    matched = [name for name in names if re.fullmatch(PRUNE_SCOPES[scope], name)]
    assert len(matched) == num_tensors
    assert not any("norm" in n or "conv" in n or "positions" in n or "embed" in n for n in matched)
