"""The program as ``pip install .`` leaves it, in an environment of its own."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import version
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).parent.parent
SOURCES = ("train.py", "eval.py", "models", "data", "pruning")
METADATA = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE")
SWEEP = """
out = "study"
[train]
model = "w2v2-demo"
[grid]
method = ["dense"]
"""


def _run(*command: str | Path, cwd: Path) -> str:
    environment = {key: os.environ[key] for key in os.environ if not key.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the console scripts of a fresh environment with our wheel in it."""
    folder = tmp_path_factory.mktemp("install")
    source, environment = folder / "source", folder / "environment"
    ignored = shutil.ignore_patterns("__pycache__", "demo", "TIMIT")
    for name in SOURCES[2:]:
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in (*SOURCES[:2], *METADATA):
        shutil.copy(ROOT / name, source / name)

    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    build = ("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder)
    _run(*pip, *build, source, cwd=folder)
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    (wheel,) = folder.glob("parp-*.whl")
    _run(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)

    # What the wheel needs stands in this environment; an editable parp in it stays unseen.
    (library,) = environment.glob("lib/python*/site-packages")
    (library / "needed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment / "bin"


def test_installed_program_trains_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    options = ("--model", "w2v2-demo", "--sparsity", "0.6", "--data", "demo", "--steps", "3")
    said = _run(installed / "parp-train", *options, "--out", "run", cwd=tmp_path)
    assert said.splitlines()[-1] == "parp-eval --ckpt run/best.pt"
    assert sorted(os.listdir(tmp_path)) == ["data", "run"]
    assert json.loads((tmp_path / "run" / "results.json").read_text())["steps"] == 3
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["versions"]["parp"] == version("parp")
    assert config["git"] is None


def test_installed_sweep_finds_the_installed_train_py(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(SWEEP)
    said = _run(installed / "parp-sweep", "--config", "study.toml", "--dry-run", cwd=tmp_path)
    script = Path(shlex.split(said)[2])
    assert script.name == "train.py"
    assert script.is_relative_to(installed.parent)
    assert script.is_file()


@pytest.mark.parametrize("name", ["train", "eval", "convert", "sweep", "report"])
def test_every_program_is_installed_under_its_name(installed: Path, name: str) -> None:
    script = (installed / f"parp-{name}").read_text()
    assert "import main" in script
