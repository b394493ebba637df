import ast
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("models", "data", "pruning")
EVERYONE_STANDS_ON = {"data.files", "data.options"}
PROGRAMS = (
    "train.py",
    "eval.py",
    "pruning/run",
    "pruning/sweep",
    "pruning/report",
    "models/convert/__main__.py",
)
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


def _words_of_code(tree: ast.AST) -> Iterator[str]:
    """Yield every name and every string that is not documentation."""
    documentation = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.alias | ast.ClassDef | ast.FunctionDef | ast.arg):
            yield getattr(node, "id", None) or getattr(node, "name", None) or node.arg
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Constant) and id(node) not in documentation:
            yield str(node.value)


@pytest.mark.parametrize("path", SOURCES, ids=_id)
def test_only_its_folder_and_the_registry_know_a_family_by_name(path: Path) -> None:
    from models import FAMILIES

    folders = {
        name: Path(inspect.getfile(family.model)).parent for name, family in FAMILIES.items()
    }
    if path.parent in folders.values() or path == ROOT / "models/__init__.py":
        return
    names = {
        word.lower()
        for family in FAMILIES.values()
        for word in (family.name, family.model.__name__, family.hugging_face.model_type)
    }
    names |= {preset.split("-")[0] for family in FAMILIES.values() for preset in family.presets}
    words = set(_words_of_code(ast.parse(path.read_text("utf-8"))))
    known = re.compile("|".join(sorted(map(re.escape, names))), re.IGNORECASE)
    assert not [word for word in words if known.search(word)]


@pytest.mark.parametrize("path", SOURCES, ids=_id)
def test_no_source_beside_the_methods_knows_a_method_by_name(path: Path) -> None:
    from pruning.schedules import SCHEDULES

    folder = ROOT / "pruning"
    if path in (folder / "schedules.py", folder / "baselines.py"):
        return
    words = list(_words_of_code(ast.parse(path.read_text("utf-8"))))
    assert not {cls.__name__ for cls in SCHEDULES.values()} & set(words)
    # These two are also the program's name and a word for an ordinary model: only "is it?" counts.
    ordinary = {"dense", "parp"}
    named = "|".join(map(re.escape, sorted({*SCHEDULES} - ordinary, key=len, reverse=True)))
    assert not [word for word in words if re.search(rf"(?<![\w-])({named})(?![\w-])", word)]
    compared = [
        side.value
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Compare) and _says_method(node)
        for side in (node.left, *node.comparators)
        if isinstance(side, ast.Constant)
    ]
    assert not ordinary & {*compared}


def _says_method(node: ast.Compare) -> bool:
    return "method" in ast.unparse(node)


def _lines_of_code(path: Path) -> list[str]:
    lines = (line.strip() for line in path.read_text("utf-8").splitlines())
    words = ("#", "import ", "from ")
    return [line for line in lines if re.search(r"\w", line) and not line.startswith(words)]


def test_no_six_lines_are_copied_between_packages() -> None:
    found: dict[tuple[str, ...], Path] = {}
    for path in SOURCES:
        lines = _lines_of_code(path)
        for start in range(len(lines) - 5):
            other = found.setdefault(tuple(lines[start : start + 6]), path)
            assert _id(other).split("/")[0] == _id(path).split("/")[0], (other, path, lines[start])
