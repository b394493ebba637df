"""What a run says while it is under way: a block of lines at its start, then a bar or lines."""

import sys
import time
from collections.abc import Iterable
from types import TracebackType

from torch import Tensor
from tqdm import tqdm

from data.corpus import Split
from data.files import check_room
from models.training.distill import SELF
from pruning.masks import count_zeros
from pruning.run.state import Run

LINE_SECONDS = 60.0  # between the lines of a run that has no terminal
WRITTEN_AT_ONCE = ("best.pt", "last.pt")


class Progress:
    """A bar on a terminal, a line a minute elsewhere: loss, rate, sparsity and the last dev score.

    What a step costs nothing to know is shown, so the loss is the last that was logged.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._bar = tqdm(
            total=run.steps,
            initial=run.step,
            desc=run.schedule.stage_name,
            disable=None if run.world.writes else True,
            dynamic_ncols=True,
        )
        self._first, self._started = run.step, time.monotonic()
        self._said = self._started
        dropped, total = count_zeros(run.schedule.masks)
        run.latest["sparsity"] = dropped / total if total else 0.0

    def __enter__(self) -> "Progress":
        """Return the progress itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the bar."""
        self._bar.close()

    def update(self) -> None:
        """Show that a step has been taken."""
        self._bar.set_postfix_str(describe_latest(self._run), refresh=False)
        self._bar.update()
        now = time.monotonic()
        if self._bar.disable and self._run.world.writes and now - self._said >= LINE_SECONDS:
            self._said = now
            run = self._run
            seconds = (now - self._started) / (run.step - self._first) * (run.steps - run.step)
            sys.stderr.write(
                f"{run.schedule.stage_name}: step {run.step}/{run.steps}, {describe_latest(run)}, "
                f"{describe_seconds(seconds)} left\n"
            )


def describe_latest(run: Run) -> str:
    """Return the latest loss, rate, sparsity and dev score of a run, as far as they are known."""
    latest = run.latest
    parts = [f"loss {latest['loss']:.3f}", f"rate {latest['lr']:.1e}"] if "loss" in latest else []
    parts.append(f"sparsity {100 * latest['sparsity']:.3g} %")
    if "dev" in latest:
        parts.append(f"dev {100 * latest['dev']:.2f} %")
    return ", ".join(parts)


def describe_seconds(seconds: float) -> str:
    """Return a time as "40 s", "12 min" or "3 h 05 min"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


def describe_start(run: Run) -> str:
    """Return what is about to be done, in a few lines."""
    options = run.options
    about = run.checkpoint.run
    parameters = sum(each.numel() for each in run.checkpoint.model.parameters())
    in_scope = sum(each.numel() for each in run.params.values())
    stages = run.schedule.stages
    batches = run.sampler.count_batches(1)
    processes = f", {run.world.size} processes" if run.world.size > 1 else ""
    device = next(iter(run.params.values())).device
    peak, kept = expected_bytes(run)
    runs = f", {len(stages)} times ({', '.join(stages)})" if len(stages) > 1 else ""
    lines = {
        "corpus": str(run.data.corpus.root),
        "device": f"{device}, {run.task.precision}{processes}",
        "train": f"{_describe_split(run.data.train)}, {len(run.train)} of them usable",
        "dev": _describe_split(run.data.dev),
        "test": _describe_split(run.data.test),
        "model": f"{about.model}, {parameters:,} parameters from {about.init}; "
        f"{in_scope:,} in scope ({about.scope})",
        "method": f"{about.method}, sparsity {100 * (about.sparsity or 0.0):g} %",
        "training": f"{run.full_steps} steps{runs}, {batches} batches an epoch, "
        f"{options.grad_accum} to a step; dev scored every {run.eval_every} steps",
        "disk": f"{describe_bytes(peak)} while it trains, {describe_bytes(kept)} then; inputs that "
        "memory does not hold come on top",
        "folder": str(run.out),
    }
    return "\n".join(f"{name:<9}{text}" for name, text in lines.items())


def _describe_split(split: Split) -> str:
    hours = sum(utterance.seconds for utterance in split.utterances) / 3600
    speakers = {utterance.speaker for utterance in split.utterances}
    who = (
        "unknown speakers"
        if "" in speakers
        else f"{len(speakers)} speaker{'s'[: len(speakers) > 1]}"
    )
    return f"{split.described}: {len(split.utterances)} utterances, {hours:.2f} h, {who}"


def describe_bytes(count: float) -> str:
    """Return a size as "12 MB" or "1.3 GB", of 10^6 and 10^9 bytes."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def expected_bytes(run: Run) -> tuple[int, int]:
    """Return about how many bytes a run needs on disk while it trains, and how many it leaves.

    Counted are checkpoints: best.pt and last.pt, which also holds Adam's two moments of what is
    trained and the adjusted weights, the initial weights, what stages leave, and the largest once
    more, as files are written beside the old ones.
    """
    model = run.checkpoint.model
    weights = _size(model.state_dict().values())
    in_scope = _size(run.params.values())
    moments = 2 * _size(each for each in model.parameters() if each.requires_grad)
    masks = in_scope // 4 // 8
    best = weights + masks
    last = weights + moments + in_scope + 2 * masks
    stages = in_scope * (len(run.schedule.stages) - 1)
    others = weights * (run.options.teacher == SELF)
    rewind = weights * (run.schedule.rewinds and run.options.rewind_step > 0)
    kept = best + stages + masks + (last + others + rewind if run.options.keep == "all" else 0)
    return weights + best + 2 * last + stages + others + rewind + masks, kept


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def check_disk(run: Run) -> None:
    """Check that the disk has room for what a run is expected to write.

    Raises:
        ValueError: If it has not; says how much it takes.
    """
    there = [run.out / name for name in WRITTEN_AT_ONCE]
    written = sum(path.stat().st_size for path in there if path.is_file())
    check_room(run.out, expected_bytes(run)[0] - written, "checkpoints")
