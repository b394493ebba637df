"""Time ours and the peers on one GPU, alternately, and check that they compute the same.

python benchmarks/gpu.py --json results.json
python benchmarks/gpu.py --device cpu --smoke      # no GPU: does the code run?
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the script's own folder is there, its parent is not

from benchmarks import reprune, seq2seq, wav2vec2, whole_run  # noqa: E402
from benchmarks.common import Item, Settings, build_parser, run_items  # noqa: E402

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
        return run_items(ITEMS, flags.only, settings, flags.json)
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
