"""Every command of README.md, run on stand-ins: small weights, a small corpus, few steps.

What needs a network, ``pip`` and ``venv``, is held against setup.cfg only; the installed programs
are run by tests/test_install.py.
"""

import configparser
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import eval as evaluation
import train
from data.timit import load_timit
from models import build_model
from models.convert import __main__ as convert
from models.convert import to_hf
from models.tokenizers import ByteBPETokenizer
from pruning.report import __main__ as report
from pruning.sweep import __main__ as sweep
from tests.run_folders import write_run
from tests.test_byte_bpe import small_parts

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAMS: dict[str, Callable[[list[str]], int]] = {
    "train.py": train.main,
    "eval.py": evaluation.main,
    "-m models.convert": convert.main,
    "-m pruning.sweep": sweep.main,
    "-m pruning.report": report.main,
}
# What is put in place of what takes long, or is not here.
STAND_INS = (
    (r'"\$\(.*\)"', "weights/text"),
    (r"--model (w2v2|whisper-tiny)(?= )", r"--model weights/\1"),
    (r"runs/\.\.\./", "runs/a/"),
    (r"/path/to/TIMIT", "corpus"),
    (r"\bSRC DST\.pt", "weights/w2v2 out.pt"),
    (r"--to (packed|hf) SRC DST", r"--to \1 runs/a/best.pt out"),
    (r"--to ct2 SRC DST", "--to ct2 text.pt out"),
    (r"talk\.wav interviews/", "talk.wav interviews"),
)
FEW_STEPS = ["--steps", "1", "--device", "cpu", "--batch-seconds", "20"]


def commands() -> list[str]:
    """List the commands of all shell blocks, one a line, without comments."""
    found = []
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            for command in re.sub(r"\s#.*", "", line).split("&&"):
                found.append(" ".join(command.split()))
    return [command for command in found if command]


def program_of(command: str) -> tuple[str, str] | None:
    """Return the program that a command runs and its arguments, None where it is not ours."""
    for name in PROGRAMS:
        start = f".venv/bin/python {name}"
        if command == start or command.startswith(f"{start} "):
            return name, command.removeprefix(start).strip()
    return None


OURS = [command for command in commands() if program_of(command)]
OTHERS = [command for command in commands() if not program_of(command)]


@pytest.fixture(scope="module")
def place(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds all that the commands name."""
    folder = tmp_path_factory.mktemp("readme")
    torch.manual_seed(0)
    tokenizer = ByteBPETokenizer(*small_parts(multilingual=False))
    decoding = {"start_ids": list(tokenizer.start_ids), "eos_id": tokenizer.eos_id}
    decoding |= {"max_tokens": 448, "suppress_ids": [], "begin_suppress_ids": []}
    whisper = build_model("whisper-demo", vocab_size=tokenizer.vocab_size)
    for name in ("whisper-tiny", "text"):
        to_hf(whisper, folder / "weights" / name, tokenizer, decoding)
    to_hf(build_model("w2v2-demo"), folder / "weights" / "w2v2")
    shutil.copytree(small_corpus, folder / "corpus")
    shutil.copytree(ROOT / "configs", folder / "configs")
    write_run(folder / "runs" / "demo-sweep" / "one")

    utterances = load_timit(small_corpus, "train")
    lines = [f"corpus/{u.path.relative_to(small_corpus)}\t{u.text}" for u in utterances]
    (folder / "corpus.tsv").write_text("\n".join(["path\ttext", *lines]) + "\n")
    shutil.copy(utterances[0].path, folder / "talk.wav")
    (folder / "interviews").mkdir()
    shutil.copy(utterances[1].path, folder / "interviews" / "first.wav")

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        options = ["--sparsity", "0.6", "--data", "corpus", "--out", "runs/a", *FEW_STEPS]
        assert train.main(["--model", "w2v2-demo", *options]) == 0
        assert convert.main(["weights/text", "text.pt"]) == 0
    return folder


@pytest.mark.long
@pytest.mark.parametrize("command", OURS)
def test_command_runs(place: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    found = program_of(command)
    assert found is not None
    program, text = found
    for pattern, stand_in in STAND_INS:
        text = re.sub(pattern, stand_in, f"{text} ").strip()
    arguments = shlex.split(text)
    if program == "train.py":
        arguments += [*FEW_STEPS, "--out", "run"]
    elif program == "-m pruning.sweep":
        arguments.append("--dry-run")
    elif program == "-m pruning.report":
        arguments.append("--no-plots")
    monkeypatch.chdir(place)
    monkeypatch.setenv("TIMIT_ROOT", "corpus")
    for left in ("run", "out"):
        path = place / left
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if "--data demo" in text:
        arguments[arguments.index("demo")] = "corpus"
    assert PROGRAMS[program](arguments) == 0


def test_every_command_of_another_program_is_known() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = set(setup["options.extras_require"])
    scripts = setup["options.entry_points"]["console_scripts"]
    known = (
        r"(\S*pip install|python3 -m venv|export|mkdir -p|cd|\.venv/bin/python -m pytest"
        r"|\S*/parp-train)\b"
    )
    for command in OTHERS:
        assert re.match(known, command), command
        for extra in re.findall(r"\[(\w+)\]", command):
            assert extra in extras, command
        for script in re.findall(r"\bparp-\w+", command):
            assert f"{script} =" in scripts


def test_flags_in_the_text_exist(capsys: pytest.CaptureFixture[str]) -> None:
    for program in PROGRAMS.values():
        with pytest.raises(SystemExit):
            program(["--help"])
    known = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out)) | {"--nproc-per-node"}
    text = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    spans = re.findall(r"`([^`]+)`", text)
    named = {flag for span in spans for flag in re.findall(r"--[a-z][a-z-]*", span)}
    assert len(named) > 10
    assert named <= known


def test_python_of_the_first_screen_is_there() -> None:
    first = README[:3000]
    for question in ("Does it reproduce the paper?", "My own data?", "Transcribe a file?", "TIMIT"):
        assert question in first
    assert (ROOT / "docs" / "python.md").is_file()
