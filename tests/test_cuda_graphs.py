"""Steps from captured graphs against plain ones.

Without a GPU a capture is stood in for by the captured function itself, so all is held but CUDA's
own part: shapes, padding, draws, gradients, and what happens where a capture fails.
"""

import gc
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import train
from models import build_model, build_task, cuda_graphs
from models.cuda_graphs import GraphedLogits
from models.device import use_device
from models.draw import Draw
from models.spec_augment import SpecAugment
from models.training import graphed_models, tasks
from models.training.optim import FlatGradients, trained_parameters
from models.training.tasks import CTCTask, Seq2SeqTask, Task

SEQ2SEQ = {
    "start_ids": [1, 3],
    "eos_id": 2,
    "max_tokens": 20,
    "suppress_ids": [],
    "begin_suppress_ids": [],
}
TARGETS = [[3, 4, 4], [5], [7, 8]]
ALL = [[0, 1, 2]]
DTYPES = {"cpu": torch.float64, "cuda": torch.float32}
STEPS = 4


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[Callable]:
    """What was captured, by a stand-in that runs it once and again at each replay."""
    captured: list[Callable] = []

    def capture(function: Callable[[], None], *place: Any) -> Callable[[], None]:
        function()
        captured.append(function)
        return torch.enable_grad()(function)  # autograd's functions turn gradients off

    monkeypatch.setattr(cuda_graphs, "warm_up", lambda function, stream: function())
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


BOTH = pytest.mark.parametrize("build", [_ctc, _seq2seq])


def _prepare(task: Task, inputs: list[Tensor], batches: list[list[int]] = ALL) -> FlatGradients:
    gradients = FlatGradients(list(trained_parameters(task.model).values()))
    task.capture(inputs, TARGETS, batches)
    return gradients


