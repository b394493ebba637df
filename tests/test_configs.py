"""The files in configs/ are what the programs read today."""

from pathlib import Path

import pytest

from data.options import parse_options
from models.training.recipes import recipe_of
from pruning.schedules import build_schedule
from pruning.sweep.config import load_config
from pruning.sweep.plan import first_runs
from train import TrainOptions

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.toml"))
RECIPES = [path for path in CONFIGS if "[train]" not in path.read_text("utf-8")]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_read_and_checked(path: Path) -> None:
    flags = ["--config", str(path), "--sparsity", "0.6"]
    options = parse_options(TrainOptions, flags, "")
    recipe_of(options.model, options.target, options)
    build_schedule("parp", options)


@pytest.mark.parametrize(
    ("name", "steps", "mask_time", "mask_channel"),
    [("10min", 12000, 0.75, 0.512), ("1h", 15000, 0.75, 0.256), ("10h", 20000, 0.65, 0.256)],
)
def test_librispeech_recipes_are_the_authors(
    name: str, steps: int, mask_time: float, mask_channel: float
) -> None:
    path = next(path for path in RECIPES if path.stem == f"w2v2-librispeech-{name}")
    options = parse_options(TrainOptions, ["--config", str(path)], "")
    assert (options.steps, options.mask_time, options.mask_channel) == (
        steps,
        mask_time,
        mask_channel,
    )
    assert options.batch_seconds is not None
    assert options.batch_seconds * options.grad_accum == 1600  # seconds of audio an update


@pytest.mark.parametrize(
    "path", [path for path in CONFIGS if path not in RECIPES], ids=lambda path: path.stem
)
def test_sweep_is_read_and_expands(path: Path) -> None:
    config = load_config(path)
    runs = first_runs(config)
    asked = {method for grid in config.grids for method in grid["method"]}
    assert {run.options["method"] for run in runs} == asked
    assert len({run.name for run in runs}) == len(runs)
