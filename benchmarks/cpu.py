"""Time ours and the peers on the CPU, alternately, and check that they compute the same.

python benchmarks/cpu.py --json results.json
python benchmarks/cpu.py --only reprune error-rate --threads 1
python benchmarks/cpu.py --only whisper-short --data TIMIT --ckpt runs/.../best.pt
"""

import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the script's own folder is there, its parent is not

from benchmarks import reprune, scaling, seq2seq, wav2vec2, whole_run  # noqa: E402
from benchmarks.common import Item, Settings, build_parser, run_items  # noqa: E402
from data.options import run_program  # noqa: E402

ITEMS: dict[str, Item] = {
    "w2v2-step": lambda settings: wav2vec2.step_item(settings, utterances=4),
    "whisper-greedy": seq2seq.greedy_item,
    "whisper-ctranslate2": seq2seq.ctranslate2_item,
    "whisper-short": seq2seq.short_item,
    "reprune": reprune.process_item,
    "parp-costs": reprune.schedule_item,
    "error-rate": scaling.error_rate_item,
    "curve": scaling.curve_item,
    "growth": whole_run.growth_item,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status: 1 if a check failed, 2 for wrong input."""
    parser = build_parser("cpu.py", (__doc__ or "").split("\n")[0], ITEMS)
    parser.add_argument(
        "--data", metavar="ROOT", help="corpus in TIMIT's layout (default: $TIMIT_ROOT, else demo)"
    )
    parser.add_argument(
        "--utterances", type=int, default=48, help="test utterances to decode (default: 48)"
    )
    parser.add_argument("--ckpt", metavar="FILE", help="fine-tuned whisper, for whisper-short")
    flags = parser.parse_args(argv)
    settings = Settings(
        repeats=flags.repeats or (1 if flags.smoke else None),
        warmup=0 if flags.smoke else 1,
        smoke=flags.smoke,
        threads=flags.threads,
        data=flags.data,
        utterances=flags.utterances,
        ckpt=flags.ckpt,
    )
    return run_program("cpu.py", lambda: run_items(ITEMS, flags.only, settings, flags.json))


if __name__ == "__main__":
    sys.exit(main())