def _steps(task: Task, inputs: list[Tensor]) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Yield loss and gradients of some steps on one batch."""
    gradients = _prepare(task, inputs)
    torch.manual_seed(1)
    for _ in range(STEPS):
        gradients.vector.zero_()
        loss = task.loss(inputs, TARGETS)
        loss.backward()
        gradients.check()
        found = {name: p.grad.clone() for name, p in trained_parameters(task.model).items()}
        yield loss.detach(), found


@BOTH
def test_replayed_steps_have_the_losses_and_gradients_of_plain_ones(
    randomise, captures: list, build: Callable
) -> None:
    plain, replayed = (list(_steps(*build(randomise, fast))) for fast in (False, True))
    assert len(captures) == 2  # one shape, forward and backward
    torch.testing.assert_close(replayed, plain, rtol=1e-12, atol=1e-12)
    assert any(gradient.any() for gradient in replayed[0][1].values())


@BOTH
def test_gradients_of_replays_add_up_over_batches(
    randomise, captures: list, build: Callable
) -> None:
    task, inputs = build(randomise, fast=True)
    gradients = _prepare(task, inputs)
    assert not gradients.vector.any()
    sums = []
    for count in (1, 2):
        for _ in range(count):
            task.loss(inputs, TARGETS, Draw(5, range(3))).backward()
        sums.append(gradients.vector.clone())
        gradients.vector.zero_()
    assert sums[0].any()
    torch.testing.assert_close(sums[1], 2 * sums[0], rtol=0, atol=1e-12)


def test_batches_of_several_contexts_are_captured_once_each(randomise, captures: list) -> None:
    (task, inputs), (plain, _) = _seq2seq(randomise, True), _seq2seq(randomise, False)
    several = [each[:, :40] for each in inputs] + inputs
    task.model.requires_grad_(True)
    FlatGradients(list(trained_parameters(task.model).values()))
    task.capture(several, [*TARGETS, *TARGETS], [[0, 1, 2], [3, 4, 5], [1]])
    assert len(captures) == 2 * 2  # forward and backward
    for batch in ([0, 1, 2], [3, 4, 5], [1]):
        cut, draw = [several[i] for i in batch], Draw(batch[0], range(len(batch)))
        targets = [TARGETS[i % 3] for i in batch]
        loss = task.loss(cut, targets, draw)
        torch.testing.assert_close(loss, plain.loss(cut, targets, draw), rtol=0, atol=1e-12)


@BOTH
def test_batch_of_no_captured_shape_is_computed_plainly(
    randomise, captures: list, build: Callable
) -> None:
    (task, inputs), (plain, _) = build(randomise, True), build(randomise, False)
    _prepare(task, inputs, [[0], [1]])
    task.model.zero_grad()  # replays would miss it
    draw = Draw(3, range(3))
    loss = task.loss(inputs, TARGETS, draw)
    torch.testing.assert_close(loss, plain.loss(inputs, TARGETS, draw), rtol=0, atol=1e-12)


def test_scoring_between_steps_is_not_replayed(randomise, captures: list) -> None:
    task, inputs = _ctc(randomise, fast=True)
    _prepare(task, inputs)
    replay, calls = task._graphed, []
    task._graphed = lambda *given: calls.append(given) or replay(*given)
    task.loss(inputs, TARGETS)
    expected = _ctc(randomise, fast=False)[0].model.eval()
    task.model.eval()
    assert task.search(inputs) == CTCTask(expected, 0, fast=False).search(inputs)
    assert len(calls) == 1


def test_waveforms_are_not_captured(randomise, captures: list) -> None:
    task, _ = _ctc(randomise, fast=True)
    _prepare(task, [torch.randn(9000, dtype=torch.float64) for _ in TARGETS])
    assert not captures


@BOTH
def test_two_forward_passes_before_a_backward_pass_are_refused(
    randomise, captures: list, build: Callable
) -> None:
    task, inputs = build(randomise, True)
    _prepare(task, inputs)
    losses = [task.loss(inputs, TARGETS) for _ in range(2)]
    with pytest.raises(RuntimeError, match="two forward passes came before a backward pass"):
        sum(losses).backward()


def test_replay_that_would_miss_a_gradient_is_refused(randomise, captures: list) -> None:
    task, inputs = _ctc(randomise, True)
    _prepare(task, inputs)
    task.model.zero_grad()
    with pytest.raises(RuntimeError, match="gradients have moved since a step was captured"):
        task.loss(inputs, TARGETS)


def test_capture_without_gradients_to_add_to_is_refused(captures: list) -> None:
    with pytest.raises(ValueError, match="give every parameter a gradient"):
        GraphedLogits(nn.Linear(3, 2)).capture([[torch.randn(4, 3)]])


FAILURES = {
    "out of memory while a step was captured: lower --batch-seconds": torch.OutOfMemoryError("x"),
    r"\(operation not permitted\): give --no-fast": RuntimeError("operation not permitted\nwhen"),
}


@pytest.mark.parametrize("message", FAILURES)
def test_capture_that_fails_is_an_error_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, captures: list, message: str
) -> None:
    def fail(*given: Any) -> None:
        raise FAILURES[message]

    monkeypatch.setattr(cuda_graphs, "capture", fail)
    module = nn.Linear(3, 2)
    FlatGradients(list(module.parameters()))
    with pytest.raises(ValueError, match=message):
        GraphedLogits(module).capture([[torch.randn(4, 3)]])
    assert gc.isenabled()


def test_a_capture_leaves_no_autograd_graph_alive(captures: list) -> None:
    module = nn.Linear(3, 2)
    replay = cuda_graphs._Replay(module, [torch.randn(4, 3)], None, None)
    assert len(captures) == 2
    assert replay.logits.grad_fn is None


@pytest.mark.parametrize("model", ["w2v2-demo", "whisper-demo"])
def test_run_on_replayed_steps_has_the_losses_of_a_plain_run(
    small_corpus: Path, tmp_path: Path, captures: list, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    losses = []
    for name, flags in (("replayed", ()), ("plain", ("--no-fast",))):
        argv = ["--model", model, "--data", str(small_corpus), "--out", str(tmp_path / name)]
        argv += ["--device", "cpu", "--method", "omp", "--sparsity", "0.5", "--dropout", "0"]
        argv += ["--steps", "4", "--log-every", "1", "--batch-seconds", "8", *flags]
        argv += ["--freeze", "feature_encoder"] if model == "w2v2-demo" else []
        assert train.main(argv) == 0
        events = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        losses.append([each["loss"] for each in events if each["event"] == "train"])
    assert captures
    assert len(losses[0]) == 8  # two stages
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@contextmanager
def _cuda_autocast(dtype: torch.dtype) -> Iterator[None]:
    """What torch.autocast does on CUDA, which it does not do where there is none."""
    torch.set_autocast_dtype("cuda", dtype)
    torch.set_autocast_enabled("cuda", dtype != torch.float32)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.clear_autocast_cache()


def _as_cuda(module: nn.Module) -> None:
    """Replace what a module holds by tensors of a CUDA device that have no values."""
    for owner in list(module.modules()):
        for name, parameter in list(owner.named_parameters(recurse=False)):
            held = nn.Parameter(torch.empty(parameter.shape, device="cuda"))
            setattr(owner, name, held.requires_grad_(parameter.requires_grad))
        for name, buffer in list(owner.named_buffers(recurse=False)):
            owner.register_buffer(name, torch.empty(buffer.shape, device="cuda"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@BOTH
def test_what_is_captured_runs_on_cuda_tensors_without_values(
    randomise, captures: list, monkeypatch: pytest.MonkeyPatch, build: Callable, dtype: torch.dtype
) -> None:
    """Shapes, types and devices are CUDA's own; there are no values, so nothing may ask for one.

    The forward pass: autograd's engine wants a driver.
    """
    task, inputs = build(randomise, True)
    logits: list[Tensor] = []

    def replay(self: Any, module: nn.Module, examples: list, *place: Any) -> None:
        with _cuda_autocast(dtype):
            logits.append(module(*examples))

    monkeypatch.setattr(cuda_graphs._Replay, "__init__", replay)
    monkeypatch.setattr(cuda_graphs, "capturing", lambda *given: nullcontext())
    monkeypatch.setattr(cuda_graphs, "stream_for", lambda *given: None)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(graphed_models, "send", lambda tensor, device: tensor.to(device))
    with FakeTensorMode(allow_non_fake_inputs=True):
        _as_cuda(task.model)
        task = _rebuilt(task)
        _prepare(task, inputs)
    assert [each.device.type for each in logits] == ["cuda"]
    assert logits[0].dtype == dtype
    assert len(logits[0]) == len(TARGETS)


def _rebuilt(task: Task) -> Task:
    """Build a task anew for a model that has moved."""
    if isinstance(task, Seq2SeqTask):
        return build_task(task.model, SEQ2SEQ, "fp32", True, SpecAugment(0.3, 0.3))
    return CTCTask(task.model, 0, "fp32", True)


# On a GPU


@pytest.fixture
def on_cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    use_device(torch.device("cuda:0"))


@pytest.mark.gpu
@BOTH
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_replayed_steps_on_cuda_have_the_losses_and_gradients_of_plain_ones(
    on_cuda: None, randomise, build: Callable, precision: str
) -> None:
    plain, replayed = (
        list(_steps(*build(randomise, fast, "cuda", precision))) for fast in (False, True)
    )
    tolerance = 1e-3 if precision == "fp32" else 3e-2  # relative, of each parameter's norm
    for (loss, grads), (expected, wanted) in zip(replayed, plain, strict=True):
        torch.testing.assert_close(loss, expected, rtol=tolerance, atol=1e-3)
        for name, gradient in wanted.items():
            difference = (grads[name] - gradient).norm()
            assert difference <= tolerance * gradient.norm() + 1e-4, name


@pytest.mark.gpu
@BOTH
def test_loss_of_a_plain_step_that_is_kept_alive_spoils_no_capture_on_cuda(
    on_cuda: None, randomise, build: Callable
) -> None:
    task, inputs = build(randomise, True, "cuda")
    gradients = FlatGradients(list(trained_parameters(task.model).values()))
    kept = task.loss(inputs, TARGETS)  # nothing is captured yet
    kept.backward()
    task.capture(inputs, TARGETS, ALL)
    task.loss(inputs, TARGETS).backward()
    assert gradients.vector.any()
    assert torch.isfinite(kept)


@pytest.mark.gpu
def test_two_forward_passes_on_cuda_are_refused(on_cuda: None, randomise) -> None:
    task, inputs = _ctc(randomise, True, "cuda")
    _prepare(task, inputs)
    losses = [task.loss(inputs, TARGETS) for _ in range(2)]
    with pytest.raises(RuntimeError, match="two forward passes"):
        sum(losses).backward()


class _Asks(nn.Module):
    """Asks the device for a value, which no capture allows."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * x.sum().item()


