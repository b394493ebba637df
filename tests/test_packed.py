"""Packed checkpoints: what they keep, what they take, and that every program takes them."""

import json
import re
from pathlib import Path

import pytest
import torch

import eval as evaluation
import train
from data.phones import PHONE_SETS
from models import build_model
from models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, save_packed
from models.convert import load_weights
from models.convert.__main__ import main
from models.facts import RunFacts
from models.packed import is_packed
from models.tensor_file import read_metadata, read_tensors, write_tensors
from models.tokenizers import SymbolTokenizer
from models.wav2vec2 import PRUNE_SCOPES
from pruning.masks import magnitude_masks
from pruning.scope import select_parameters


def pruned(sparsity: float = 0.7) -> Checkpoint:
    tokenizer = SymbolTokenizer.for_ctc("phone", PHONE_SETS[39])
    model = build_model("w2v2-demo", vocab_size=tokenizer.vocab_size)
    pattern = PRUNE_SCOPES["encoder"]
    params = select_parameters(dict(model.named_parameters()), pattern)
    with torch.no_grad():
        for parameter in model.parameters():  # no zeros but those of pruning
            parameter.add_(0.01 * torch.randn(parameter.shape))
    masks = magnitude_masks(params, sparsity)
    with torch.no_grad():
        for name, mask in masks.items():
            params[name].masked_fill_(~mask, 0.0)
    frontend = {"kind": "waveform", "normalize": True}
    facts = {"model": "w2v2-demo", "method": "omp", "sparsity": sparsity, "target": "phone"}
    run = RunFacts(**facts, scope="encoder", scope_pattern=pattern, phones=39)
    return Checkpoint(model, tokenizer, masks, frontend, {"blank_id": 0}, run, {"step": 3})


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    """The same checkpoint as it is and packed in three ways."""
    checkpoint = pruned()
    paths = {kind: tmp_path / f"{kind}.pt" for kind in ("whole", "fp32", "fp16", "int8")}
    save_checkpoint(paths.pop("whole"), checkpoint)
    for values, path in paths.items():
        save_packed(path, checkpoint, values)
    return {"whole": tmp_path / "whole.pt"} | paths


def test_fp32_gives_every_bit_again(files):
    before, after = load_checkpoint(files["whole"]), load_checkpoint(files["fp32"])
    bits = [
        {name: tensor.view(torch.int32) for name, tensor in each.model.state_dict().items()}
        for each in (before, after)
    ]
    assert all(torch.equal(tensor, bits[1][name]) for name, tensor in bits[0].items())
    assert before.masks.keys() == after.masks.keys()
    assert all(torch.equal(mask, after.masks[name]) for name, mask in before.masks.items())
    for part in ("config", "frontend", "decoding", "run"):
        assert getattr(after, part) == getattr(before, part), part
    assert after.tokenizer.spec() == before.tokenizer.spec()
    assert after.training is None


@pytest.mark.parametrize(("values", "bound"), [("fp16", 2**-11), ("int8", 0.5001 / 127)])
def test_fewer_bits_are_off_by_their_rounding_only(files, values, bound):
    before = load_checkpoint(files["whole"]).model.state_dict()
    after = load_checkpoint(files[values])
    for name, tensor in after.model.state_dict().items():
        assert tensor.dtype == torch.float32
        error, greatest = (tensor - before[name]).abs(), before[name].abs()
        if values == "int8" and tensor.dim() > 1:
            greatest = greatest.amax(tuple(range(1, tensor.dim())), keepdim=True)
        assert (error <= bound * greatest + 1e-7).all(), name
        if tensor.dim() < 2:
            assert not error.any(), name
    assert all(not after.model.get_parameter(n)[~mask].any() for n, mask in after.masks.items())
    assert after.run.converted_from == f"packed {values}"


