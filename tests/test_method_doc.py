"""The worked example of docs/method.md, followed to the letter in a copy of the program."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the program with the example's class and line put where the page says."""
    copy = tmp_path_factory.mktemp("copy")
    for name in ("models", "data", "pruning"):
        ignore = shutil.ignore_patterns("__pycache__", "demo", "TIMIT")
        shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    for name in ("train.py", "eval.py", "setup.cfg", "tests/test_schedule_properties.py"):
        (copy / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    page = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    class_block, line_block = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    schedules = copy / "pruning" / "schedules.py"
    code = schedules.read_text(encoding="utf-8")
    opening = "SCHEDULES: dict[str, type[Schedule]] = {\n"
    assert code.count(opening) == 1
    schedules.write_text(code.replace(opening, f"{class_block}\n\n{opening}{line_block}"))
    return copy


def _python(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *args]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_example_method_trains_from_the_command_line(extended: Path, small_corpus: Path) -> None:
    flags = "--model w2v2-demo --method parp-relative --sparsity 0.6 --steps 2 --device cpu".split()
    corpus = ["--data", str(small_corpus), "--batch-seconds", "4", "--out", "run"]
    done = _python(extended, "train.py", *flags, *corpus)
    assert done.returncode == 0, done.stderr
    assert "0.600000 in scope" in done.stdout


def test_example_method_passes_the_property_tests(extended: Path) -> None:
    selection = ["-q", "-k", "parp-relative", "-p", "no:cacheprovider"]
    done = _python(extended, "-m", "pytest", "tests/test_schedule_properties.py", *selection)
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    assert int(passed[1]) >= 15