@pytest.mark.gpu
def test_capture_that_cuda_refuses_leaves_stream_and_random_state_as_they_were(
    on_cuda: None,
) -> None:
    module = _Asks().cuda()
    FlatGradients(list(module.parameters()))
    stream, state = torch.cuda.current_stream(), torch.cuda.get_rng_state()
    with pytest.raises(ValueError, match="give --no-fast"):
        GraphedLogits(module).capture([[torch.randn(4, 3, device="cuda")]])
    assert torch.cuda.current_stream() == stream
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert F.dropout(torch.ones(1000, device="cuda"), 0.5).mean() > 0.5


@pytest.mark.gpu
def test_a_capture_leaves_the_random_state_as_it_was_on_cuda(on_cuda: None, randomise) -> None:
    task, inputs = _ctc(randomise, True, "cuda")
    state = torch.cuda.get_rng_state()
    _prepare(task, inputs)
    assert torch.equal(torch.cuda.get_rng_state(), state)


@pytest.mark.gpu
@pytest.mark.parametrize("frames", [64, 160, 192, 320])
def test_gradients_of_masked_attention_are_finite_on_cuda(on_cuda: None, frames: int) -> None:
    torch.manual_seed(0)
    shape = (8, 12, frames, 64)
    queries, keys, values = (
        torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(3)
    )
    queries = (queries - 40 * keys.mean(2, keepdim=True)).requires_grad_()  # scores far below 0
    mask = torch.ones(8, 1, 1, frames, device="cuda", dtype=torch.bool)
    F.scaled_dot_product_attention(8 * queries, keys, values, mask).float().sum().backward()
    assert torch.isfinite(queries.grad).all()


