"""Convert weights: ``python -m models.convert SRC DST``, ``--to`` for other forms than ours.

SRC is a checkpoint file of ours, packed or not, a Hugging Face folder or a weight file in one, a
file of openai-whisper, fairseq or torchaudio, a CTranslate2 folder, or a repository of the model
hub.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from data.files import JsonObject, read_json
from data.options import OptionParser, command, run_program
from models.checkpoint import Checkpoint, save_checkpoint, save_packed
from models.convert import load_weights, to_hf
from models.convert.card import context_note
from models.convert.export import foreign_names, to_foreign
from models.packed import VALUES, PackedSize


def convert(arguments: Sequence[str] | None) -> None:
    """Do what the command line says.

    Raises:
        ValueError: If the weights cannot be read, or not be written where they should be.
    """
    options = _parser().parse_args(arguments)
    if options.values and options.to in ("parp", "hf"):
        raise ValueError(
            f"--values {options.values} is not for --to {options.to}, which stores float32: give "
            "--to packed, or leave it out"
        )
    values = options.values or "fp32"
    _refuse_overwriting(options.target, options.force)
    checkpoint = load_weights(options.source)

    size = ""
    num_parameters = sum(parameter.numel() for parameter in checkpoint.model.parameters())
    if options.to == "parp":
        save_checkpoint(options.target, checkpoint)
    elif options.to == "packed":
        size = _said_of_size(options.target, save_packed(options.target, checkpoint, values))
    elif options.to == "hf":
        num_parameters = to_hf(
            checkpoint.model,
            options.target,
            checkpoint.tokenizer,
            checkpoint.decoding,
            checkpoint.frontend,
            options.force,
            checkpoint.run,
            _results_beside(options.source, checkpoint),
        )
    else:
        results = _results_beside(options.source, checkpoint)
        num_parameters = to_foreign(
            checkpoint, options.to, options.target, values, options.force, results
        )
    print(_summary(options, checkpoint, num_parameters) + size)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    return run_program(command("convert"), lambda: convert(arguments))


def _parser() -> OptionParser:
    parser = OptionParser(prog=command("convert"), description=__doc__, allow_abbrev=False)
    parser.add_argument("source", metavar="SRC", type=Path, help="file, folder or hub name to read")
    forms = f"file (parp, packed) or folder (hf, {', '.join(foreign_names())})"
    parser.add_argument("target", metavar="DST", type=Path, help=forms)
    choices = ("parp", "packed", "hf", *foreign_names())
    help_to = (
        "parp: our checkpoint; packed: the same in little space, one bit a pruned weight and the "
        "kept values; hf: for transformers; ct2: for CTranslate2 (default: "
        "%(default)s)"
    )
    parser.add_argument("--to", choices=choices, default="parp", help=help_to)
    help_values = "how packed and ct2 store values, int8 with a scale a row (default: fp32)"
    parser.add_argument("--values", choices=tuple(VALUES), help=help_values)
    parser.add_argument("--force", action="store_true", help="replace an existing DST")
    return parser


def _refuse_overwriting(target: Path, force: bool) -> None:
    is_empty_folder = target.is_dir() and not any(target.iterdir())
    if target.exists() and not force and not is_empty_folder:
        raise ValueError(f"{target} exists: choose another place, or replace it with --force")


def _results_beside(source: Path, checkpoint: Checkpoint) -> JsonObject | None:
    """Return the results of the run that a best.pt is of, where they lie beside it."""
    path = source.parent / "results.json"
    if source.name != "best.pt" or not path.is_file():
        return None
    results = read_json(path)
    run = checkpoint.run
    wanted = {"model": run.model, "method": run.method, "target": run.target, "seed": run.seed}
    return results if all(results.get(key) == value for key, value in wanted.items()) else None


def _said_of_size(path: Path, size: PackedSize) -> str:
    """Say what a packed file takes, and what it has to."""
    written = path.stat().st_size
    dense = 4 * size.parameters
    return (
        f"; {written / 1e6:.2f} MB, {written / dense:.1%} of dense float32: {size.kept:,} values "
        f"kept, which with one bit for each that may be pruned take {size.arithmetic / 1e6:.2f} MB"
    )


def _summary(options: argparse.Namespace, checkpoint: Checkpoint, num_parameters: int) -> str:
    tokenizer = checkpoint.tokenizer
    tokens = f"{tokenizer.vocab_size} {tokenizer.kind} tokens" if tokenizer else "no tokenizer"
    head = ", new CTC head" if checkpoint.run.head == "new" else ""
    if checkpoint.run.drawn:
        head += f"; {', '.join(checkpoint.run.drawn)}, which the source lacks, drawn anew"
    context = "" if options.to in ("parp", "packed") else context_note(checkpoint)
    return (
        f"wrote {options.target} ({options.to}): {checkpoint.model.family}, "
        f"{num_parameters:,} parameters, {tokens}{head}{'; ' if context else ''}{context}"
    )


if __name__ == "__main__":
    sys.exit(main())