@pytest.mark.parametrize(("values", "width"), [("fp32", 4), ("fp16", 2), ("int8", 1)])
def test_size_is_that_of_bits_and_values(files, values, width):
    checkpoint = pruned()
    expected = 0.0
    for name, weight in checkpoint.model.state_dict().items():
        of_value = width if weight.dim() > 1 and len(weight) > 1 else 4
        kept = weight.numel()
        if name in checkpoint.masks:
            kept = int(checkpoint.masks[name].sum())
            expected += weight.numel() / 8
        expected += kept * of_value
        if of_value == 1:
            expected += 4 * len(weight)
    size = files[values].stat().st_size
    header = int.from_bytes(files[values].read_bytes()[:8], "little")
    assert size - header == pytest.approx(expected, abs=400)  # the tokenizer has some
    assert header < 0.02 * 94_000_000  # of a model of real size; its length depends on names alone


def test_zeros_without_a_mask_are_packed_too_and_make_none(tmp_path):
    checkpoint = pruned()
    checkpoint.masks = {}
    save_packed(tmp_path / "a", checkpoint)
    after = load_checkpoint(tmp_path / "a")
    states = checkpoint.model.state_dict(), after.model.state_dict()
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert after.masks == {}
    assert "encoder.layers.0.ffn.fc1.weight.bits" in read_tensors(tmp_path / "a")


def test_rows_of_zeros_stay_zeros_in_int8(tmp_path):
    checkpoint = pruned()
    name = "encoder.layers.0.ffn.fc1.weight"
    with torch.no_grad():
        checkpoint.model.get_parameter(name)[3] = 0.0
    checkpoint.masks[name][3] = False
    save_packed(tmp_path / "a", checkpoint, "int8")
    after = load_checkpoint(tmp_path / "a").model.get_parameter(name)
    assert after[2].any()
    assert not after[3].any()


def test_weights_off_their_mask_are_refused(tmp_path):
    checkpoint = pruned()
    with torch.no_grad():
        checkpoint.model.get_parameter("encoder.layers.0.ffn.fc1.weight").fill_(1.0)
    with pytest.raises(ValueError, match="fc1.weight has weights other than zero off its mask"):
        save_packed(tmp_path / "a", checkpoint)
    assert not (tmp_path / "a").exists()


def test_values_beyond_fp16_are_refused(tmp_path):
    checkpoint = pruned()
    with torch.no_grad():
        checkpoint.model.head.weight[0, 0] = 1e6
    with pytest.raises(ValueError, match="head.weight has values beyond the range of fp16"):
        save_packed(tmp_path / "a", checkpoint, "fp16")


def change(path: Path, about: dict | None = None, drop: str = "", **tensors: torch.Tensor) -> None:
    """Write a packed file again with something else in it, as the first version: unchecked."""
    metadata, held = read_metadata(path), read_tensors(path)
    del metadata["checksum"]
    metadata["checkpoint"] = json.dumps(json.loads(metadata["checkpoint"]) | (about or {}))
    with path.open("wb") as file:
        kept = {name: tensor for name, tensor in held.items() if name != drop}
        write_tensors(file, kept | tensors, metadata)


FC1 = "encoder.layers.0.ffn.fc1.weight"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"about": {"shapes": {FC1: "x"}}}, "its shapes are no dict of list of id"),
        ({"about": {"masks": 3}}, "its masks are no list of str"),
        ({"about": {"masks": ["head.weight"]}}, "belongs to nothing"),
        ({"drop": f"{FC1}.values"}, f"no '{FC1}.values'"),
        ({f"{FC1}.bits": torch.zeros(3, dtype=torch.uint8)}, "has 3 bytes for"),
        ({f"{FC1}.values": torch.zeros(3)}, "has 3 torch.float32 values, expected"),
        ({"extra": torch.zeros(3)}, "'extra' belongs to nothing that it lists"),
        ({"tokenizer.json.zlib": torch.zeros(9, dtype=torch.uint8)}, "while decompressing data"),
        ({"about": {"config": 3}}, "missing or wrong config"),
        ({"about": {"shapes": {}, "masks": []}}, "belongs to nothing that it lists"),
    ],
)
def test_damaged_files_are_refused_in_one_line(files, changes, message):
    change(files["fp32"], **changes)
    for load in (load_checkpoint, load_weights):
        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            load(files["fp32"])
        assert "\n" not in str(caught.value)


