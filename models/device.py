"""Where a run computes: the device, the precision, and the processes that share the work.

Started by ``torchrun --nproc-per-node N`` every process holds the whole model and takes every N-th
utterance of each batch; gradients are summed, so N processes take the steps that one would, but for
what dropout draws.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm


def resolve_device(name: str) -> torch.device:
    """Return the device called ``name``; ``auto`` is CUDA where there is one.

    Raises:
        ValueError: If there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        if name.split(":")[0] not in ("cpu", "cuda"):
            raise RuntimeError(f"nothing here was tried on {name}")
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError):
        why = _why_not_cuda() if name.split(":")[0] == "cuda" else ""
        raise ValueError(
            f"device {name!r} can't be used{why}: give auto, cpu, cuda or cuda:N"
        ) from None


def _why_not_cuda() -> str:
    """Say what is missing for CUDA, as far as torch knows."""
    if not torch.backends.cuda.is_built():
        return f", torch {torch.__version__} is built without CUDA (pytorch.org has those with it)"
    count = torch.cuda.device_count()
    if count:
        return f", there are {count}, cuda:0 to cuda:{count - 1}"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    seen = "" if hidden is None else f" with CUDA_VISIBLE_DEVICES={hidden}"
    return f", torch sees no CUDA device{seen} (nvidia-smi tells whether the driver does)"


def resolve_precision(name: str | None, device: torch.device) -> str:
    """Return the precision called ``name``, by default bf16 on CUDA and fp32 elsewhere.

    Says on stderr where the CPU can only emulate bf16: 1.3 instead of 75 GFLOP/s a core were seen.
    """
    emulated = name == "bf16" and device.type == "cpu" and not _has_fast_bf16()
    if emulated:
        message = "this CPU emulates bf16, many times slower than fp32: use --precision fp32"
        tqdm.write(f"warning: {message}", file=sys.stderr)
    return name or ("bf16" if device.type == "cuda" else "fp32")


def _has_fast_bf16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Bring a tensor of the CPU to a device without waiting for it."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()  # else the copy would wait for all work before it
    return tensor.to(device, non_blocking=True)


@dataclass(frozen=True)
class World:
    """The processes that share a run; World() is the only one of its run.

    Attributes:
        rank: Number of this process; 0 writes.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def writes(self) -> bool:
        """Whether this process leaves files and prints."""
        return self.rank == 0

    def share(self, items: Sequence[Any]) -> Sequence[Any]:
        """Return the part of ``items`` that this process works on."""
        return items[self.rank :: self.size]

    def gather(self, part: Sequence[Any]) -> list[Any]:
        """Return all items in their order from the parts of every process."""
        if self.size == 1:
            return list(part)
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, list(part))
        total = sum(map(len, parts))
        return [parts[i % self.size][i // self.size] for i in range(total)]

    def sum(self, values: Tensor) -> Tensor:
        """Add up a tensor over the processes, in place; return it."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process; waits for them, not for the device."""
        return any(self.gather([flag] if self.size > 1 else [])) or flag

    def wait(self) -> None:
        """Wait until every process is here."""
        self.any(False)

    def seed(self, seed: int) -> None:
        """Let dropout differ between processes; the first keeps its random state."""
        if self.rank:
            torch.manual_seed(seed + 1_000_003 * self.rank)


def use_device(device: torch.device) -> None:
    """Make a device that of every stream, graph and random state that is asked for from now on."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
        # Its attention under a mask gave NaN gradients where a row has 64 frames more than a
        # multiple of 128 (pytorch#196678), and it plans anew, 23 to 70 ms, for every shape.
        torch.backends.cuda.enable_cudnn_sdp(False)


def join_world(device: torch.device) -> World:
    """Return the processes that torchrun started, or one: NCCL between GPUs, gloo on the CPU."""
    use_device(device)
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    return World(dist.get_rank(), dist.get_world_size())


def random_state() -> dict[str, Any]:
    """Return the states of torch's global generators."""
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {"rng": torch.get_rng_state(), "cuda_rng": cuda}


def set_random_state(state: Mapping[str, Any]) -> None:
    """Set the states that :func:`random_state` returned.

    Raises:
        ValueError: If they are none, as a damaged file may have it.
    """
    try:
        torch.set_rng_state(state["rng"].cpu())
        if state["cuda_rng"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda_rng"].cpu())
    except (KeyError, AttributeError, TypeError, RuntimeError):
        raise ValueError("the state of the random numbers is damaged") from None
