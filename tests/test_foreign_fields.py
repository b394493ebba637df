"""Settings of foreign folders: every field of every file with values of every kind."""

import copy
import json
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from models import build_model
from models.convert import load_weights, to_hf
from models.tokenizers import ByteBPETokenizer, SymbolTokenizer
from models.tokenizers.byte_bpe import _BYTE_CHARACTERS

pytest.importorskip("safetensors")

DEEP: Any = []
for _ in range(60):
    DEEP = [DEEP]
VALUES = [
    None,
    True,
    "",
    "hindi",
    "448",
    [],
    [[]],
    [None],
    ["a"],
    [[1, None]],
    [[1, "<|en|>"]],
    {},
    {"a": {}},
    {"": None},
    0,
    -1,
    10**9,
    2**31,
    10**400,
    -(10**400),
    1.5,
    1e308,
    float("nan"),
    float("inf"),
    DEEP,
]
SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|hi|>", "<|translate|>"]
SPECIAL += ["<|transcribe|>", "<|notimestamps|>"]
TINY_CTC = {
    "conv_dims": (4, 4),
    "conv_kernels": (10, 3),
    "conv_strides": (5, 2),
    "d_model": 8,
    "num_layers": 1,
    "num_heads": 2,
    "ffn_dim": 8,
    "positional_kernel": 4,
    "positional_groups": 2,
}
TINY_WHISPER = {
    "d_model": 4,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_ffn_dim": 4,
    "decoder_ffn_dim": 4,
    "num_mels": 4,
    "audio_positions": 50,
    "text_positions": 16,
}


def ctc_folder(folder: Path) -> Path:
    tokenizer = SymbolTokenizer("char", ["<pad>", "<s>", "|", "a", "b"], blank_id=0)
    model = build_model("w2v2-demo", vocab_size=5, **TINY_CTC)
    to_hf(model, folder, tokenizer, {"blank_id": 0}, {"kind": "waveform", "normalize": True})
    front_end = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "processor_config.json").write_text(json.dumps({"feature_extractor": front_end}))
    (folder / "added_tokens.json").write_text(json.dumps({"<s>": 1}))
    return folder


def bpe(language: str = "en", task: str = "transcribe") -> ByteBPETokenizer:
    vocab = [*_BYTE_CHARACTERS, "ab", ""]
    added = {token: len(vocab) + i for i, token in enumerate(SPECIAL)}
    return ByteBPETokenizer(vocab, ["a b"], added, language, task)


def whisper_folder(folder: Path, tokenizer: Any = None) -> Path:
    tokenizer = tokenizer or bpe()
    model = build_model("whisper-demo", vocab_size=tokenizer.vocab_size, **TINY_WHISPER)
    decoding = {
        "start_ids": list(tokenizer.start_ids),
        "eos_id": tokenizer.eos_id,
        "suppress_ids": [1, 3],
        "begin_suppress_ids": [2],
        "max_tokens": 16,
    }
    to_hf(model, folder, tokenizer, decoding, {"kind": "log_mel", "num_mels": 4, "audio_ctx": 1.0})
    return folder


def slow_whisper_folder(folder: Path) -> Path:
    whisper_folder(folder)
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(bpe().vocab)}))
    (folder / "added_tokens.json").write_text(json.dumps(bpe().added_tokens))
    (folder / "merges.txt").write_text("#version\na b\n")
    return folder


