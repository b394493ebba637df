"""Files of runs and reports that are JSON and hold something else: one line, whatever it is."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pruning.report.__main__ import main
from pruning.report.records import dump_runs, load_runs
from tests.run_folders import write_run

MISSING = object()
OTHERS: tuple[Any, ...] = (
    *(MISSING, None, "text", -1, 0, 1, 3.5, 1e308, 10**400, True, float("nan")),
    *([], {}, [None], [[]], {"a": {}}, "=S", ["x", "y"]),
)
FILES = ("config.json", "results.json", "metrics.jsonl", "test.jsonl")
LIST_ITEMS = 2  # of a list, and of what an object has under names that differ, such as tensors

Place = tuple[str | int, ...]


def _places(content: Any, at: Place = ()) -> Iterator[Place]:
    """Yield every place in nested values, of many alike the first ones."""
    if at:
        yield at
    if isinstance(content, dict):
        keys = list(content)
        alike = at and at[-1] == "tensors"
        for key in keys[:LIST_ITEMS] if alike else keys:
            yield from _places(content[key], (*at, key))
    elif isinstance(content, list):
        for number in range(min(LIST_ITEMS, len(content))):
            yield from _places(content[number], (*at, number))


def _changed(content: Any, place: Place, value: Any) -> Any:
    content = copy.deepcopy(content)
    holder = content
    for key in place[:-1]:
        holder = holder[key]
    if value is MISSING:
        del holder[place[-1]]
    else:
        holder[place[-1]] = value
    return content


def _read(path: Path) -> Any:
    text = path.read_text()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    return json.loads(text)


def _write(path: Path, content: Any) -> None:
    is_lines = path.suffix == ".jsonl" and isinstance(content, list)
    lines = content if is_lines else [content]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _report(source: Path, out: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Make a report; where it is refused, check that it is in one line that names file or run."""
    capsys.readouterr()
    status = main([str(source), "--out", str(out), "--no-plots"])
    errors = capsys.readouterr().err
    assert status in (0, 2), name
    if status == 2:
        assert len(errors.splitlines()) == 1, errors
        assert any(known in errors for known in (name, "dense, parp: ", "parp, dense: ")), errors


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two runs of one group, of few utterances and one layer."""
    root = tmp_path / "runs"
    write_run(root / "dense", "dense", operations=["=S="] * 10, layers=1)
    write_run(root / "parp", operations=["=S="] * 10, layers=1)
    return root


def _cases(content: Any, generator: np.random.Generator, count: int | None) -> list[Any]:
    cases = [(place, value) for place in _places(content) for value in OTHERS]
    if count is None:
        return cases
    return [cases[i] for i in generator.permutation(len(cases))[:count]]


def _probe_folders(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int | None
) -> int:
    generator = np.random.default_rng(0)
    probed = 0
    for name in FILES:
        path = runs / "parp" / name
        content = _read(path)
        for place, value in _cases(content, generator, count):
            _write(path, _changed(content, place, value))
            _report(runs, tmp_path / "out", capsys, name)
            probed += 1
        _write(path, content)
    return probed


def _probe_runs_file(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int | None
) -> int:
    path = tmp_path / "runs.json"
    path.write_text(dump_runs(load_runs([runs])))
    content = _read(path)
    cases = _cases(content, np.random.default_rng(1), count)
    for place, value in cases:
        _write(path, _changed(content, place, value))
        _report(path, tmp_path / "out", capsys, "runs.json")
    return len(cases)


def test_some_values_of_other_types_in_run_folders_are_one_line(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _probe_folders(runs, tmp_path, capsys, 8) == 8 * len(FILES)


def test_some_values_of_other_types_in_a_runs_file_are_one_line(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _probe_runs_file(runs, tmp_path, capsys, 30) == 30


@pytest.mark.long
def test_every_value_of_another_type_in_run_folders_is_one_line(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _probe_folders(runs, tmp_path, capsys, None) > 2000


@pytest.mark.long
def test_every_value_of_another_type_in_a_runs_file_is_one_line(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _probe_runs_file(runs, tmp_path, capsys, None) > 2000


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("results", "cost", "steps"), "many", "runs[1].results.cost.steps is 'many', expected a"),
        (("results", "per", "rate"), None, "runs[1].results.per.rate is None, expected number"),
        (("curves", "reprune", 0, "iou_first"), MISSING, "reprune[0].iou_first is missing"),
        (("utterances", 3, "operations"), "=X", "utterances[3].operations is '=X', expected"),
        (("options", "lr"), [1], "runs[1].options.lr"),
        (("results", "per", "rate"), 0.25, "results.json has 0.25"),
        (("utterances", 3, "operations"), "SSSS", "its alignments have"),
    ],
)
def test_a_wrong_value_is_named_by_file_and_place(
    runs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    place: Place,
    value: Any,
    said: str,
) -> None:
    path = tmp_path / "runs.json"
    path.write_text(dump_runs(load_runs([runs])))
    _write(path, _changed(_read(path), ("runs", 1, *place), value))
    assert main([str(path), "--out", str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err
    assert str(path) in errors
    assert said.removesuffix(" a") in errors
    assert not (tmp_path / "out").exists()