@pytest.mark.gpu
@BOTH
def test_steps_on_a_second_device_are_those_of_the_first(
    on_cuda: None, randomise, build: Callable
) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    losses = []
    for index in (0, 1):
        use_device(torch.device("cuda", index))
        task, inputs = build(randomise, True, "cpu")
        task.model.to(f"cuda:{index}", torch.float32)
        moved = [each.to(f"cuda:{index}", torch.float32) for each in inputs]
        task = _rebuilt(task)
        losses.append([loss.cpu() for loss, _ in _steps(task, moved)])
    use_device(torch.device("cuda:0"))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=1e-3)


def replace_task(task: Task) -> Task:
    """Build a task anew for a model that has moved."""
    if isinstance(task, Seq2SeqTask):
        return build_task(task.model, SEQ2SEQ, "fp32", True, SpecAugment(0.3, 0.3))
    return CTCTask(task.model, 0, "fp32", True)


def test_flat_gradients_are_what_a_plain_backward_pass_gives(randomise) -> None:
    task, inputs = _ctc(randomise, False)
    draw = Draw(2, range(3))
    task.loss(inputs, TARGETS, draw).backward()
    named = trained_parameters(task.model)
    plain = {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in named.items()
    }
    gradients = FlatGradients(list(named.values()))
    task.loss(inputs, TARGETS, replace(draw)).backward()
    gradients.check()
    for (name, expected), view in zip(plain.items(), gradients.views, strict=True):
        assert torch.equal(view, expected), name
