"""The worked example of docs/method.md, followed to the letter in a copy of the program."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

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


# The sweep of the page's method, its runs one after another in one process, then the report.
SWEEP = '''
import sys
from pathlib import Path
import train
from pruning.report.__main__ import main as report
from pruning.sweep import __main__ as sweep

class InThisProcess:
    def __init__(self, config, environment):
        self.ended = []
    def is_free(self):
        return not self.ended
    def submit(self, name, command, log):
        self.ended.append((name, train.main([*command[2:], "--device=cpu"])))
    def running(self):
        return [name for name, _ in self.ended]
    def wait(self):
        ended, self.ended = self.ended, []
        return ended

sweep.LocalExecutor = InThisProcess
Path("sweep.toml").write_text(f"""
out = "study"
[train]
model = "w2v2-demo"
data = "{sys.argv[1]}"
batch_seconds = 4
steps = 2
[grid]
method = ["parp", "parp-relative"]
sparsity = [0.6]
typical = ["rms", "mean"]
""")
status = sweep.main(["--config", "sweep.toml"])
sys.exit(status or report(["study", "--out", "report", "--no-plots"]))
'''


def test_example_method_and_its_option_are_swept_and_reported(
    extended: Path, small_corpus: Path
) -> None:
    (extended / "study.py").write_text(SWEEP)
    done = _python(extended, "study.py", str(small_corpus))
    assert done.returncode == 0, done.stderr
    runs = {"parp-0.6", "parp-relative-0.6-typicalrms", "parp-relative-0.6-typicalmean"}
    assert {path.parent.name for path in (extended / "study").glob("*/results.json")} == runs
    results = [json.loads((extended / "study" / run / "results.json").read_text()) for run in runs]
    assert {round(each["sparsity"]["in_scope"], 4) for each in results} == {0.6}
    page = (extended / "report" / "results.md").read_text("utf-8")
    assert "| parp-relative, typical mean |" in page


def test_example_method_passes_the_property_tests(extended: Path) -> None:
    selection = ["-q", "-k", "parp-relative", "-p", "no:cacheprovider"]
    done = _python(extended, "-m", "pytest", "tests/test_schedule_properties.py", *selection)
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    assert int(passed[1]) >= 15
