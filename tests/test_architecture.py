import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEAVES = ("models", "data", "pruning")
RUN_TIME = {"torch", "torchaudio", "numpy", "sentencepiece", "tqdm"}
SOURCES = [
    *(path for leaf in LEAVES for path in sorted((ROOT / leaf).rglob("*.py"))),
    ROOT / "train.py",
    ROOT / "eval.py",
]


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where a name comes from"
            yield node.module or ""


def _top_level_imports(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    for node in tree.body:
        if not isinstance(node, functions):
            if isinstance(node, ast.ClassDef):
                continue
            yield from _imports(node)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_leaf_packages_never_import_one_another(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    imported = {name.split(".")[0] for name in _imports(ast.parse(path.read_text("utf-8")))}
    allowed = {
        "train.py": {*LEAVES, "eval"},
        "eval.py": {*LEAVES},
    }.get(package, {package})
    assert imported & {*LEAVES, "train", "eval", "tests", "benchmarks"} <= allowed


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_import_run_time_packages_only(path: Path) -> None:
    known = RUN_TIME | set(sys.stdlib_module_names) | {*LEAVES, "eval"}
    assert {name.split(".")[0] for name in _top_level_imports(path)} <= known


def test_models_never_import_their_converters() -> None:
    for path in (ROOT / "models").glob("*.py"):
        names = set(_imports(ast.parse(path.read_text("utf-8"))))
        assert not any(name.startswith("models.convert") for name in names), path


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body_start = node.body[1] if ast.get_docstring(node) and node.body[1:] else node.body[0]
            assert (node.end_lineno or 0) - body_start.lineno + 1 <= 60, node.name
