"""Options from defaults, a TOML file and flags, in this order of precedence."""

import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import train
from data.options import (
    OptionParser,
    add_options,
    check_value,
    command,
    interrupts,
    option,
    parse_options,
    run_program,
)
from models.device import resolve_device


@dataclass(frozen=True)
class Example:
    model: str = field(metadata={"help": "which model", "choices": ("w2v2", "whisper-tiny")})
    prune_every: int = field(default=50, metadata={"help": "steps, at 100 % of the rate"})
    lr: float = field(default=1e-4, metadata={"help": "peak learning rate"})
    merge_sil: bool = field(default=False, metadata={"help": "merge silences"})
    save: bool = field(default=True, metadata={"help": "save it"})
    epochs: int | None = field(default=None, metadata={"help": "passes"})
    method: str | None = field(default=None, metadata={"help": "how", "choices": ("mpi", "parp")})
    folder: str | None = field(default=None, metadata={"help": "where"})


def parse(*argv: str) -> Example:
    return parse_options(Example, ["--model", "w2v2", *argv], "Train.")


def from_toml(folder: Path, text: str, *argv: str) -> Example:
    (folder / "run.toml").write_text(text, encoding="utf-8")
    return parse_options(Example, ["--config", str(folder / "run.toml"), *argv], "Train.")


def exit_line(capsys: pytest.CaptureFixture, *argv: str) -> str:
    """Return what a refused command line prints, having checked status and shape."""
    with pytest.raises(SystemExit) as exit_info:
        parse_options(Example, argv, "Train.")
    printed = capsys.readouterr()
    assert exit_info.value.code == 2
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    return printed.err


def test_parse_options_without_flags_gives_defaults() -> None:
    assert parse() == Example("w2v2", 50, 1e-4, False, True, None, None)


def test_parse_options_reads_every_type() -> None:
    options = parse(
        "--prune-every=7", "--lr", "3e-5", "--merge-sil", "--no-save", "--epochs", "3",
        "--method", "mpi",
    )  # fmt: skip
    assert options == Example("w2v2", 7, 3e-5, True, False, 3, "mpi")


def test_parse_options_accepts_underscores() -> None:
    options = parse("--prune_every", "7", "--merge_sil", "--no_save")
    assert options == parse("--prune-every", "7", "--merge-sil", "--no-save")


def test_parse_options_leaves_underscores_of_values_alone() -> None:
    @dataclass
    class Folder:
        out: str = "runs"

    assert parse_options(Folder, ["--out=a_b"], "").out == "a_b"
    assert parse_options(Folder, ["--out", "a_b"], "").out == "a_b"


def test_parse_options_flags_win_over_file_and_file_over_defaults(tmp_path: Path) -> None:
    text = 'model = "whisper-tiny"\nprune-every = 7\nlr = 1\nmerge_sil = true\n'
    options = from_toml(tmp_path, text, "--lr", "0.5", "--no-merge-sil")
    assert options == Example("whisper-tiny", 7, 0.5, False)


def test_parse_options_default_given_as_flag_wins_over_file(tmp_path: Path) -> None:
    assert (
        from_toml(tmp_path, "prune-every = 7", "--model=w2v2", "--prune-every=50").prune_every == 50
    )


def test_parse_options_takes_none_where_none_is_allowed(tmp_path: Path) -> None:
    text = 'model = "w2v2"\nepochs = 3\nmethod = "none"'
    options = from_toml(tmp_path, text, "--epochs", "none")
    assert (options.epochs, options.method) == (None, None)
    assert parse("--method", "none").method is None


def test_parse_options_turns_toml_integer_into_float(tmp_path: Path) -> None:
    assert type(from_toml(tmp_path, 'model = "w2v2"\nlr = 1').lr) is float


