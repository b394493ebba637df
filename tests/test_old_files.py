"""Files that version 0.1.0 left, written by tests/golden/make_version_1.py, are still read."""

from pathlib import Path

import pytest
import torch

from data.files import read_json
from data.options import parse_options
from data.run_folder import EventLog, open_run_folder
from models.checkpoint import load_checkpoint, save_checkpoint
from pruning.mask_file import check_masks, load_masks
from pruning.report.records import load_records
from pruning.run.options import TrainOptions, as_recorded_now, recorded_options
from pruning.scope import select_parameters

OLD = Path(__file__).parent / "golden" / "version_1"


def test_old_checkpoint_gives_the_logits_that_it_gave():
    model = load_checkpoint(OLD / "best.pt").model.eval()
    content = torch.load(OLD / "logits.pt", weights_only=True)
    with torch.no_grad():
        logits = model.logits(content["waveform"])
    assert (logits - content["logits"]).abs().max() <= 1e-5  # observed 0; processors may round


def test_old_checkpoint_saved_anew_says_nothing_of_padding(tmp_path):
    save_checkpoint(tmp_path / "new.pt", load_checkpoint(OLD / "best.pt"))
    content = torch.load(tmp_path / "new.pt", weights_only=True)
    assert "padding" not in content["config"]
    before = torch.load(OLD / "best.pt", weights_only=True)
    assert before["config"].keys() - content["config"].keys() == {"padding"}
    assert all(torch.equal(content["weights"][k], v) for k, v in before["weights"].items())


def test_old_mask_file_fits_the_parameters_that_it_was_made_for():
    checkpoint = load_checkpoint(OLD / "best.pt")
    scope = checkpoint.run.scope_pattern
    params = select_parameters(dict(checkpoint.model.named_parameters()), scope)
    mask_file = load_masks(OLD / "masks.pt")
    check_masks(mask_file, params, "w2v2-demo", "encoder")
    assert all(torch.equal(mask_file.masks[name], params[name] != 0) for name in params)


def test_old_run_folder_is_reported(tmp_path):
    (record,) = load_records([OLD / "run"])
    assert record["results"]["per"] == read_json(OLD / "run" / "results.json")["per"]


def test_old_run_folder_may_go_on_with_its_options(tmp_path):
    options = read_json(OLD / "run" / "config.json")["options"]
    open_run_folder(OLD / "run", options, resuming=True)


def test_old_run_folder_goes_on_under_options_that_are_newer_than_it():
    begun = read_json(OLD / "run" / "config.json")["options"]
    flags = ["--model", "w2v2-demo", "--sparsity", "0.6", "--data", "demo", "--epochs", "6"]
    options = recorded_options(parse_options(TrainOptions, flags, ""))
    assert options.keys() > begun.keys()
    open_run_folder(OLD / "run", options, True, as_recorded_now)
    with pytest.raises(ValueError, match="splits was 'train,dev,test'"):
        open_run_folder(OLD / "run", options | {"splits": "a,b,c"}, True, as_recorded_now)


def test_old_events_up_to_a_step_are_kept(tmp_path):
    text = (OLD / "run" / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(text)
    EventLog(tmp_path / "metrics.jsonl", at=(0, 10_000))
    assert (tmp_path / "metrics.jsonl").read_text() == text


def test_options_of_an_old_run_are_still_those_that_the_same_flags_give():
    old = read_json(OLD / "run" / "config.json")["options"]
    flags = ["--model", "w2v2-demo", "--sparsity", "0.6", "--data", "demo", "--epochs", "6"]
    now = recorded_options(parse_options(TrainOptions, flags, ""))
    assert now == {key: value for key, value in as_recorded_now(old).items() if key in now}
    assert {key for key in old if now[key] != old[key]} <= {"cooldown"}  # which PARP does not take
