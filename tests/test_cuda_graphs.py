"""Steps from captured graphs against plain ones.

Without a GPU a capture is stood in for by the captured function itself, so all is held but CUDA's
own part: shapes, padding, draws, gradients, and what happens where a capture fails.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models import build_model, build_task, cuda_graphs
from models.cuda_graphs import GraphedLogits
from models.draw import Draw
from models.spec_augment import SpecAugment
from models.training import tasks
from models.training.tasks import CTCTask, Seq2SeqTask, Task

SEQ2SEQ = {
    "start_ids": [1, 3],
    "eos_id": 2,
    "max_tokens": 20,
    "suppress_ids": [],
    "begin_suppress_ids": [],
}
TARGETS = [[3, 4, 4], [5], [7, 8]]
DTYPES = {"cpu": torch.float64, "cuda": torch.float32}
BATCHES = 4  # of a shape: plain, captured, replayed, replayed


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[Callable]:
    """What was captured, by a stand-in that runs it once and again at each replay."""
    captured: list[Callable] = []

    def capture(function: Callable[[], None], pool: Any = None) -> Callable[[], None]:
        function()
        captured.append(function)
        return torch.enable_grad()(function)  # autograd's functions turn gradients off

    monkeypatch.setattr(cuda_graphs, "warm_up", lambda function: function())
    monkeypatch.setattr(cuda_graphs, "capture", capture)
    monkeypatch.setattr(tasks, "_has_graphs", lambda model: True)
    return captured


def _ctc(
    randomise: Any, fast: bool, device: str = "cpu", precision: str = "fp32"
) -> tuple[Task, list[Tensor]]:
    hidden = {"mask_time_prob": 0.5, "mask_time_length": 3, "mask_channel_prob": 0.5}
    torch.manual_seed(0)
    model = randomise(build_model("w2v2-demo", vocab_size=9, layer_drop=0.4, **hidden), 0.05)
    model.feature_encoder.requires_grad_(False)
    model.to(device, DTYPES[device]).train()
    features = [torch.randn(n, 96).to(device, DTYPES[device]) for n in (50, 41, 38)]
    return CTCTask(model, 0, precision, fast), features


def _seq2seq(
    randomise: Any, fast: bool, device: str = "cpu", precision: str = "fp32"
) -> tuple[Task, list[Tensor]]:
    torch.manual_seed(0)
    model = randomise(build_model("whisper-demo", text_positions=32), 0.05)
    model.to(device, DTYPES[device]).train()
    log_mels = [torch.randn(80, 60).to(device, DTYPES[device]) for _ in range(3)]
    return build_task(model, SEQ2SEQ, precision, fast, SpecAugment(0.3, 0.3)), log_mels


@pytest.mark.parametrize("build", [_ctc, _seq2seq])
def test_replayed_steps_have_the_losses_and_gradients_of_plain_ones(
    randomise, captures: list, build: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    results = []
    for fast in (False, True):
        task, inputs = build(randomise, fast)
        torch.manual_seed(1)
        losses, grads = [], []
        for _ in range(BATCHES):
            task.model.zero_grad()
            loss = task.loss(inputs, TARGETS)
            loss.backward()
            losses.append(loss.detach())
            grads.append({name: _gradient(p) for name, p in task.model.named_parameters()})
        results.append((losses, grads))
    assert len(captures) == 2  # one shape, forward and backward
    assert "no CUDA graphs" not in capsys.readouterr().err
    (plain, plain_grads), (replayed, replayed_grads) = results
    torch.testing.assert_close(replayed, plain, rtol=0, atol=1e-10)  # observed 3e-14
    for ours, theirs in zip(replayed_grads, plain_grads, strict=True):
        for name, gradient in theirs.items():
            torch.testing.assert_close(ours[name], gradient, rtol=0, atol=1e-10, msg=name)


def _gradient(parameter: Tensor) -> Tensor:
    """A layer that was skipped has no gradient, or zeros."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()


