"""docs/python.md, run from top to bottom on a run of the demo model."""

import re
from pathlib import Path

import pytest

from eval import Transcriber
from models.checkpoint import load_checkpoint
from pruning.masks import measured_sparsity
from pruning.scope import select_parameters
from train import main

PAGE = Path(__file__).parent.parent / "docs" / "python.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def run_folder(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("doc") / "run"
    flags = ["--model", "w2v2-demo", "--sparsity", "0.6", "--steps", "2", "--device", "cpu"]
    flags += ["--data", str(small_corpus), "--batch-seconds", "20", "--out", str(folder)]
    assert main(flags) == 0
    return folder


@pytest.fixture(scope="module")
def names(run_folder: Path) -> dict:
    """What the page's Python leaves defined."""
    found: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(run_folder)
        for block in BLOCKS:
            exec(block, found)
    return found


def test_every_example_is_at_most_ten_lines() -> None:
    assert len(BLOCKS) == 4
    assert all(len(block.strip().splitlines()) <= 10 for block in BLOCKS)


def test_array_is_transcribed_as_in_eval(names: dict, run_folder: Path) -> None:
    transcript = names["transcript"]
    assert transcript.seconds == pytest.approx(3.0)
    again = Transcriber(load_checkpoint(run_folder / "best.pt"))
    assert again.transcribe(names["samples"], sample_rate=44_100) == transcript


def test_pruned_model_has_the_sparsity(names: dict, run_folder: Path) -> None:
    checkpoint = load_checkpoint(run_folder / "pruned.pt")
    parameters = dict(checkpoint.model.named_parameters())
    params = select_parameters(parameters, checkpoint.run.scope_pattern or "")
    assert measured_sparsity(params) == pytest.approx(0.8, abs=1e-5)


def test_masks_are_those_of_the_run(names: dict, run_folder: Path) -> None:
    masks = load_checkpoint(run_folder / "best.pt").masks
    assert masks.keys() == names["file"].masks.keys()
    # 20 % of the weights are kept by both, 40 % by either: those of 0.8 lie within those of 0.6.
    assert names["mask_iou"](masks, names["checkpoint"].masks) == pytest.approx(0.5, abs=1e-4)