def sharded_folder(folder: Path) -> Path:
    ctc_folder(folder)
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    index = {"metadata": {}, "weight_map": {"lm_head.bias": "part.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def phone_folder(folder: Path) -> Path:
    return whisper_folder(folder, SymbolTokenizer.for_seq2seq("phone", ["aa", "b"]))


FOLDERS = {
    make.__name__: make
    for make in (ctc_folder, whisper_folder, slow_whisper_folder, phone_folder, sharded_folder)
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp("a") / "x") for name, make in FOLDERS.items()}


def places(content: Any, path: tuple = ()) -> Iterator[tuple]:
    """Yield the path of every value in nested JSON, of long tables the first few."""
    yield path
    if isinstance(content, dict):
        for key in list(content)[:40]:
            yield from places(content[key], (*path, key))
    elif isinstance(content, list):
        for index in range(min(len(content), 3)):
            yield from places(content[index], (*path, index))


def changed(content: Any, path: tuple, value: Any) -> Any:
    if not path:
        return value
    content = copy.copy(content)
    content[path[0]] = changed(content[path[0]], path[1:], value)
    return content


def check_one_change(folder: Path, file: Path, path: tuple, value: Any) -> None:
    """Loading either works or raises ValueError with one short line."""
    before = file.read_text()
    file.write_text(json.dumps(changed(json.loads(before), path, value)))
    message = ""
    try:
        load_weights(folder)
    except ValueError as error:
        message = str(error)
    except BaseException as error:
        raise AssertionError(f"{file.name} {path} {value!r:.80}") from error
    finally:
        file.write_text(before)
    assert "\n" not in message
    assert len(message) < 5000


def changes_of(folders: dict[str, Path]) -> list[tuple[Path, Path, tuple]]:
    return [
        (folder, file, path)
        for folder in folders.values()
        for file in sorted(folder.glob("*.json"))
        for path in places(json.loads(file.read_text()))
    ]


def fuzz(folders: dict[str, Path], tmp_path: Path, count: int, seed: int) -> None:
    numbers, seen = random.Random(seed), changes_of(folders)
    unknown = ["language", "task", "is_multilingual", "max_new_tokens", "lang_to_id", "task_to_id"]
    unknown += ["apply_spec_augment", "pad_token_id", "audio_ctx", "forced_decoder_ids", "dither"]
    copies = {
        folder: Path(shutil.copytree(folder, tmp_path / str(i)))
        for i, folder in enumerate(folders.values())
    }
    for _ in range(count):
        folder, file, path = numbers.choice(seen)
        if numbers.random() < 0.2 and isinstance(json.loads(file.read_text()), dict):
            name = numbers.choice(unknown)  # fields that this folder leaves out
            content = json.loads(file.read_text())
            file_here = copies[folder] / file.name
            file_here.write_text(json.dumps({**content, name: content.get(name)}))
            path = (name,)
        check_one_change(copies[folder], copies[folder] / file.name, path, numbers.choice(VALUES))
        (copies[folder] / file.name).write_text(file.read_text())


@pytest.mark.long
def test_any_value_in_any_field_loads_or_is_refused_in_one_line(folders, tmp_path):
    fuzz(folders, tmp_path, count=200, seed=0)


@pytest.mark.long
def test_every_value_in_every_field_loads_or_is_refused_in_one_line(folders, tmp_path):
    fuzz(folders, tmp_path, count=2_000, seed=1)


def edit(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**content, **changes}))


@pytest.mark.parametrize(
    ("settings", "language", "task"),
    [
        ({}, "en", "transcribe"),
        ({"language": "hi"}, "hi", "transcribe"),
        ({"language": "Hindi"}, "hi", "transcribe"),
        ({"language": "<|hi|>"}, "hi", "transcribe"),
        ({"task": "translate"}, "en", "translate"),
        ({"language": "hindi", "task": "translate"}, "hi", "translate"),
    ],
)
def test_language_and_task_of_the_generation_config_start_the_text(
    folders, tmp_path, settings, language, task
):
    folder = Path(shutil.copytree(folders["whisper_folder"], tmp_path / "a"))
    file = folder / "generation_config.json"
    content = json.loads(file.read_text())
    del content["forced_decoder_ids"]
    file.write_text(json.dumps({**content, **settings}))
    checkpoint = load_weights(folder)
    assert checkpoint.decoding["start_ids"] == list(bpe(language, task).start_ids)
    assert checkpoint.tokenizer.spec() == bpe(language, task).spec()


def test_a_language_comes_before_forced_ids(folders, tmp_path):
    folder = Path(shutil.copytree(folders["whisper_folder"], tmp_path / "a"))
    edit(folder / "generation_config.json", language="hindi")
    assert load_weights(folder).decoding["start_ids"] == list(bpe("hi").start_ids)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("generation_config.json", {"language": "klingon"}, "'klingon' is none of whisper's"),
        ("generation_config.json", {"language": "german"}, "'<|de|>' is not one that the model"),
        ("generation_config.json", {"task": "sing"}, "task 'sing' is not one"),
        (
            "generation_config.json",
            {"forced_decoder_ids": [[1, "<|en|>"]]},
            "forced_decoder_ids is",
        ),
        ("generation_config.json", {"forced_decoder_ids": [[2, 5]]}, "forced_decoder_ids is"),
        ("generation_config.json", {"forced_decoder_ids": [[1, 10**6]]}, "a start id is 1000000"),
        ("generation_config.json", {"max_length": "448"}, "max_length is '448', expected size"),
        ("generation_config.json", {"eos_token_id": [1, 2]}, "only one end is implemented"),
        ("config.json", {"dropout": None}, "dropout is None, expected share"),
        ("config.json", {"d_model": "4"}, "d_model is '4', expected size"),
        ("config.json", {"encoder_layers": 10**5}, "100001 layers, and the weights only"),
        ("preprocessor_config.json", {"sampling_rate": 8000}, "sampling_rate is 8000, and only"),
        ("preprocessor_config.json", {"feature_size": 128}, "feature_size is 128, and only 4"),
        ("preprocessor_config.json", {"padding_side": "left"}, "padding_side is 'left', and only"),
        ("preprocessor_config.json", {"n_fft": 512}, "n_fft is 512, and only 400"),
        ("preprocessor_config.json", {"do_normalize": True}, "do_normalize is True, and only"),
        ("preprocessor_config.json", {"dither": 0.1}, "dither is 0.1, and only"),
    ],
)
def test_a_setting_that_cannot_be_honoured_is_named(folders, tmp_path, file, changes, message):
    folder = Path(shutil.copytree(folders["whisper_folder"], tmp_path / "a"))
    if file == "generation_config.json" and {"language", "task"} & changes.keys():
        changes = {**changes, "forced_decoder_ids": None}
    edit(folder / file, **changes)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_weights(folder)
    assert file in str(caught.value) or file == "config.json"