@pytest.mark.parametrize("build", [_ctc, _seq2seq])
def test_gradients_of_replays_add_up_over_batches(
    randomise, captures: list, build: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    task, inputs = build(randomise, fast=True)
    if isinstance(task, Seq2SeqTask):
        task.spec_augment = None
    else:
        task.model.config = replace(
            task.model.config, layer_drop=0.0, mask_time_prob=0.0, mask_channel_prob=0.0
        )
    for _ in range(2):
        task.loss(inputs, TARGETS).backward()
    task.model.zero_grad()
    sums = []
    for count in (1, 2):
        for _ in range(count):
            task.loss(inputs, TARGETS).backward()
        sums.append([p.grad.clone() for p in task.model.parameters() if p.grad is not None])
        task.model.zero_grad()
    assert "no CUDA graphs" not in capsys.readouterr().err
    once, twice = sums
    assert any(gradient.any() for gradient in once)
    for one, two in zip(once, twice, strict=True):
        torch.testing.assert_close(two, 2 * one, rtol=0, atol=1e-10)


def test_batches_of_several_contexts_are_captured_once_each(
    randomise, captures: list, capsys: pytest.CaptureFixture[str]
) -> None:
    (task, inputs), (plain, _) = _seq2seq(randomise, True), _seq2seq(randomise, False)
    for step in range(2 * BATCHES):
        cut = [log_mel[:, : 40 + 20 * (step % 2)] for log_mel in inputs]
        draw = Draw(step, range(len(cut)))
        expected = plain.loss(cut, TARGETS, draw)
        torch.testing.assert_close(task.loss(cut, TARGETS, draw), expected, rtol=0, atol=1e-10)
    assert len(captures) == 2 * 2  # forward and backward
    assert "no CUDA graphs" not in capsys.readouterr().err


def test_scoring_between_steps_is_not_replayed(randomise, captures: list) -> None:
    task, inputs = _ctc(randomise, fast=True)
    for _ in range(3):
        task.loss(inputs, TARGETS).backward()
    expected = _ctc(randomise, fast=False)[0].model.eval()
    plain = CTCTask(expected, 0, fast=False)
    task.model.eval()
    assert task.search(inputs) == plain.search(inputs)
    assert len(captures) == 2


class _Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def test_capture_that_fails_leaves_plain_steps_and_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], captures: list
) -> None:
    def fail(function: Callable, pool: Any = None) -> None:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(cuda_graphs, "capture", fail)
    module, x = _Linear(), torch.randn(4, 3)
    graphed = GraphedLogits(module)
    for _ in range(3):
        assert torch.equal(graphed(x), module(x))
    assert capsys.readouterr().err == (
        "no CUDA graphs, steps are computed plainly: operation not permitted\n"
    )


@pytest.mark.parametrize("wrong", ["logits", "gradients"])
def test_replay_that_differs_from_a_plain_run_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    captures: list,
    wrong: str,
) -> None:
    module, x = _Linear(), torch.randn(4, 3)
    run = cuda_graphs._run

    def damaged(replay: Any, inputs: Any) -> Tensor:
        logits = run(replay, inputs)
        if wrong == "logits":
            return logits + 0.1
        logits.register_hook(lambda gradient: 1.1 * gradient)
        return logits

    monkeypatch.setattr(cuda_graphs, "_run", damaged)
    graphed = GraphedLogits(module)
    module.linear.weight.grad = torch.ones(2, 3)
    for _ in range(3):
        assert torch.equal(graphed(x), module(x))
    assert f"replayed {wrong} are" in capsys.readouterr().err
    assert torch.equal(module.linear.weight.grad, torch.ones(2, 3))  # what was added up before


def test_a_capture_leaves_no_autograd_graph_alive(captures: list) -> None:
    replay = cuda_graphs._Replay(nn.Linear(3, 2), [torch.randn(4, 3)], None)
    assert len(captures) == 2
    assert replay.logits.grad_fn is None


@pytest.mark.gpu
@pytest.mark.parametrize("build", [_ctc, _seq2seq])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_replayed_steps_on_cuda_have_the_losses_of_plain_ones(
    randomise, build: Callable, precision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    results = []
    for fast in (False, True):
        task, inputs = build(randomise, fast, "cuda", precision)
        torch.manual_seed(1)
        losses = []
        for _ in range(BATCHES):
            task.model.zero_grad()
            loss = task.loss(inputs, TARGETS)
            loss.backward()
            losses.append(loss.detach().cpu())
        results.append(losses)
    assert "no CUDA graphs" not in capsys.readouterr().err
    torch.testing.assert_close(results[1], results[0], rtol=2e-2, atol=1e-3)
