"""The re-prune: ours, torch's own and two textbook ways, each on modules with weights of their own.

    python -m benchmarks.reprune NAME BLOCKS WIDTH FFN_WIDTH THREADS    # once, prints JSON

Alone in its process, because only so the peak of the memory is known.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from benchmarks.common import Contender, Report, Row, Settings, alternate
from pruning.masks import apply_masks, count_zeros, magnitude_masks
from pruning.schedules import AdjustOptions, build_schedule

SPARSITY = 0.6
ROOT = Path(__file__).parent.parent
BASE_SIZE = (12, 768, 3072)  # blocks, width, feed-forward width: 85.0 million, wav2vec2-base's
SMOKE_SIZE = (1, 64, 128)
Size = tuple[int, int, int]


def build_modules(size: Size, device: torch.device | None = None) -> nn.ModuleList:
    """Return the linear layers of so many transformer blocks, weights and biases N(0, 0.02)."""
    blocks, width, ffn_width = size
    shapes = [*[(width, width)] * 4, (width, ffn_width), (ffn_width, width)] * blocks
    modules = nn.ModuleList(nn.Linear(*shape, device=device) for shape in shapes)
    draw_weights(modules)
    return modules


@torch.no_grad()
def draw_weights(modules: nn.Module) -> None:
    """Draw every weight anew, the same each time."""
    device = next(modules.parameters()).device
    generator = torch.Generator(device).manual_seed(0)
    for parameter in modules.parameters():
        parameter.normal_(std=0.02, generator=generator)


def prune_ours(modules: nn.Module) -> None:
    """Rank with magnitude_masks and zero with apply_masks."""
    params = dict(modules.named_parameters())
    apply_masks(params, magnitude_masks(params, SPARSITY))


def prune_torch(modules: nn.Module) -> None:
    """Call torch.nn.utils.prune.global_unstructured."""
    pairs = [(layer, name) for layer in modules.children() for name in ("weight", "bias")]
    prune.global_unstructured(pairs, prune.L1Unstructured, amount=SPARSITY)


def prune_topk(modules: nn.Module) -> None:
    """Find the smallest with torch.topk over one long vector, and zero them."""
    magnitudes = _magnitudes(modules)
    dropped = round(SPARSITY * magnitudes.numel())
    kept = torch.ones_like(magnitudes, dtype=torch.bool)
    kept[magnitudes.topk(dropped, largest=False, sorted=False).indices] = False
    _zero(modules, kept)


def prune_kthvalue(modules: nn.Module) -> None:
    """Find the threshold with torch.kthvalue over one long vector; ties are dropped together."""
    magnitudes = _magnitudes(modules)
    dropped = round(SPARSITY * magnitudes.numel())
    _zero(modules, magnitudes > magnitudes.kthvalue(dropped).values)


PRUNERS: dict[str, Callable[[nn.Module], None]] = {
    "ours": prune_ours,
    "torch.nn.utils.prune": prune_torch,
    "torch.topk": prune_topk,
    "torch.kthvalue": prune_kthvalue,
}


def _magnitudes(modules: nn.Module) -> Tensor:
    return torch.cat([param.detach().abs().flatten() for param in modules.parameters()])


@torch.no_grad()
def _zero(modules: nn.Module, kept: Tensor) -> None:
    params = list(modules.parameters())
    masks = kept.split([param.numel() for param in params])
    for param, mask in zip(params, masks, strict=True):
        param.mul_(mask.view(param.shape))


def fingerprint(modules: nn.Module) -> dict[str, float]:
    """Return numbers that tell which weights were kept, whichever of equal magnitudes they are."""
    zeros, total, smallest, kept_sum = 0, 0, float("inf"), 0.0
    for layer in cast(Iterable[nn.Linear], modules.children()):
        for values in (layer.weight, layer.bias):  # torch.nn.utils.prune renames the parameters
            magnitudes = values.detach().abs()
            kept = magnitudes[magnitudes > 0]
            zeros += values.numel() - kept.numel()
            total += values.numel()
            smallest = min(smallest, kept.min().item() if kept.numel() else smallest)
            kept_sum += kept.double().sum().item()
    return {"zeros": zeros, "total": total, "smallest_kept": smallest, "kept_sum": kept_sum}


def check_fingerprints(report: Report, found: dict[str, dict[str, float]]) -> None:
    """Check that all kept the same weights, but for ties; kthvalue alone may drop more of those."""
    ours = found["ours"]
    wanted = round(SPARSITY * ours["total"])
    report.check(f"{wanted} zeros in ours: {ours['zeros']:.0f}", ours["zeros"] == wanted)
    for name, other in found.items():
        if name == "ours":
            continue
        surplus = other["zeros"] - ours["zeros"]
        allowed = 64 if name == "torch.kthvalue" else 0
        report.check(f"zeros of {name}: {surplus:+.0f}", 0 <= surplus <= allowed)
        report.check_close(f"sum kept, {name}", ours["kept_sum"], other["kept_sum"], 1e-6)
        if not surplus:
            smallest = (ours["smallest_kept"], other["smallest_kept"])
            report.check(
                f"smallest kept, {name}: {smallest[0]:.8g}, {smallest[1]:.8g}",
                smallest[0] == smallest[1],
            )


def process_item(settings: Settings) -> list[Report]:
    """Re-prune on the CPU, each time in a process of its own."""
    size = SMOKE_SIZE if settings.smoke else BASE_SIZE
    names = list(PRUNERS)[:2] if settings.smoke else list(PRUNERS)
    rows = {name: Row(name, []) for name in names}
    found: dict[str, dict[str, float]] = {}
    for _ in range(settings.repeats or 3):
        for name in names:
            result = run_child(name, size, settings.threads)
            row = rows[name]
            row.seconds.append(result["seconds"])
            row.figures["extra MB"] = max(result["extra_mb"], row.figures.get("extra MB", 0.0))
            found[name] = result["fingerprint"]
    total = found["ours"]["total"]
    report = Report(f"rank and zero {SPARSITY:g} of {total / 1e6:.1f} M weights", [*rows.values()])
    check_fingerprints(report, found)
    return [report]


def run_child(name: str, size: Size, threads: int) -> dict[str, Any]:
    """Re-prune once in a process of its own and return what it measured."""
    command = [sys.executable, "-m", "benchmarks.reprune", name, *map(str, (*size, threads))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"re-prune by {name} failed ({last}): is there enough memory?")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def device_item(settings: Settings) -> list[Report]:
    """Re-prune in this process, on any device, weights drawn anew before each time."""
    size = SMOKE_SIZE if settings.smoke else BASE_SIZE
    held: dict[str, nn.ModuleList] = {}

    def contender(name: str) -> Contender:
        def setup() -> None:
            held.clear()  # one set of modules at a time
            held[name] = build_modules(size, settings.device)

        return Contender(name, lambda: PRUNERS[name](held[name]), setup)

    contenders = [contender(name) for name in PRUNERS]
    rows = alternate(contenders, settings.repeats or 10, settings.warmup, settings.device)
    found = {}
    for one in contenders:  # after the timing: this makes the device wait
        assert one.setup
        one.setup()
        one.run()
        found[one.name] = fingerprint(held[one.name])
    total = found["ours"]["total"]
    report = Report(f"rank and zero {SPARSITY:g} of {total / 1e6:.1f} M weights", rows)
    check_fingerprints(report, found)
    return [report]


def schedule_item(settings: Settings) -> list[Report]:
    """Time what PARP adds: a re-prune with all that it logs, and pruning to score and back."""
    size = SMOKE_SIZE if settings.smoke else BASE_SIZE
    modules = build_modules(size, settings.device)
    params = dict(modules.named_parameters())
    schedule = build_schedule("parp", AdjustOptions(sparsity=SPARSITY, prune_every=1))
    schedule.start(params, num_steps=1_000_000)
    total = sum(param.numel() for param in params.values())
    zeros, drawn = [], []  # of the pruned model; of the weights as drawn, a few in 85 million

    def reprune() -> None:
        schedule.after_step(params, 1)

    def score() -> None:
        with schedule.pruned(params) as snapshot:
            zeros.append(count_zeros(snapshot.masks)[0])

    def setup() -> None:
        draw_weights(modules)
        drawn.append(count_zeros(params)[0])

    contenders = [
        Contender("re-prune and log", reprune, setup),
        Contender("prune, score, put back", score, setup),
    ]
    rows = alternate(contenders, settings.repeats or 5, settings.warmup, settings.device)
    report = Report(f"PARP at {SPARSITY:g} of {total / 1e6:.1f} M weights", rows, has_ratios=False)
    wanted = round(SPARSITY * total)
    report.check(f"{wanted} weights pruned to score: {zeros[-1]}", zeros[-1] == wanted)
    left = count_zeros(params)[0]
    report.check(
        f"weights at zero before and afterwards: {drawn[-1]} and {left}", left == drawn[-1]
    )
    return [report]


def peak_bytes() -> int:
    """Return the most memory that this process has held resident.

    On Linux getrusage's figure begins with the parent's, so the kernel's own is read.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.partition("VmHWM:")[2].split()[0]) << 10
    except (OSError, IndexError):
        unit = 1 if sys.platform == "darwin" else 1 << 10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main(argv: list[str]) -> int:
    """Re-prune once as the arguments say; print seconds, memory and fingerprint as JSON."""
    name, blocks, width, ffn_width, threads = argv
    torch.set_num_threads(int(threads))
    PRUNERS[name](build_modules(SMOKE_SIZE))  # loads the code
    modules = build_modules((int(blocks), int(width), int(ffn_width)))
    before = peak_bytes()
    started = time.perf_counter()
    PRUNERS[name](modules)
    seconds = time.perf_counter() - started
    extra_mb = (peak_bytes() - before) / 1e6
    result = {"seconds": seconds, "extra_mb": extra_mb, "fingerprint": fingerprint(modules)}
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