def test_a_tokenizer_that_inflates_without_end_is_refused(files):
    import zlib

    bomb = torch.frombuffer(bytearray(zlib.compress(bytes(2**26))), dtype=torch.uint8)
    change(files["fp32"], **{"tokenizer.json.zlib": bomb})
    with pytest.raises(ValueError, match="cut off, or larger than any"):
        load_checkpoint(files["fp32"])


def test_convert_states_the_size_and_reads_the_file_again(files, tmp_path, capsys):
    packed, back = tmp_path / "packed", tmp_path / "back.pt"
    assert main(["--to", "packed", "--values", "int8", str(files["whole"]), str(packed)]) == 0
    assert main([str(packed), str(back)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert f"; {packed.stat().st_size / 1e6:.2f} MB, " in said[0]
    assert is_packed(packed)
    assert not is_packed(back)
    assert load_checkpoint(back).masks.keys() == pruned().masks.keys()


def test_convert_refuses_values_where_they_have_no_effect(files, tmp_path, capsys):
    assert main(["--values", "int8", str(files["whole"]), str(tmp_path / "b")]) == 2
    assert "--values int8 is not for --to parp" in capsys.readouterr().err


def test_eval_scores_the_packed_file_as_the_whole_one(files, small_corpus, tmp_path):
    rates = []
    for name in ("whole", "fp32"):
        report = tmp_path / f"{name}.json"
        where = ["--ckpt", str(files[name]), "--data", str(small_corpus), "--device", "cpu"]
        assert evaluation.main([*where, "--json", str(report)]) == 0
        rates.append(json.loads(report.read_text())["per"])
    assert rates[0] == rates[1]


def trained_with(packed: Path, corpus: Path, out: Path, *flags: str) -> Checkpoint:
    options = ["--model", "w2v2-demo", "--data", str(corpus), "--steps", "1", "--device", "cpu"]
    options += ["--batch-seconds", "20", "--out", str(out)]
    assert train.main([*options, *flags]) == 0
    return load_checkpoint(out / "best.pt")


def test_train_begins_with_a_packed_file_and_learns_from_one(files, small_corpus, tmp_path):
    packed = str(files["fp32"])
    flags = ("--init", packed, "--teacher", packed, "--method", "omp", "--sparsity", "0.5")
    assert trained_with(files["fp32"], small_corpus, tmp_path / "run", *flags).run.init == packed


@pytest.mark.parametrize("kind", ["whole", "int8"])
def test_train_takes_the_masks_of_a_checkpoint(files, small_corpus, tmp_path, kind):
    flags = ("--init-mask", str(files[kind]), "--method", "mpi", "--sparsity", "0.7")
    masks = trained_with(files[kind], small_corpus, tmp_path / "run", *flags).masks
    wanted = load_checkpoint(files["whole"]).masks
    assert all(torch.equal(mask, masks[name]) for name, mask in wanted.items())


def test_masks_of_a_dense_checkpoint_are_refused(small_corpus, tmp_path, capsys):
    checkpoint = pruned()
    checkpoint.masks = {}
    save_checkpoint(tmp_path / "dense.pt", checkpoint)
    flags = ["--init-mask", str(tmp_path / "dense.pt"), "--method", "mpi"]
    flags += ["--sparsity", "0.7", "--data", str(small_corpus), "--steps", "1", "--device", "cpu"]
    assert train.main(["--model", "w2v2-demo", *flags, "--out", str(tmp_path / "run")]) == 2
    assert "dense.pt is of a dense model, and has no masks" in capsys.readouterr().err
