import csv
import json
from pathlib import Path

import pytest

from pruning.report.records import (
    CURVE_POINTS,
    Record,
    choose_tuned,
    dump_runs,
    load_records,
    load_runs,
    write_csv,
)
from tests.run_folders import write_run


def _names(records: list[Record]) -> list[str]:
    return [record["name"] for record in records]


def _saved(path: Path, source: Path) -> Path:
    path.write_text(dump_runs(load_runs([source])))
    return path


def test_runs_are_found_at_any_depth(tmp_path: Path) -> None:
    write_run(tmp_path / "a" / "b" / "run")
    assert _names(load_records([tmp_path])) == ["run"]


def test_unfinished_runs_are_left_out(tmp_path: Path) -> None:
    write_run(tmp_path / "finished")
    (write_run(tmp_path / "unfinished", seed=1) / "results.json").unlink()
    assert _names(load_records([tmp_path])) == ["finished"]


def test_results_that_are_not_of_a_run_are_left_out(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    (tmp_path / "evaluated").mkdir()
    (tmp_path / "evaluated" / "results.json").write_text("{}")
    assert _names(load_records([tmp_path])) == ["run"]


def test_a_run_given_twice_counts_once(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    assert _names(load_records([folder, tmp_path])) == ["run"]


def test_runs_are_sorted_by_what_was_run(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "parp", 0.7)
    write_run(tmp_path / "b", "parp", 0.5, seed=1)
    write_run(tmp_path / "c", "parp", 0.5)
    write_run(tmp_path / "d", "dense")
    assert _names(load_records([tmp_path])) == ["d", "c", "b", "a"]


def test_folders_of_one_name_are_told_apart_by_their_parents(tmp_path: Path) -> None:
    write_run(tmp_path / "phone" / "run")
    write_run(tmp_path / "text" / "run", target="text")
    assert _names(load_records([tmp_path])) == ["phone/run", "text/run"]


def test_saved_runs_read_as_the_folders_did(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "dense", "dense")
    write_run(tmp_path / "runs" / "parp")
    saved = _saved(tmp_path / "runs.json", tmp_path / "runs")
    assert load_records([saved]) == load_records([tmp_path / "runs"])


def test_saved_runs_and_new_folders_go_together(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "first")
    saved = _saved(tmp_path / "runs.json", tmp_path / "runs")
    write_run(tmp_path / "runs" / "second", seed=1)
    assert _names(load_records([saved, tmp_path / "runs"])) == ["first", "second"]


def test_train_curve_is_thinned_and_keeps_its_last_point(tmp_path: Path) -> None:
    curves = load_records([write_run(tmp_path / "run")])[0]["curves"]
    assert len(curves["train"]) <= CURVE_POINTS
    assert curves["train"][-1]["step"] == 200
    assert [event["step"] for event in curves["reprune"]] == [50, 100, 150, 200]


def test_nothing_finished_names_the_folder_and_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"no results.json under {tmp_path}: finish a run, or"):
        load_records([tmp_path])


def test_missing_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere does not exist: give a run folder"):
        load_records([tmp_path / "nowhere"])


@pytest.mark.parametrize("name", ["results.json", "config.json", "metrics.jsonl", "test.jsonl"])
def test_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    path = write_run(tmp_path / "run") / name
    path.write_text(path.read_text()[:-5])
    with pytest.raises(ValueError, match=f"run/{name} is damaged .*: run it again, or leave"):
        load_records([tmp_path])


def test_missing_file_is_named(tmp_path: Path) -> None:
    (write_run(tmp_path / "run") / "test.jsonl").unlink()
    with pytest.raises(ValueError, match=r"cannot read .*test.jsonl .*: run it again"):
        load_records([tmp_path])


def test_results_that_lack_a_value_are_refused(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run") / "results.json"
    results = json.loads(path.read_text())
    del results["cost"], results["bytes"]
    path.write_text(json.dumps(results))
    with pytest.raises(ValueError, match="run/results.json: cost is missing: run it again"):
        load_records([tmp_path])


def test_results_without_a_rate_are_refused(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run") / "results.json"
    results = json.loads(path.read_text())
    del results["per"]
    path.write_text(json.dumps(results))
    with pytest.raises(
        ValueError, match="results.json: per or wer or cer is missing: run it again"
    ):
        load_records([tmp_path])


@pytest.mark.parametrize("content", ["[]", "{}", '{"runs": []}'])
def test_json_that_is_no_report_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "runs.json").write_text(content)
    with pytest.raises(ValueError, match="runs.json (is|holds) no .*: give .*, or a run folder"):
        load_records([tmp_path / "runs.json"])


def test_runs_of_another_version_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "run")
    saved = _saved(tmp_path / "runs.json", tmp_path / "runs")
    saved.write_text(saved.read_text().replace('"version":1', '"version":9', 1))
    with pytest.raises(ValueError, match="version 9, this program reads 1"):
        load_records([saved])


def test_damaged_saved_runs_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "run")
    saved = _saved(tmp_path / "runs.json", tmp_path / "runs")
    saved.write_text(saved.read_text()[:-20])
    with pytest.raises(ValueError, match=r"runs.json is damaged"):
        load_records([saved])


