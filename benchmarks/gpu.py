"""Time ours and the peers on one GPU, alternately, and check that they compute the same.

python benchmarks/gpu.py --json results.json
python benchmarks/gpu.py --device cpu --smoke      # no GPU: does the code run?
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the script's own folder is there, its parent is not

from benchmarks import reprune, seq2seq, wav2vec2, whole_run  # noqa: E402
from benchmarks.common import Item, Report, Settings, build_parser, run_items  # noqa: E402

ITEMS: dict[str, Item] = {
    "w2v2-step": lambda settings: wav2vec2.step_item(settings, settings.utterances, batches=8),
    "whisper-text-step": lambda settings: seq2seq.step_item(settings, settings.utterances, "text"),
    "whisper-phone-step": lambda settings: seq2seq.step_item(
        settings, settings.utterances, "phone"
    ),
    "whisper-greedy": lambda settings: seq2seq.random_greedy_item(settings, settings.utterances),
    "parp": lambda settings: wav2vec2.parp_item(settings, settings.utterances),
    "reprune": reprune.device_item,
    "parp-costs": reprune.schedule_item,
    "w2v2-run": lambda settings: whole_run.run_item(settings, "w2v2"),
    "whisper-run": lambda settings: whole_run.run_item(settings, "whisper-tiny"),
}


@dataclass(frozen=True)
class Prediction:
    """Milliseconds that a unit of an item's work was predicted to take on an H100 in bf16.

    Attributes:
        row: Beginning of the name of the row that it is for.
        low: The least that is expected.
        high: The most.
        units: Units in a repetition.
    """

    row: str
    low: float
    high: float
    units: int = 1

    def note(self, report: Report) -> str:
        """Return the prediction beside what was found."""
        row = next(row for row in report.rows if row.name.startswith(self.row))
        found = 1e3 * row.median / self.units
        verdict = "as predicted" if self.low <= found <= self.high else "NOT AS PREDICTED"
        return (
            f"{row.name}: {self.low:g} to {self.high:g} ms predicted, {found:.4g} found, {verdict}"
        )


PREDICTIONS = {
    "w2v2-step": Prediction("ours", 24.5, 30.0, units=8),
    "whisper-text-step": Prediction("ours, 30 s", 28.0, 33.0),
    "whisper-phone-step": Prediction("ours, 8 s", 6.5, 13.0),
    "whisper-greedy": Prediction("ours", 40.0, 46.0),
    "reprune": Prediction("ours", 1.0, 5.0),
    "w2v2-run": Prediction("w2v2, parp", 60_000.0, 90_000.0),
    "whisper-run": Prediction("whisper-tiny, parp", 25_000.0, 60_000.0),
}
"""By counting: each call of a step on tensors without values, its least time by bytes and products,
and 1.46 times that, which is what a captured step took elsewhere. In batches of 32, not measured.
"""


def _predicted(name: str, item: Item) -> Item:
    def run(settings: Settings) -> list[Report]:
        reports = item(settings)
        prediction = PREDICTIONS.get(name)
        if prediction and settings.device.type == "cuda" and settings.utterances == 32:
            reports[0].notes.append(prediction.note(reports[0]))
        return reports

    return run


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status: 1 if a check failed, 2 for wrong input."""
    parser = build_parser("gpu.py", (__doc__ or "").split("\n")[0], ITEMS)
    parser.add_argument("--utterances", type=int, default=32, help="in a batch (default: 32)")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu (only with --smoke)")
    flags = parser.parse_args(argv)
    try:
        device = _device(flags.device, flags.smoke)
        settings = Settings(
            repeats=flags.repeats or (1 if flags.smoke else None),
            warmup=0 if flags.smoke else 3,
            smoke=flags.smoke,
            device=device,
            precision="bf16",
            threads=flags.threads,
            utterances=flags.utterances,
        )
        items = {name: _predicted(name, item) for name, item in ITEMS.items()}
        return run_items(items, flags.only, settings, flags.json)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2


def _device(name: str, smoke: bool) -> torch.device:
    """Return the device to use.

    Raises:
        ValueError: If it is not there, or is the CPU and not just a try.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"gpu.py: error: no device {name!r}: give cuda, cuda:N or cpu") from None
    if device.type == "cpu" and smoke:
        return device
    if device.type != "cuda" or not torch.cuda.is_available():
        raise ValueError(
            "gpu.py needs a CUDA device: run it on a machine with one, or try the code with "
            "--device cpu --smoke"
        )
    if device.index is not None and device.index >= torch.cuda.device_count():
        raise ValueError(f"gpu.py needs a CUDA device: there is no {name}")
    torch.cuda.set_device(device)
    return device


if __name__ == "__main__":
    sys.exit(main())