@pytest.mark.parametrize("name", ["max_length", "decoder_start_token_id", "eos_token_id"])
def test_null_in_a_generation_config_is_the_default(folders, tmp_path, name):
    folder = Path(shutil.copytree(folders["whisper_folder"], tmp_path / "a"))
    before = load_weights(folder).decoding
    edit(folder / "generation_config.json", **{name: None})
    assert load_weights(folder).decoding == before


def test_suppressed_ids_that_no_token_has_are_left_out(folders, tmp_path):
    folder = Path(shutil.copytree(folders["whisper_folder"], tmp_path / "a"))
    edit(folder / "generation_config.json", suppress_tokens=[-1, 3, 10**6])
    assert load_weights(folder).decoding["suppress_ids"] == [3]


@pytest.mark.parametrize("normalize", [True, False])
def test_a_processor_config_comes_before_a_preprocessor_config(folders, tmp_path, normalize):
    folder = Path(shutil.copytree(folders["ctc_folder"], tmp_path / "a"))
    edit(folder / "preprocessor_config.json", do_normalize=not normalize)
    front_end = {"do_normalize": normalize, "sampling_rate": 16000}
    (folder / "processor_config.json").write_text(json.dumps({"feature_extractor": front_end}))
    assert load_weights(folder).frontend["normalize"] is normalize


def rewrite(folder: Path, change: Any) -> None:
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file)


def state(folder: Path) -> dict[str, torch.Tensor]:
    return load_weights(folder).model.state_dict()


def test_a_file_without_mask_embedding_loads_and_says_what_was_drawn(folders, tmp_path):
    folder = Path(shutil.copytree(folders["ctc_folder"], tmp_path / "a"))
    left_over = {"wav2vec2.mask_time_emb_vector": torch.ones(8)}
    rewrite(
        folder,
        lambda tensors: {n: t for n, t in tensors.items() if "masked_spec" not in n} | left_over,
    )
    checkpoint = load_weights(folder)
    assert checkpoint.run.drawn == ("masked_embedding",)
    assert checkpoint.run.head == "loaded"
    before, after = state(folders["ctc_folder"]), checkpoint.model.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before if n != "masked_embedding")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_names_that_a_wrapper_prefixed_are_read(folders, tmp_path, prefix):
    folder = Path(shutil.copytree(folders["ctc_folder"], tmp_path / "a"))
    rewrite(folder, lambda tensors: {prefix + name: t for name, t in tensors.items()})
    before, after = state(folders["ctc_folder"]), state(folder)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_weights_with_torch_pruning_are_masked(folders, tmp_path):
    folder = Path(shutil.copytree(folders["ctc_folder"], tmp_path / "a"))
    name = "wav2vec2.encoder.layers.0.attention.q_proj.weight"
    mask = torch.arange(64).reshape(8, 8) % 2

    def prune(tensors: dict) -> dict:
        return tensors | {name + "_orig": tensors.pop(name), name + "_mask": mask.float()}

    rewrite(folder, prune)
    ours = "encoder.layers.0.self_attn.q_proj.weight"
    assert torch.equal(state(folder)[ours], state(folders["ctc_folder"])[ours] * mask)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(folders, tmp_path, value):
    folder = Path(shutil.copytree(folders["ctc_folder"], tmp_path / "a"))
    rewrite(folder, lambda tensors: {**tensors, "lm_head.bias": torch.full((5,), value)})
    with pytest.raises(ValueError, match=r"lm_head.bias has values that are NaN or infinite"):
        load_weights(folder)
