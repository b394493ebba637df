"""Inputs computed once: frozen features, and the cache on disk."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pruning.run.plan
import train
from data import inputs as inputs_module
from data.inputs import LazyInputs, model_input
from data.timit import load_timit
from data.utterance import Utterance
from models import build_model, device
from models.checkpoint import load_checkpoint
from models.training.tasks import CTCTask

WAVEFORM = {"kind": "waveform", "normalize": True}
LOG_MEL = {"kind": "log_mel", "num_mels": 80, "audio_ctx": 5.0}
OWN = {"kind": "log_mel", "num_mels": 80, "audio_ctx": "own"}
FRONTENDS = pytest.mark.parametrize("frontend", [WAVEFORM, LOG_MEL, OWN], ids=str)


CPU = torch.device("cpu")


def load_inputs(*args: Any, spill: Path = Path("nowhere"), cache: Path | None = None) -> Any:
    return inputs_module.load_inputs(*args, CPU, spill, cache)


@pytest.fixture(scope="module")
def utterances(uneven_corpus: Path) -> list[Utterance]:
    return load_timit(uneven_corpus, "dev")


@pytest.fixture
def frozen(randomise: Any) -> CTCTask:
    quiet = {"mask_time_prob": 0.0, "mask_channel_prob": 0.0}
    model = randomise(build_model("w2v2-demo", vocab_size=9, **quiet), 0.02).double()
    model.feature_encoder.requires_grad_(False)
    return CTCTask(model, blank_id=0)


def test_features_computed_once_give_the_loss_and_gradients_of_the_plain_path(
    frozen: CTCTask, utterances: list[Utterance]
) -> None:
    waveforms = [model_input(u, WAVEFORM).double() for u in utterances]
    targets = [[1, 2, 3], [4, 5], [6]]
    results = []
    for inputs in (waveforms, frozen.prepare(waveforms)):
        frozen.model.zero_grad()
        loss = frozen.loss(inputs, targets)
        loss.backward()
        grads = [p.grad.clone() for p in frozen.model.parameters() if p.grad is not None]
        results.append((loss.detach(), grads))
    (plain, plain_grads), (fast, fast_grads) = results
    assert plain > 1
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-10)
    torch.testing.assert_close(fast_grads, plain_grads, rtol=0, atol=1e-10)


def test_features_computed_once_decode_to_the_same(
    frozen: CTCTask, utterances: list[Utterance]
) -> None:
    waveforms = [model_input(u, WAVEFORM).double() for u in utterances]
    plain = frozen.search(waveforms)
    assert any(plain)
    assert frozen.search(frozen.prepare(waveforms)) == plain


def test_nothing_is_computed_beforehand_where_the_feature_encoder_trains(
    utterances: list[Utterance],
) -> None:
    task = CTCTask(build_model("w2v2-demo", vocab_size=9), blank_id=0)
    waveforms = [model_input(utterances[0], WAVEFORM)]
    assert task.prepare(waveforms) is waveforms


def test_features_computed_together_are_those_computed_alone(
    frozen: CTCTask, utterances: list[Utterance]
) -> None:
    waveforms = [model_input(u, WAVEFORM).double() for u in utterances]
    together = frozen.prepare(waveforms)
    assert len({len(features) for features in together}) > 1
    for features, waveform in zip(together, waveforms, strict=True):
        torch.testing.assert_close(features, frozen.prepare([waveform])[0], rtol=0, atol=1e-12)


def test_a_group_of_inputs_is_computed_when_one_of_it_is_asked_for_and_once() -> None:
    asked: list[Sequence[int]] = []

    def compute(group: Sequence[int]) -> list[Tensor]:
        asked.append(group)
        return [torch.tensor(i) for i in group]

    inputs = LazyInputs(compute, [[2, 0], [1]])
    assert [int(inputs[i]) for i in (0, 2, -1, 1)] == [0, 2, 2, 1]
    assert asked == [[2, 0], [1]]
    assert list(map(int, inputs)) == [0, 1, 2]


class _Counter:
    """Computes inputs and counts them."""

    def __init__(self, frontend: dict[str, Any]) -> None:
        self.frontend, self.count = frontend, 0

    def __call__(self, utterances: Sequence[Utterance]) -> list[Tensor]:
        self.count += len(utterances)
        return [model_input(utterance, self.frontend) for utterance in utterances]


@FRONTENDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cached_inputs_are_the_computed_ones(
    utterances: list[Utterance], tmp_path: Path, frontend: dict[str, Any], dtype: torch.dtype
) -> None:
    def compute(some: Sequence[Utterance]) -> list[Tensor]:
        return [model_input(utterance, frontend).to(dtype) for utterance in some]

    expected = compute(utterances)
    for _ in range(2):
        cached = load_inputs(utterances, compute, frontend, cache=tmp_path)
        assert [tensor.dtype for tensor in cached] == [dtype] * len(expected)
        assert all(torch.equal(a, b) for a, b in zip(cached, expected, strict=True))


def test_second_run_takes_the_cache(utterances: list[Utterance], tmp_path: Path) -> None:
    counter = _Counter(LOG_MEL)
    for _ in range(2):
        load_inputs(utterances, counter, LOG_MEL, cache=tmp_path)
    assert counter.count == len(utterances)


@FRONTENDS
def test_inputs_without_a_cache_are_computed_when_they_are_asked_for_and_once(
    utterances: list[Utterance], frontend: dict[str, Any]
) -> None:
    counter = _Counter(frontend)
    inputs = load_inputs(utterances, counter, frontend)
    counter.count = 0  # the size was estimated
    for _ in range(2):
        assert torch.equal(inputs[1], model_input(utterances[1], frontend))
    assert counter.count == 1
    assert len(inputs) == len(utterances)


@pytest.mark.parametrize("frontend", [WAVEFORM, LOG_MEL], ids=["waveform", "log-mel"])
def test_size_of_inputs_is_estimated_from_two_of_them(
    utterances: list[Utterance], frontend: dict[str, Any]
) -> None:
    counter = _Counter(frontend)
    ends = inputs_module._compute_ends(utterances, counter)
    estimate = inputs_module._estimate_bytes(utterances, ends)
    assert counter.count == 2
    assert estimate == sum(model_input(utterance, frontend).nbytes for utterance in utterances)


@pytest.mark.parametrize(("share", "spilled"), [(0.26, True), (0.24, False)])
def test_inputs_that_memory_does_not_hold_are_kept_on_disk_with_a_line_that_says_so(
    utterances: list[Utterance],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    share: float,
    spilled: bool,
) -> None:
    expected = [model_input(utterance, WAVEFORM) for utterance in utterances]
    free = sum(tensor.nbytes for tensor in expected) / share
    monkeypatch.setattr(inputs_module, "free_bytes", lambda device: free)
    inputs = load_inputs(utterances, _Counter(WAVEFORM), WAVEFORM, spill=tmp_path)
    assert ("are kept on disk in" in capsys.readouterr().err) == spilled
    assert len(list(tmp_path.glob("*.bin"))) == spilled
    assert all(torch.equal(inputs[i], tensor) for i, tensor in enumerate(expected))


def test_inputs_that_no_disk_takes_are_a_value_error(
    utterances: list[Utterance], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="give another --cache"):
        load_inputs(utterances, _Counter(WAVEFORM), WAVEFORM, cache=tmp_path / "file")


def _cut(folder: Path) -> None:
    path = next(folder.glob("*.bin"))
    path.write_bytes(path.read_bytes()[:-4])


def _flip(folder: Path) -> None:
    path = next(folder.glob("*.bin"))
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)


def _garble(folder: Path) -> None:
    next(folder.glob("*.json")).write_text("{")


@pytest.mark.parametrize(
    ("damage", "named"),
    [(_cut, "is cut short"), (_flip, "another checksum"), (_garble, "is damaged")],
    ids=["cut", "flipped", "garbled"],
)
def test_damaged_cache_is_computed_anew_with_a_line_that_says_so(
    utterances: list[Utterance],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    named: str,
) -> None:
    expected = load_inputs(utterances, _Counter(WAVEFORM), WAVEFORM, cache=tmp_path)
    expected = [tensor.clone() for tensor in expected]
    damage(tmp_path)
    capsys.readouterr()
    counter = _Counter(WAVEFORM)
    again = load_inputs(utterances, counter, WAVEFORM, cache=tmp_path)
    assert named in capsys.readouterr().err
    assert counter.count == len(utterances)
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))


def test_cache_of_other_weights_or_recordings_is_not_used(
    utterances: list[Utterance], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load_inputs(utterances, _Counter(WAVEFORM), WAVEFORM | {"weights": "a"}, cache=tmp_path)
    others = (
        (utterances, WAVEFORM | {"weights": "b"}),
        (utterances[:2], WAVEFORM | {"weights": "a"}),
    )
    for wanted, about in others:
        capsys.readouterr()
        counter = _Counter(WAVEFORM)
        load_inputs(wanted, counter, about, cache=tmp_path)
        assert counter.count == len(wanted)
        assert "no cache for these recordings and weights" in capsys.readouterr().err


@pytest.mark.parametrize("elsewhere", [False, True], ids=["changed in place", "other corpus"])
def test_other_recording_of_equal_name_length_and_time_is_computed_anew(
    utterances: list[Utterance], tmp_path: Path, elsewhere: bool
) -> None:
    source = utterances[0].path
    kept, other = tmp_path / "a.WAV", tmp_path / ("b.WAV" if elsewhere else "a.WAV")
    shutil.copy2(source, kept)
    first = replace(utterances[0], path=kept)
    load_inputs([first, *utterances[1:]], _Counter(WAVEFORM), WAVEFORM, cache=tmp_path / "cache")

    content, stat = kept.read_bytes(), kept.stat()
    other.write_bytes(content[:-2] + bytes(x ^ 1 for x in content[-2:]))
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    changed = [replace(first, path=other), *utterances[1:]]
    counter = _Counter(WAVEFORM)
    found = load_inputs(changed, counter, WAVEFORM, cache=tmp_path / "cache")
    assert counter.count == len(utterances)
    expected = _Counter(WAVEFORM)(changed[:1])[0]
    assert torch.equal(found[0], expected)


INDEX_CHANGES: dict[str, Any] = {
    "no object": [],
    "nothing": {},
    "a type that is none": {"dtype": "nn"},
    "another type": {"dtype": "float16"},
    "a type as number": {"dtype": 3},
    "no shapes": {"shapes": None},
    "shapes of text": {"shapes": ["a"]},
    "negative shapes": {"shapes": [[-1]]},
    "huge shapes": {"shapes": [[10**400]]},
    "fewer shapes": {"shapes": []},
    "no checksum": {"crc32": None},
    "another checksum": {"crc32": 1},
}


@pytest.mark.parametrize("change", INDEX_CHANGES.values(), ids=INDEX_CHANGES)
def test_damaged_index_of_a_cache_is_made_anew(
    utterances: list[Utterance],
    tmp_path: Path,
    change: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = load_inputs(utterances, _Counter(WAVEFORM), WAVEFORM, cache=tmp_path)
    (index,) = tmp_path.glob("*.json")
    before = json.loads(index.read_text())
    index.write_text(json.dumps(before | change if change else change))
    counter = _Counter(WAVEFORM)
    found = load_inputs(utterances, counter, WAVEFORM, cache=tmp_path)
    assert counter.count == len(utterances)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert json.loads(index.read_text()) == before
    assert f"the cache {tmp_path}" in capsys.readouterr().err


def test_cache_whose_shapes_were_exchanged_is_made_anew(
    utterances: list[Utterance], tmp_path: Path
) -> None:
    load_inputs(utterances, _Counter(WAVEFORM), WAVEFORM, cache=tmp_path)
    (index,) = tmp_path.glob("*.json")
    entry = json.loads(index.read_text())
    index.write_text(json.dumps(entry | {"shapes": entry["shapes"][::-1]}))
    counter = _Counter(WAVEFORM)
    load_inputs(utterances, counter, WAVEFORM, cache=tmp_path)
    assert counter.count == len(utterances)


def test_recording_that_was_only_touched_is_taken_from_the_cache(
    utterances: list[Utterance], tmp_path: Path
) -> None:
    load_inputs(utterances, _Counter(WAVEFORM), WAVEFORM, cache=tmp_path)
    os.utime(utterances[0].path, ns=(0, 0))
    counter = _Counter(WAVEFORM)
    load_inputs(utterances, counter, WAVEFORM, cache=tmp_path)
    assert counter.count == 0


@pytest.mark.long
def test_run_is_the_same_with_features_computed_once_kept_on_disk_or_each_step(
    small_corpus: Path, tmp_path: Path
) -> None:
    common = ["--model", "w2v2-demo", "--data", str(small_corpus), "--steps", "4", "--device"]
    common += ["cpu", "--batch-seconds", "4", "--freeze", "feature_encoder", "--sparsity", "0.5"]
    cache = ["--cache", str(tmp_path / "cache")]
    plain = ["--no-precompute", "--no-fast"]
    for name, flags in {"plain": plain, "once": [], "disk": cache}.items():
        assert train.main([*common, "--out", str(tmp_path / name), *flags]) == 0
    weights = {
        n: dict(load_checkpoint(tmp_path / n / "last.pt").model.state_dict())
        for n in ("plain", "once", "disk")
    }
    assert all(torch.equal(weights["once"][n], weights["disk"][n]) for n in weights["once"])
    for name, value in weights["plain"].items():
        torch.testing.assert_close(weights["once"][name], value, rtol=0, atol=2e-4, msg=name)


@pytest.mark.parametrize("device_type", ["cuda", "cpu"])
def test_step_out_of_memory_names_the_batch_and_the_flag(
    small_corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    device_type: str,
) -> None:
    def exhaust(*args: Any) -> Tensor:
        if device_type == "cuda":
            raise torch.OutOfMemoryError
        return torch.empty(1 << 60, dtype=torch.uint8)

    monkeypatch.setattr(CTCTask, "loss", exhaust)
    argv = ["--model", "w2v2-demo", "--data", str(small_corpus), "--out", str(tmp_path / "run")]
    assert train.main([*argv, "--device", "cpu", "--steps", "2", "--batch-seconds", "4"]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "out of memory at step 1, on" in line
    assert "lower --batch-seconds" in line


def test_more_processes_than_utterances_are_refused(
    small_corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from models.device import World

    class Many(World):
        def gather(self, part: Any) -> list[Any]:
            return list(part)

    monkeypatch.setattr(pruning.run.plan, "join_world", lambda device: Many(0, 1000))
    argv = ["--model", "w2v2-demo", "--data", str(small_corpus), "--out", str(tmp_path / "run")]
    assert train.main([*argv, "--device", "cpu", "--steps", "2"]) == 2
    assert "1000 processes for 27 utterances: start fewer" in capsys.readouterr().err


@pytest.mark.parametrize(("fast", "warned"), [(False, True), (True, False)])
def test_bf16_that_the_cpu_emulates_is_warned_of(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fast: bool,
    warned: bool,
) -> None:
    monkeypatch.setattr(device, "_has_fast_bf16", lambda: fast)
    assert device.resolve_precision("bf16", torch.device("cpu")) == "bf16"
    assert ("use --precision fp32" in capsys.readouterr().err) == warned