def test_parse_options_result_passes_through_json() -> None:
    options = parse("--epochs", "3")
    assert Example(**json.loads(json.dumps(dataclasses.asdict(options)))) == options


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (
            "prune-evry = 3",
            "unknown option 'prune-evry'; did you mean prune-every\\?; known are model",
        ),
        ("[prune]\nevery = 3", "unknown option 'prune'"),
        ('prune-every = "3"', "prune-every is '3': give a whole number"),
        ("prune-every = 3.0", "prune-every is 3.0: give a whole number"),
        ("prune-every = true", "prune-every is True: give a whole number"),
        ("lr = true", "lr is True: give a number"),
        ("merge-sil = 1", "merge-sil is 1: give true or false"),
        ('model = "none"', "model is 'none': choose from w2v2, whisper-tiny"),
        ("lr = ", "run.toml is not TOML"),
    ],
)
def test_parse_options_of_wrong_toml_is_refused(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        from_toml(tmp_path, text, "--model", "w2v2")


def test_parse_options_of_missing_toml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot read .*none.toml .No such file"):
        parse("--config", str(tmp_path / "none.toml"))


def test_parse_options_without_toml_reader_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_installed(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", not_installed)
    with pytest.raises(ValueError, match=r'pip install -e "\.\[toml\]"'):
        from_toml(tmp_path, "lr = 1")


def test_parse_options_of_wrong_value_prints_one_line(capsys: pytest.CaptureFixture) -> None:
    line = exit_line(capsys, "--model", "w2v2", "--prune-every", "x")
    assert "argument --prune-every: invalid int value: 'x'" in line


def test_parse_options_of_wrong_choice_prints_one_line(capsys: pytest.CaptureFixture) -> None:
    assert "whisper-tiny" in exit_line(capsys, "--model", "bert")


def test_parse_options_of_a_choice_in_another_case_names_it(capsys: pytest.CaptureFixture) -> None:
    line = exit_line(capsys, "--model", "w2v2", "--method", "PARP")
    assert "(choose from 'mpi', 'parp'); did you mean parp? (see" in line


def test_parse_options_of_an_empty_value_is_refused() -> None:
    with pytest.raises(ValueError, match="--folder is empty: give a value, or leave it out"):
        parse("--folder", "")


def test_parse_options_of_abbreviated_flag_prints_one_line(capsys: pytest.CaptureFixture) -> None:
    assert "--prune" in exit_line(capsys, "--model", "w2v2", "--prune", "3")


def test_parse_options_without_required_flag_prints_one_line(capsys: pytest.CaptureFixture) -> None:
    assert "--model is required" in exit_line(capsys)


def test_help_states_every_default(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as exit_info:
        parse_options(Example, ["--help"], "Train a model.")
    text = " ".join(capsys.readouterr().out.split())
    assert exit_info.value.code == 0
    assert "Train a model." in text
    for expected in (
        "which model (required)",
        "steps, at 100 % of the rate (default: 50)",
        "peak learning rate (default: 0.0001)",
        "merge silences (default: false)",
        "save it (default: true)",
        "passes (default: none)",
        "how (default: none)",
    ):
        assert expected in text


def test_add_options_leaves_flags_not_given_out_of_the_namespace() -> None:
    parser = OptionParser()
    add_options(parser, Example)
    assert vars(parser.parse_args(["--prune_every", "3"])) == {"prune_every": 3}


def _exit_status(work: str, encoding: str = "utf-8", **streams: int) -> "subprocess.Popen[str]":
    """Start a process whose program does ``work``."""
    code = f"import sys; from data.options import run_program\ndef main():\n    {work}\n"
    return subprocess.Popen(
        [sys.executable, "-c", code + "sys.exit(run_program('name', main))"],
        cwd=Path(__file__).parent.parent,
        stdout=streams.get("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONIOENCODING": encoding},
    )


@pytest.mark.long
def test_program_whose_output_nobody_reads_ends_quietly() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = _exit_status("print('to nobody')", stdout=writing)
    os.close(writing)
    assert process.communicate()[1] == ""
    assert process.returncode == 141


def test_run_program_leaves_out_the_middle_of_a_mistake_that_a_file_made_long(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        raise ValueError(f"a.tsv: {'x' * 100_000}: mend it")

    assert run_program("name", fail) == 2
    line = capsys.readouterr().err
    assert len(line) < 7000
    assert line.startswith("name: error: a.tsv: xxx")
    assert line.endswith("xxx: mend it\n")


def test_run_program_prints_a_mistake_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise ValueError("no file a\nb: give another")

    assert run_program("name", fail) == 2
    assert capsys.readouterr() == ("", "name: error: no file a b: give another\n")


def test_run_program_returns_what_its_work_returns() -> None:
    assert run_program("name", lambda: None) == 0
    assert run_program("name", lambda: 1) == 1


def test_run_program_leaves_bugs_as_they_are() -> None:
    with pytest.raises(ZeroDivisionError):
        run_program("name", lambda: 1 // 0)


def test_run_program_that_is_interrupted_ends_with_130() -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    assert run_program("name", stop) == 130


def test_interrupts_are_collected_and_then_strike_as_before() -> None:
    with interrupts() as received:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert received == [signal.SIGTERM, signal.SIGINT]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("started", "shown"),
    [("train.py", "python eval.py"), ("/venv/bin/parp-train", "parp-eval")],
)
def test_other_programs_are_named_as_this_one_was_started(
    monkeypatch: pytest.MonkeyPatch, started: str, shown: str
) -> None:
    monkeypatch.setattr(sys, "argv", [started, "--help"])
    assert command("eval") == shown


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf"])
def test_flag_that_has_to_be_positive_is_checked(value: str) -> None:
    @dataclass
    class Rate:
        rate: float = option("of learning", 1.0, positive=True)

    with pytest.raises(ValueError, match=f"--rate is {value}.*: give a positive number"):
        parse_options(Rate, [f"--rate={value}"], "")


def test_check_value_returns_what_the_field_holds() -> None:
    assert check_value(Example, "lr", 1, "here") == 1.0
    assert type(check_value(Example, "lr", 1, "here")) is float
    assert check_value(Example, "epochs", "none", "here") is None
    assert check_value(Example, "method", "parp", "here") == "parp"


PROGRAM_FLAGS = {
    "train.py": ["train.py", "--help"],
    "eval.py": ["eval.py", "--help"],
    "models.convert": ["-m", "models.convert", "--help"],
    "pruning.sweep": ["-m", "pruning.sweep", "--help"],
    "pruning.report": ["-m", "pruning.report", "--help"],
}


@pytest.mark.long
@pytest.mark.parametrize("name", PROGRAM_FLAGS)
@pytest.mark.parametrize("seconds", [0.3, 0.8, 1.4])
def test_a_program_that_is_interrupted_while_it_imports_says_nothing(
    name: str, seconds: float
) -> None:
    process = subprocess.Popen(
        [sys.executable, *PROGRAM_FLAGS[name]],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1] == b""


def test_what_a_console_cannot_show_is_spelled_out() -> None:
    process = _exit_status("print('caf\\u00e9')", "ascii")
    assert process.communicate() == ("caf\\xe9\n", "")
    assert process.returncode == 0


@pytest.mark.long
def test_a_mistake_that_a_console_cannot_show_is_spelled_out() -> None:
    process = _exit_status("raise ValueError('no file \\u00e9')", "ascii")
    assert process.communicate()[1] == "name: error: no file \\xe9\n"
    assert process.returncode == 2


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("name", ["warmup", "hold", "weight_decay", "lr", "dropout", "temperature"])
def test_number_that_is_not_finite_is_refused_by_its_flag(
    capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    flag = f"--{name.replace('_', '-')}"
    assert train.main(["--model", "w2v2-demo", "--data", "demo", f"{flag}={value}"]) == 2
    line = capsys.readouterr().err
    assert flag in line
    assert len(line.splitlines()) == 1


@pytest.mark.parametrize("value", [-1, 2**31, 10**20])
def test_seed_out_of_range_is_refused_by_its_flag(
    capsys: pytest.CaptureFixture[str], value: int
) -> None:
    assert train.main(["--model", "w2v2-demo", "--data", "demo", f"--seed={value}"]) == 2
    assert f"--seed is {value}: give" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["meta", "mps", "xla", "--", "a\nb"])
def test_device_that_is_no_cpu_or_cuda_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="can't be used"):
        resolve_device(name)
