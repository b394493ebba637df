"""Ranking and counting as a GPU does it, all weights at once, against the CPU's chunks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pruning import masks as masks_module
from pruning.masks import count_zeros, largest_dropped, magnitude_masks, mask_overlap
from pruning.schedules import MethodOptions, build_schedule
from tests.weights import dtypes, flat, param_dicts, sparsities, tensors, whisper_params


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable], Any]:
    """A function that calls another one with all weights taken at once."""

    def call(function: Callable) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(masks_module, "_likes_chunks", lambda tensor: False)
            return function()

    return call


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(param_dicts, sparsities, dtypes, st.sampled_from(["global", "layerwise"]))
def test_masks_made_at_once_are_those_made_in_chunks(
    as_on_a_gpu, params: dict, sparsity: float, dtype: torch.dtype, granularity: str
) -> None:
    weights = tensors(params, dtype)

    def masks() -> Tensor:
        return flat(magnitude_masks(weights, sparsity, granularity))

    assert torch.equal(as_on_a_gpu(masks), masks())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(param_dicts, sparsities, sparsities)
def test_what_is_counted_at_once_is_what_is_counted_in_chunks(
    as_on_a_gpu, params: dict, one: float, other: float
) -> None:
    weights = tensors(params)
    first, second = magnitude_masks(weights, one), magnitude_masks(weights, other)

    def counts() -> tuple:
        overlap = mask_overlap(first, second)
        return overlap, largest_dropped(weights, first), count_zeros(weights)

    assert as_on_a_gpu(counts) == counts()


class _CountReads(TorchDispatchMode):
    """Counts how often the host asks for values of a tensor, for which a device has to stop."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.reads = 0
        tolist = Tensor.tolist  # which on a CPU goes past the dispatcher

        def counted(tensor: Tensor) -> list:
            self.reads += 1
            return tolist(tensor)

        monkeypatch.setattr(Tensor, "tolist", counted)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        aten = torch.ops.aten
        self.reads += func.overloadpacket in (aten._local_scalar_dense, aten.nonzero, aten.bincount)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("num_tensors", [3, 30])
def test_reprune_at_once_reads_five_times_whatever_the_number_of_tensors(
    as_on_a_gpu, monkeypatch: pytest.MonkeyPatch, num_tensors: int
) -> None:
    params = {str(i): torch.randn(50, 4) for i in range(num_tensors)}
    schedule = build_schedule("parp", MethodOptions(sparsity=0.6, prune_every=1))
    schedule.start(params, num_steps=2)
    with _CountReads(monkeypatch) as counted:
        event = as_on_a_gpu(lambda: schedule.after_step(params, 1))
    assert event.sparsity == 0.6
    assert counted.reads == 5  # is there a NaN, what the cut is worth, two overlaps, threshold


@pytest.mark.gpu
def test_magnitude_masks_are_the_same_on_cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    params = whisper_params()
    params["ties"] = torch.randint(-3, 4, (100_000,)) * 0.03
    on_cuda = magnitude_masks({name: p.cuda() for name, p in params.items()}, 0.6)
    assert torch.equal(flat(on_cuda).cpu(), flat(magnitude_masks(params, 0.6)))
