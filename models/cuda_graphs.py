"""Replay CUDA graphs, captured once for each shape, in place of launching every kernel of a step.

A step of a small model is bound by the launches of its thousands of kernels; a replay is one. What
is captured has to keep its shapes and its memory, and must not ask the device for a value, so
batches are padded to one of a few shapes and every draw is an input.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from tqdm import tqdm

WARM_UP = 2  # runs before a capture: libraries choose kernels and take workspace
MOST_SHAPES = 64
TOLERANCE = 2e-2  # relative, of norms: a replay may choose other kernels than a plain run in bf16


def warm_up(function: Callable[[], None]) -> None:
    """Run ``function`` on a stream of its own, as a capture will."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            function()
    torch.cuda.current_stream().wait_stream(stream)


def capture(function: Callable[[], None], pool: Any = None) -> Callable[[], None]:
    """Return what does ``function`` again in the same memory; nothing is computed now."""
    graph = torch.cuda.CUDAGraph()
    # Other threads, NCCL's watchdog among them, may go on asking the device meanwhile.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        function()
    return graph.replay


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

    A shape is computed plainly when it is first met and captured when it is met again. Then the
    replay is held against a plain run, logits and gradients; where it differs, or can't be
    captured, a line on stderr says so and all that follows is computed plainly.

    Gradients of replays are added up in memory that is kept; a parameter that has another gradient
    by then, or none, gets that memory back with what it holds.

    Args:
        module: Any module; its parameters with ``requires_grad`` get gradients, its inputs none.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._params = [p for p in module.parameters() if p.requires_grad]
        self._gradients: list[Tensor] = []
        self._replays: dict[tuple[torch.Size, ...], _Replay | None] = {}
        self._pool: Any = None
        self._works = True

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return the module's logits of ``inputs``, on one device, with a graph for autograd."""
        replay = self._find(inputs) if self._works else None
        if replay is None:
            logits: Tensor = self.module(*inputs)
            return logits
        self._reclaim_gradients()
        return _run(replay, inputs)

    def _find(self, inputs: Sequence[Tensor]) -> "_Replay | None":
        key = tuple(tensor.shape for tensor in inputs)
        if key not in self._replays:
            if len(self._replays) < MOST_SHAPES:
                self._replays[key] = None
            return None
        if self._replays[key] is None:
            self._replays[key] = self._capture(inputs)
        return self._replays[key]

    def _capture(self, inputs: Sequence[Tensor]) -> "_Replay | None":
        if not self._gradients:
            self._gradients = [torch.zeros_like(parameter) for parameter in self._params]
        self._reclaim_gradients()
        try:
            if self._pool is None and inputs[0].device.type == "cuda":
                self._pool = torch.cuda.graph_pool_handle()
            replay = _Replay(self.module, inputs, self._pool)
            problem = self._difference(replay, inputs)
        except RuntimeError as error:
            problem = str(error).split("\n")[0]
        if problem is None:
            return replay
        self._works = False
        tqdm.write(f"no CUDA graphs, steps are computed plainly: {problem}", file=sys.stderr)
        return None

    def _reclaim_gradients(self) -> None:
        """Make the parameters' gradients, as they are, those that replays add to."""
        pairs = list(zip(self._params, self._gradients, strict=True))
        if absent := [held for parameter, held in pairs if parameter.grad is None]:
            torch._foreach_zero_(absent)
        for parameter, held in pairs:
            if parameter.grad is not None and parameter.grad is not held:
                held.copy_(parameter.grad)
            parameter.grad = held

    def _difference(self, replay: "_Replay", inputs: Sequence[Tensor]) -> str | None:
        """Run both ways with the same random numbers; say what differs. Gradients stay."""
        kept = [held.clone() for held in self._gradients]
        state = torch.cuda.get_rng_state() if inputs[0].device.type == "cuda" else None
        found: list[tuple[Tensor, Tensor]] = []
        for run in (lambda: self.module(*inputs), lambda: _run(replay, inputs)):
            if state is not None:
                torch.cuda.set_rng_state(state)
            torch._foreach_zero_(self._gradients)
            logits = run()
            with torch.autocast(logits.device.type, enabled=False):
                logits.square().mean().backward()
            found.append(
                (logits.detach().clone(), torch.cat([held.flatten() for held in self._gradients]))
            )
        torch._foreach_copy_(self._gradients, kept)
        for what, plain, replayed in zip(("logits", "gradients"), *found, strict=True):
            difference = (plain - replayed).norm().item()
            size = plain.norm().item()
            if not difference <= TOLERANCE * size:
                return f"replayed {what} are {difference:.2g} from plain ones of {size:.2g}"
        return None


class _Replay:
    """Forward and backward pass of a module on inputs of one shape, in memory of their own."""

    def __init__(self, module: nn.Module, inputs: Sequence[Tensor], pool: Any) -> None:
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
        warm_up(both)
        self.forward = capture(forward, pool)
        self.backward = capture(backward, pool)
        self.logits = self.logits.detach()


def _run(replay: _Replay, inputs: Sequence[Tensor]) -> Tensor:
    trigger = torch.zeros((), requires_grad=True)  # so that autograd visits the backward pass
    logits: Tensor = _ReplayFunction.apply(trigger, replay, *inputs)
    return logits


class _ReplayFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, trigger: Tensor, replay: _Replay, *inputs: Tensor) -> Tensor:
        for held, given in zip(replay.inputs, inputs, strict=True):
            held.copy_(given, non_blocking=True)
        replay.forward()
        ctx.replay = replay
        return replay.logits.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[None, ...]:
        ctx.replay.upstream.copy_(upstream)
        ctx.replay.backward()
        return (None,) * (2 + len(ctx.replay.inputs))