@pytest.mark.parametrize("rate", [0.2, 0.3])
def test_run_that_was_repeated_counts_as_its_record(tmp_path: Path, rate: float) -> None:
    write_run(tmp_path / "old" / "run", rate=0.2)
    saved = _saved(tmp_path / "runs.json", tmp_path / "old")
    folder = write_run(tmp_path / "new" / "run", rate=rate)
    runs = load_runs([saved, tmp_path / "new"])
    assert runs.records == load_records([saved])
    is_same = rate == 0.2
    assert runs.repeated == ([] if is_same else ["run"])
    assert runs.folders == ({"run": folder} if is_same else {})


def test_two_different_runs_of_one_name_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "old" / "run")
    saved = _saved(tmp_path / "runs.json", tmp_path / "old")
    write_run(tmp_path / "new" / "run", seed=1)
    with pytest.raises(ValueError, match="two different runs are called 'run': rename"):
        load_records([saved, tmp_path / "new"])


def test_dev_chooses_the_learning_rate_and_not_test(tmp_path: Path) -> None:
    write_run(tmp_path / "low", lr=1e-4, dev_rate=0.3, rate=0.1)
    write_run(tmp_path / "high", lr=1e-3, dev_rate=0.2, rate=0.4)
    assert choose_tuned(load_records([tmp_path])) == {"high"}


def test_choice_compares_the_shared_seeds_and_keeps_every_seed(tmp_path: Path) -> None:
    write_run(tmp_path / "low-0", lr=1e-4, dev_rate=0.2)
    write_run(tmp_path / "low-1", lr=1e-4, seed=1, dev_rate=0.9)
    write_run(tmp_path / "high-0", lr=1e-3, dev_rate=0.3)
    assert choose_tuned(load_records([tmp_path])) == {"low-0", "low-1"}


def test_choice_without_shared_seeds_takes_the_means(tmp_path: Path) -> None:
    write_run(tmp_path / "low", lr=1e-4, dev_rate=0.3)
    write_run(tmp_path / "high", lr=1e-3, seed=1, dev_rate=0.2)
    assert choose_tuned(load_records([tmp_path])) == {"high"}


def test_choice_among_equals_is_the_lower_rate(tmp_path: Path) -> None:
    write_run(tmp_path / "high", lr=1e-3)
    write_run(tmp_path / "low", lr=1e-4)
    assert choose_tuned(load_records([tmp_path])) == {"low"}


def test_each_setting_has_its_own_choice(tmp_path: Path) -> None:
    write_run(tmp_path / "a", sparsity=0.5, lr=1e-4, dev_rate=0.2)
    write_run(tmp_path / "b", sparsity=0.7, lr=1e-3, dev_rate=0.4)
    write_run(tmp_path / "c", "mpi", sparsity=0.5, lr=1e-3, dev_rate=0.3)
    write_run(tmp_path / "d", sparsity=0.5, lr=1e-3, dev_rate=0.3, prune_every=5)
    assert choose_tuned(load_records([tmp_path])) == {"a", "b", "c", "d"}


def _table(tmp_path: Path) -> list[dict[str, str]]:
    write_csv(load_records([tmp_path / "runs"]), tmp_path / "results.csv")
    with open(tmp_path / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_csv_has_a_line_for_each_run_with_its_errors(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "run", operations=["=SD=", "==I"], dev_rate=0.25)
    write_run(tmp_path / "runs" / "other", operations=["====", "=="], lr=1e-3, dev_rate=0.5)
    first, second = _table(tmp_path)
    wanted = {"substitutions": "1", "deletions": "1", "insertions": "1", "reference_tokens": "6"}
    wanted |= {"rate_name": "per", "test_rate": "0.5", "dev_rate": "0.25", "chosen": "1"}
    wanted |= {"method": "parp", "lr": "0.0001", "fine_tuning_runs": "1", "total_steps": "200"}
    assert wanted.items() <= first.items()
    assert (second["chosen"], second["test_rate"]) == ("0", "0.0")


def test_csv_holds_nothing_of_time_or_machine(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "runs" / "run")
    _table(tmp_path)
    before = (tmp_path / "results.csv").read_bytes()
    results = json.loads((folder / "results.json").read_text())
    results |= {"wall_seconds": 99.0, "real_time_factor": 9.0}
    results["cost"]["training_seconds"] = 999.0
    (folder / "results.json").write_text(json.dumps(results))
    config = json.loads((folder / "config.json").read_text())
    config |= {"device": "cuda", "git": "other", "machine": "other"}
    (folder / "config.json").write_text(json.dumps(config))
    _table(tmp_path)
    assert (tmp_path / "results.csv").read_bytes() == before


def test_csv_shows_the_options_in_which_runs_differ_and_no_others(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "a", prune_every=5)
    write_run(tmp_path / "runs" / "b", prune_every=50)
    rows = _table(tmp_path)
    assert sorted(row["prune_every"] for row in rows) == ["5", "50"]
    assert not {"init", "scope", "data"} & rows[0].keys()
