"""Which method takes which option, and what is said of an option that changes nothing."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from data.options import option, parse_options, with_fields_of
from pruning.run.options import TrainOptions, as_recorded_now, recorded_options
from pruning.schedules import OPTIONS_TAKEN, SCHEDULES, MethodOptions, build_schedule

MODEL = ["--model", "w2v2-demo"]


def _parse(*flags: str) -> TrainOptions:
    return parse_options(TrainOptions, [*MODEL, *flags], "")


@pytest.mark.parametrize(
    ("method", "own"),
    [
        ("dense", {"rewind_step"}),
        ("rp", {"random_mask"}),
        ("imp", {"score", "rewind_step", "round_steps", "reuse"}),
        ("parp-p", {"score", "start_sparsity", "growth", "grow_until"}),
        (
            "gmp",
            {"score", "dense_share", "rate_per_phase", "latent", "latent_decay", "cooldown"},
        ),
    ],
)
def test_a_method_takes_its_own_options(method: str, own: set[str]) -> None:
    of_all = {"pattern", "scope", "biases", "seed"}
    of_pruning = {"sparsity", "granularity"} if method != "dense" else set()
    of_adjusting = {"prune_every", "lr_restart", "zero_moments"}
    if method not in ("parp-p", "gmp"):
        of_adjusting = set()
    others = {"projection", "init_mask"} & OPTIONS_TAKEN[method]
    assert OPTIONS_TAKEN[method] == of_all | of_pruning | of_adjusting | own | others


def test_every_option_of_pruning_is_taken_by_a_method() -> None:
    names = {each.name for each in fields(MethodOptions)}
    assert names == set().union(*OPTIONS_TAKEN.values())


@pytest.mark.parametrize("method", SCHEDULES)
def test_a_method_says_whether_it_has_several_stages(method: str) -> None:
    schedule = build_schedule(method, MethodOptions(sparsity=0.5))
    assert schedule.has_stages == (len(schedule.stages) > 1)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--method dense --sparsity 0.5", "--sparsity is not for dense: use it with rp, mpi"),
        ("--method parp --growth cubic", "--growth is not for parp: use it with parp-p; left out"),
        ("--method mpi --prune-every 5", "--prune-every is not for mpi: use it with parp, parp-p"),
        (
            "--method parp --reuse runs/a",
            "--reuse is not for parp: use it with omp, imp, parp-mask",
        ),
        ("--distill-hidden 0.5", "--distill-hidden is for a run with a teacher: give --teacher"),
        ("--target char --phones 61", "--phones is for another target: give --target phone"),
        ("--subword-vocab 50", "--subword-vocab is for another target: give --target subword"),
    ],
)
def test_option_that_changes_nothing_is_left_out_with_one_line(
    capsys: pytest.CaptureFixture[str], flags: str, said: str
) -> None:
    given = flags.split()
    options = _parse(*given)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(said)
    assert line.endswith("; left out")
    name = given[-2].removeprefix("--").replace("-", "_")
    assert getattr(options, name) == next(e.default for e in fields(options) if e.name == name)


def test_option_of_a_file_that_changes_nothing_is_left_out_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.toml").write_text("prune_every = 5\nsparsity = 0.5\n")
    recipe = ("--config", str(tmp_path / "recipe.toml"))
    assert _parse(*recipe).sparsity == 0.5
    assert capsys.readouterr().err == ""
    assert _parse(*recipe, "--method", "omp").sparsity == 0.5
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("--prune-every is not for omp: use it with parp")


@pytest.mark.parametrize("flags", ["--init-mask m.pt", "--projection obs"])
def test_option_without_which_a_run_would_be_another_is_refused(flags: str) -> None:
    flag = flags.split()[0]
    with pytest.raises(ValueError, match=f"{flag} is not for omp: use it with mpi, parp"):
        _parse("--method", "omp", "--sparsity", "0.5", *flags.split())


def test_options_of_two_methods_at_once_are_refused_in_python() -> None:
    with pytest.raises(ValueError, match="--growth is not for parp: use it with parp-p, or leave"):
        TrainOptions(model="w2v2-demo", sparsity=0.5, **{"growth": "cubic"})


def test_method_without_a_sparsity_says_that_it_prunes_nothing(
    small_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--method", "parp", "--data", str(small_corpus), "--steps", "1", "--device", "cpu"]
    assert train.main([*MODEL, *flags, "--out", str(tmp_path / "run")]) == 0
    assert "parp prunes nothing at sparsity 0: give --sparsity" in capsys.readouterr().err


def test_latent_decay_of_weights_that_are_not_latent_is_refused() -> None:
    options = MethodOptions(sparsity=0.5, **{"latent_decay": 0.1})
    build_schedule("parp-latent", options)
    with pytest.raises(ValueError, match="--latent-decay is for gmp with --latent"):
        build_schedule("gmp", options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dense_share": 0.0}, "--dense-share 0 leaves one"),
        ({"lr_restart": True}, "two schedules: leave one out"),
    ],
)
def test_rate_of_phases_that_are_not_there_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MethodOptions(sparsity=0.5, **{"rate_per_phase": True, **options})


def test_rate_per_phase_is_refused_where_the_dense_share_has_no_step() -> None:
    options = MethodOptions(sparsity=0.5, **{"rate_per_phase": True, "dense_share": 0.01})
    schedule = build_schedule("gmp", options)
    schedule.start({"w": torch.ones(4)}, 100)
    with pytest.raises(ValueError, match="none of the 10 steps"):
        schedule.start({"w": torch.ones(4)}, 10)


def test_options_of_other_methods_in_an_older_run_are_no_difference() -> None:
    flags = ("--method", "omp", "--sparsity", "0.5")
    now = recorded_options(_parse(*flags))
    older = now | {"prune_every": 20, "cooldown": 0.2, "distill_hidden": 0.5}
    del older["granularity"]
    then = as_recorded_now(older)
    assert {name: then[name] for name in now} == now


def test_help_says_which_methods_an_option_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _parse("--help")
    said = " ".join(capsys.readouterr().out.split())
    assert "--growth linear|cubic parp-p: how the sparsity rises" in said
    assert "--sparsity FLOAT not dense: fraction" in said


def test_one_option_declared_by_two_classes_is_a_mistake_of_the_programmer() -> None:
    @dataclass(frozen=True, kw_only=True)
    class First:
        pace: int = option("how fast", 1)

    @dataclass(frozen=True, kw_only=True)
    class Second:
        pace: int = option("how fast", 2)

    with pytest.raises(TypeError, match="option pace is declared by First and by Second"):

        @with_fields_of([First, Second])
        @dataclass(frozen=True, kw_only=True)
        class Both:
            pass
