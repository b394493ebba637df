"""Capture CUDA graphs of a step, and replay them in place of launching every kernel of it.

A step of a small model is bound by the launches of its thousands of kernels; a replay is one. What
is captured has to keep its shapes and its memory, and must not ask the device for a value, so
batches are padded to one of a few shapes, every draw is an input, and gradients stay where they
are.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

WARM_UP = 2  # runs before a capture: libraries choose kernels and take workspace


@lru_cache
def stream_for(purpose: str, device: torch.device) -> Any:
    """Return the stream on which graphs for a purpose are captured.

    Graphs of one stream share a library's workspace, which goes with the first that is dropped.
    """
    return torch.cuda.Stream(device)


def warm_up(function: Callable[[], None], stream: Any) -> None:
    """Run ``function`` on the stream that it will be captured on."""
    before = torch.cuda.current_stream(stream.device)
    stream.wait_stream(before)
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            function()
    before.wait_stream(stream)


def capture(function: Callable[[], None], stream: Any, pool: Any = None) -> Callable[[], None]:
    """Return what does ``function`` again in the same memory; nothing is computed now."""
    graph = torch.cuda.CUDAGraph()
    # Other threads, NCCL's watchdog among them, may go on asking the device meanwhile.
    mode = "thread_local"
    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode=mode):
        function()
    return graph.replay


@contextmanager
def capturing(device: torch.device, remedy: str) -> Iterator[None]:
    """Leave stream and random state of a device as they were, however captures in here end.

    Args:
        device: What is captured on; on the CPU, where captures are stood in for, nothing is left to
            restore.
        remedy: What to do where there is too little memory.

    Raises:
        ValueError: If there is too little memory, or CUDA refuses.
    """
    is_cuda = device.type == "cuda"
    state = torch.cuda.get_rng_state(device) if is_cuda else None
    stream = torch.cuda.current_stream(device) if is_cuda else None
    allow_stale = getattr(torch.autograd.graph, "set_override_stale_capture_stream", None)
    collects = gc.isenabled()
    gc.disable()  # what it frees may be a graph or an event, which no capture survives
    if is_cuda and allow_stale:
        allow_stale(True)  # a caller may hold the loss of an earlier step
    try:
        yield
    except torch.OutOfMemoryError:
        raise ValueError(f"out of memory while a step was captured: {remedy}") from None
    except RuntimeError as error:
        said = str(error).split("\n")[0]
        raise ValueError(
            f"a step can't be captured as a CUDA graph ({said}): give --no-fast, which needs none"
        ) from error
    finally:
        if collects:
            gc.enable()
        if state is not None:
            torch.cuda.set_stream(stream)  # type: ignore[arg-type]
            torch.cuda.set_rng_state(state, device)


def uncached_autocast(device: torch.device) -> torch.autocast:
    """Return the autocast that is in force, without its cache of cast weights.

    A captured graph has to hold the casts: its replays then see weights that have changed since.
    """
    kind = device.type
    return torch.autocast(
        kind,
        torch.get_autocast_dtype(kind),
        enabled=torch.is_autocast_enabled(kind),
        cache_enabled=False,
    )


class GraphedLogits:
    """A module from tensors to logits whose forward and backward pass are replayed.

    All shapes share memory, so a backward pass has to follow its forward pass before the next one.

    Args:
        module: Any module; its parameters with ``requires_grad`` get gradients, its inputs none.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._params = [p for p in module.parameters() if p.requires_grad]
        self._gradients: list[Tensor] = []
        self._replays: dict[tuple[torch.Size, ...], _Replay] = {}
        self._forwards = 0

    def capture(self, examples: Sequence[Sequence[Tensor]]) -> None:
        """Capture a step for the shapes of each example; the largest comes first.

        The values of examples play no part. Gradients are 0 afterwards.

        Raises:
            ValueError: If a parameter has no gradient to add to, there is too little memory, or
                CUDA refuses.
        """
        gradients = [p.grad for p in self._params if p.grad is not None]
        if len(gradients) < len(self._params):
            raise ValueError("give every parameter a gradient before a step is captured")
        self._gradients = gradients
        device = examples[0][0].device
        is_cuda = device.type == "cuda"
        stream = stream_for("training", device) if is_cuda else None
        pool = torch.cuda.graph_pool_handle() if is_cuda else None

        remedy = "lower --batch-seconds (and raise --grad-accum), or give --no-fast"
        with capturing(device, remedy):
            for inputs in examples:
                self._replays[_key(inputs)] = _Replay(self.module, inputs, stream, pool)
        torch._foreach_zero_(gradients)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return the module's logits of ``inputs``, of a captured shape, with a graph for autograd.

        Raises:
            RuntimeError: If a gradient is no longer where it was, for a replay would miss it.
        """
        pairs = zip(self._params, self._gradients, strict=True)
        if any(parameter.grad is not gradient for parameter, gradient in pairs):
            raise RuntimeError("gradients have moved since a step was captured: zero them in place")
        self._forwards += 1
        trigger = torch.zeros((), requires_grad=True)  # so that autograd visits the backward pass
        replay = self._replays[_key(inputs)]
        logits: Tensor = _ReplayFunction.apply(trigger, self, replay, self._forwards, *inputs)
        return logits

    def check_is_latest(self, number: int) -> None:
        """Check that forward pass ``number`` is the latest.

        Raises:
            RuntimeError: If another has taken its memory.
        """
        if number != self._forwards:
            raise RuntimeError("two forward passes came before a backward pass: take them in turns")


def _key(inputs: Sequence[Tensor]) -> tuple[torch.Size, ...]:
    return tuple(tensor.shape for tensor in inputs)


class _Replay:
    """Forward and backward pass of a module on inputs of one shape, in memory of their own."""

    def __init__(self, module: nn.Module, inputs: Sequence[Tensor], stream: Any, pool: Any) -> None:
        self._module = module
        self.inputs = [tensor.clone() for tensor in inputs]
        self.logits = self.upstream = torch.empty(0)

        def forward() -> None:
            with uncached_autocast(self.inputs[0].device):
                self.logits = self._module(*self.inputs)

        def backward() -> None:
            with torch.autocast(self.upstream.device.type, enabled=False):
                self.logits.backward(self.upstream)

        def both() -> None:
            forward()
            self.upstream = torch.zeros_like(self.logits)  # which adds nothing to the gradients
            backward()
            self.logits = self.logits.detach()

        # An autograd graph that lives on ties what is computed later to the stream that it was made
        # on, so neither the warm-up nor the capture leaves one behind.
        warm_up(both, stream)
        self.forward = capture(forward, stream, pool)
        self.backward = capture(backward, stream, pool)
        self.logits = self.logits.detach()


class _ReplayFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        trigger: Tensor,
        graphed: GraphedLogits,
        replay: _Replay,
        number: int,
        *inputs: Tensor,
    ) -> Tensor:
        for held, given in zip(replay.inputs, inputs, strict=True):
            held.copy_(given, non_blocking=True)
        replay.forward()
        ctx.graphed, ctx.replay, ctx.number = graphed, replay, number
        return replay.logits.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[None, ...]:
        ctx.graphed.check_is_latest(ctx.number)
        ctx.replay.upstream.copy_(upstream)
        ctx.replay.backward()
        return (None,) * (4 + len(ctx.replay.inputs))
