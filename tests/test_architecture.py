import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("models", "data", "pruning")
EVERYONE_STANDS_ON = {"data.files", "data.options"}
PROGRAMS = ("train.py", "eval.py", "pruning/sweep", "pruning/report", "models/convert/__main__.py")
RUN_TIME = {"torch", "numpy", "sentencepiece", "tqdm"}
SOURCES = [
    *(path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))),
    ROOT / "train.py",
    ROOT / "eval.py",
]


def _id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _module(path: Path) -> str:
    name = _id(path).removesuffix(".py").replace("/", ".")
    return name.removesuffix(".__init__")


MODULES = {_module(path): path for path in SOURCES}


def _imports(tree: ast.AST) -> Iterator[str]:
    """Yield the modules that are imported anywhere, a name of a package as the module it is."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where a name comes from"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module or ""


def _top_level_imports(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from _imports(node)


def _is_program(path: Path) -> bool:
    return _id(path).startswith(PROGRAMS)


@pytest.mark.parametrize("path", SOURCES, ids=_id)
def test_packages_are_strangers_that_stand_on_files_and_options(path: Path) -> None:
    imported = set(_imports(ast.parse(path.read_text("utf-8"))))
    ours = {name for name in imported if name.split(".")[0] in {*PACKAGES, "train", "eval"}}
    if not _is_program(path):
        package = _id(path).split("/")[0]
        assert {n for n in ours if n.split(".")[0] != package} <= EVERYONE_STANDS_ON
    assert not imported & {"tests", "benchmarks"}


@pytest.mark.parametrize("path", SOURCES, ids=_id)
def test_modules_import_run_time_packages_only(path: Path) -> None:
    known = RUN_TIME | set(sys.stdlib_module_names) | {*PACKAGES, "train", "eval"}
    assert {name.split(".")[0] for name in _top_level_imports(path)} <= known


def test_no_modules_import_one_another_in_a_circle() -> None:
    arrows = {
        name: {
            target
            for target in _imports(ast.parse(path.read_text("utf-8")))
            if target in MODULES and target != name
        }
        for name, path in MODULES.items()
    }
    while leaves := [name for name, targets in arrows.items() if not targets & arrows.keys()]:
        for name in leaves:
            del arrows[name]
    assert not arrows


def test_models_never_import_their_converters() -> None:
    for path in (ROOT / "models").rglob("*.py"):
        if path.is_relative_to(ROOT / "models/convert"):
            continue
        names = set(_imports(ast.parse(path.read_text("utf-8"))))
        assert not any(name.startswith("models.convert") for name in names), path


@pytest.mark.parametrize("path", SOURCES, ids=_id)
def test_functions_stay_under_sixty_lines(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            body_start = node.body[1] if ast.get_docstring(node) and node.body[1:] else node.body[0]
            assert (node.end_lineno or 0) - body_start.lineno + 1 <= 60, node.name
