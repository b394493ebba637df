"""One training step: what it asks of the device, and which gradients it leaves."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models import build_model, build_task
from models.training.optim import Optimizer
from models.training.tasks import Task

SEQ2SEQ = {
    "start_ids": [1],
    "eos_id": 2,
    "max_tokens": 20,
    "suppress_ids": [],
    "begin_suppress_ids": [],
}
TARGETS = [[3, 4, 4], [5]]


def _ctc_task() -> Task:
    hidden = {"mask_time_prob": 0.5, "mask_channel_prob": 0.5, "layer_drop": 0.3}
    model = build_model("w2v2-demo", vocab_size=9, **hidden).train()
    model.feature_encoder.requires_grad_(False)
    return build_task(model, {"blank_id": 0})


def _seq2seq_task() -> Task:
    return build_task(build_model("whisper-demo").train(), SEQ2SEQ)


def _optimizer(task: Task) -> Optimizer:
    return Optimizer(task.model, lr=1e-3, head_lr=1e-3, head=(), steps=10)


class _UnfusedAdamW(torch.optim.AdamW):
    """The fused kernel knows real devices only."""

    def __init__(self, *args: Any, fused: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)

    def step(self, closure: Any = None) -> None:
        del self.found_inf
        super().step(closure)


@pytest.mark.parametrize(
    ("build", "inputs"),
    [
        pytest.param(_ctc_task, [torch.ones(50, 96), torch.ones(40, 96)], id="w2v2"),
        pytest.param(_ctc_task, [torch.ones(5000), torch.ones(4000)], id="w2v2-waveforms"),
        pytest.param(_seq2seq_task, [torch.ones(80, 300)] * 2, id="whisper"),
    ],
)
def test_step_never_asks_the_device_for_a_value(
    monkeypatch: pytest.MonkeyPatch, build: Any, inputs: list[Tensor]
) -> None:
    """On a device without values whatever asks for one raises."""
    monkeypatch.setattr(torch.optim, "AdamW", _UnfusedAdamW)
    monkeypatch.setattr(F, "ctc_loss", lambda log_probs, *args, **kwargs: log_probs.sum())
    task = build()
    task.model.to("meta")
    optimizer = _optimizer(task)
    for step in range(2):
        loss = task.loss(inputs, TARGETS)
        optimizer.backward(loss)
        optimizer.step(step, loss.detach())
    assert loss.device.type == "meta"
    with pytest.raises((RuntimeError, NotImplementedError)):
        optimizer.check()


def test_skipped_layer_has_gradient_zero_and_moves_by_momentum() -> None:
    task = _ctc_task()
    optimizer = _optimizer(task)
    trained = [name for name, p in task.model.named_parameters() if p.requires_grad]
    name = "encoder.layers.0.ffn.fc1.weight"
    weight = task.model.get_parameter(name)
    inputs = [torch.randn(50, 96), torch.randn(40, 96)]

    def step(number: int, layer_drop: float) -> Tensor:
        task.model.config = replace(task.model.config, layer_drop=layer_drop)
        before = weight.detach().clone()
        loss = task.loss(inputs, TARGETS)
        optimizer.backward(loss)
        gradients = dict(zip(trained, optimizer.gradients.views, strict=True))
        assert bool(gradients[name].any()) == (layer_drop == 0.0)
        optimizer.step(number, loss.detach())
        return weight.detach() - before

    assert step(5, layer_drop=0.0).any()
    assert step(6, layer_drop=1.0).any()
