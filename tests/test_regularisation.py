"""Dropout, training masks and label smoothing: from flags and recipes to the model and its loss."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from models import FAMILIES, PRESETS, Family, build_model, build_task
from models.checkpoint import Checkpoint
from models.dropout import Dropout
from models.initial import set_regularisation
from models.spec_augment import SpecAugment
from models.training.recipes import FitOptions, recipe_of

SEQ2SEQ = {
    "start_ids": [1],
    "eos_id": 2,
    "max_tokens": 20,
    "suppress_ids": [],
    "begin_suppress_ids": [],
}
TARGETS = [[3, 4, 4], [5]]


def _checkpoint(name: str, **options: Any) -> Checkpoint:
    checkpoint = Checkpoint(build_model(name))
    set_regularisation(checkpoint, recipe_of(name, "phone", FitOptions(**options)))
    return checkpoint


@pytest.mark.parametrize("name", ["w2v2-demo", "whisper-demo"])
def test_dropout_is_that_of_every_dropout_in_the_model(name: str) -> None:
    model = _checkpoint(name, dropout=0.3).model
    modules = [module.p for module in model.modules() if isinstance(module, Dropout)]
    attention: list[Any] = [m for m in model.modules() if hasattr(m, "q_proj")]
    assert {*modules, *(module.dropout for module in attention)} == {0.3}
    config = dataclasses.asdict(model.config)
    assert {config[key] for key in config if key.endswith("dropout")} == {0.3}


@pytest.mark.parametrize("name", ["w2v2-demo", "whisper-demo"])
def test_without_flags_the_model_is_the_presets_with_its_weights(name: str) -> None:
    before = build_model(name)
    checkpoint = Checkpoint(before)
    state = torch.get_rng_state()
    set_regularisation(checkpoint, recipe_of(name, "phone", FitOptions()))
    assert checkpoint.config == before.config
    weights = checkpoint.model.state_dict()
    assert all(torch.equal(weights[key], value) for key, value in before.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_masks_are_wav2vec2s_config_and_whispers_inputs() -> None:
    config = _checkpoint("w2v2-demo", mask_time=0.4, mask_channel=0.3).config
    assert (config.mask_time_prob, config.mask_channel_prob) == (0.4, 0.3)
    recipe = recipe_of("whisper-demo", "phone", FitOptions(mask_time=0.12, mask_channel=0.2))
    assert recipe.spec_augment == SpecAugment(frames=0.12, mels=0.2)


def test_a_recipe_can_set_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {"mask_time": 0.12, "mask_channel": 0.2, "dropout": 0.1, "label_smoothing": 0.05}
    recipe = dataclasses.replace(FAMILIES["whisper"].recipe, **chosen)
    demo = dataclasses.replace(PRESETS["whisper-demo"], recipe=recipe)
    monkeypatch.setitem(PRESETS, "whisper-demo", demo)
    assert recipe_of("whisper-demo", "phone", FitOptions()) == recipe
    assert recipe_of("whisper-demo", "phone", FitOptions(dropout=0.0)).dropout == 0.0


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"mask_time": 1.5}, "--mask-time is 1.5: give a share from 0 to 1$"),
        ({"mask_channel": -0.1}, "--mask-channel is -0.1"),
        ({"dropout": 1.0}, "--dropout is 1: give a share from 0 to less than 1"),
        ({"label_smoothing": float("nan")}, "--label-smoothing is nan"),
    ],
)
@pytest.mark.parametrize("name", ["w2v2-demo", "whisper-demo"])
def test_shares_out_of_range_are_refused(name: str, options: dict[str, float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        recipe_of(name, "phone", FitOptions(**options))


@pytest.mark.parametrize("family", [f for f in FAMILIES.values() if not f.seq2seq], ids=str)
def test_label_smoothing_is_refused_for_ctc(family: Family) -> None:
    name = next(iter(family.presets))
    with pytest.raises(ValueError, match=f"--label-smoothing is not for {family.name}"):
        recipe_of(name, "phone", FitOptions(label_smoothing=0.1))


def _loss(randomise: Any, train: bool, **options: Any) -> tuple[Tensor, Tensor]:
    """Return the loss of a task and log-probabilities (tokens, V) of what it is the loss of."""
    model = randomise(build_model("whisper-demo", text_positions=32), 0.2).double().train(train)
    inputs = [torch.randn(80, 60, dtype=torch.float64) for _ in TARGETS]
    loss = build_task(model, SEQ2SEQ, **options).loss(inputs, TARGETS)
    ids = torch.tensor([[1, 3, 4, 4], [1, 5, 0, 0]])
    log_probs = model.logits(torch.stack(inputs), ids).log_softmax(-1)
    return loss.detach(), torch.cat([log_probs[0], log_probs[1, :2]]).detach()


def test_label_smoothing_mixes_each_target_with_all_tokens(randomise: Any) -> None:
    loss, log_probs = _loss(randomise, train=True, label_smoothing=0.1)
    targets = torch.tensor([3, 4, 4, 2, 5, 2])
    of_targets = -log_probs[torch.arange(6), targets]
    expected = (0.9 * of_targets - 0.1 * log_probs.mean(1)).sum()
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-10)


def test_label_smoothing_and_masks_act_only_in_training(randomise: Any) -> None:
    masks = SpecAugment(0.5, 0.5)
    loss, log_probs = _loss(randomise, train=False, label_smoothing=0.1, spec_augment=masks)
    targets = torch.tensor([3, 4, 4, 2, 5, 2])
    expected = -log_probs[torch.arange(6), targets].sum()
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-10)


def test_masks_change_the_loss_in_training(randomise: Any) -> None:
    plain, _ = _loss(randomise, train=True)
    torch.manual_seed(0)
    masked, _ = _loss(randomise, train=True, spec_augment=SpecAugment(0.5, 0.5))
    assert not torch.isclose(plain, masked)
