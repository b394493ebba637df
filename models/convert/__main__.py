"""Convert weights: ``python -m models.convert SRC DST``, ``--to hf`` for the way back.

SRC is a checkpoint file of ours, a Hugging Face folder or a weight file in one, a file of
openai-whisper, fairseq or torchaudio, a CTranslate2 folder, or a repository of the model hub.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from data.files import WRITE_ELSEWHERE
from data.options import OptionParser, command, run_program
from models.checkpoint import Checkpoint, save_checkpoint
from models.convert import load_weights, to_hf

_OWN_CONTEXT_IN_HF = (
    "; trained on each utterance's own length, where transformers pads all audio to "
    "{seconds:g} s, so its output there has to be scored anew"
)


def convert(arguments: Sequence[str] | None) -> None:
    """Do what the command line says.

    Raises:
        ValueError: If the weights cannot be read, or not be written where they should be.
    """
    parser = OptionParser(prog=command("convert"), description=__doc__, allow_abbrev=False)
    parser.add_argument("source", metavar="SRC", type=Path, help="file, folder or hub name to read")
    parser.add_argument("target", metavar="DST", type=Path, help="file (parp) or folder (hf)")
    parser.add_argument("--to", choices=("parp", "hf"), default="parp", help="default: %(default)s")
    parser.add_argument("--force", action="store_true", help="replace an existing DST")
    options = parser.parse_args(arguments)

    _refuse_overwriting(options.target, options.force)
    checkpoint = load_weights(options.source)
    if options.to == "hf":
        try:
            to_hf(
                checkpoint.model,
                options.target,
                checkpoint.tokenizer,
                checkpoint.decoding,
                checkpoint.frontend,
                overwrite=options.force,
            )
        except OSError as error:
            raise ValueError(
                f"cannot write {options.target} ({error.strerror or error}): {WRITE_ELSEWHERE}"
            ) from None
    else:
        save_checkpoint(options.target, checkpoint)
    print(_summary(options.to, options.target, checkpoint))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    return run_program(command("convert"), lambda: convert(arguments))


def _refuse_overwriting(target: Path, force: bool) -> None:
    is_empty_folder = target.is_dir() and not any(target.iterdir())
    if target.exists() and not force and not is_empty_folder:
        raise ValueError(f"{target} exists: choose another place, or replace it with --force")


def _summary(target_format: str, target: Path, checkpoint: Checkpoint) -> str:
    num_parameters = sum(parameter.numel() for parameter in checkpoint.model.parameters())
    tokenizer = checkpoint.tokenizer
    tokens = f"{tokenizer.vocab_size} {tokenizer.kind} tokens" if tokenizer else "no tokenizer"
    head = ", new CTC head" if checkpoint.run.head == "new" else ""
    if checkpoint.run.drawn:
        head += f"; {', '.join(checkpoint.run.drawn)}, which the source lacks, drawn anew"
    context = ""
    if target_format == "hf" and checkpoint.frontend.get("audio_ctx") == "own":
        context = _OWN_CONTEXT_IN_HF.format(seconds=checkpoint.config.audio_positions / 50)
    return (
        f"wrote {target} ({target_format}): {checkpoint.model.family}, "
        f"{num_parameters:,} parameters, {tokens}{head}{context}"
    )


if __name__ == "__main__":
    sys.exit(main())
