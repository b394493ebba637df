"""Write Whisper in CTranslate2's format, which ctranslate2 and faster-whisper run.

Source:
    As for the reader, ``models/whisper/ctranslate2.py``.
"""

import re
import struct
from collections.abc import Iterator, Mapping
from functools import partial
from typing import BinaryIO

import numpy as np
from torch import Tensor

from data.files import JsonObject
from models.facts import DecodingFacts
from models.family import ExportedFolder, ForeignExport, Settings
from models.tokenizers import ByteBPETokenizer, hf_tokenizer_json
from models.whisper.ctranslate2 import (
    BINARY_VERSION,
    DTYPES,
    FUSED,
    KEYS,
    REQUIRED,
    REVISION,
    SPEC,
    Arrays,
)
from models.whisper.hugging_face import exported_context, language_ids, preprocessor_json
from models.whisper.model import Whisper

_INT8_STEPS = 127
_SCALARS: Arrays = {
    **{name: np.array(value, np.int8) for name, value in REQUIRED.items()},
    "decoder/alibi_use_positive_positions": np.array(0, np.int8),
    "decoder/scale_alibi": np.array(0, np.int8),
    "decoder/alignment_layer": np.array(-1, np.int16),
    "decoder/alignment_heads": np.array(1, np.int16),
}
# A projection's place: the fused weight that holds it.
_PLACES = {
    f"{block.rpartition('/')[0]}/{leaf}": f"{block}"
    for block, leaves in FUSED.items()
    for leaf in leaves
}


def ctranslate2_folder(model: Whisper, settings: Settings, values: str) -> ExportedFolder:
    """Return the files of a folder that ctranslate2 loads.

    The model keeps the audio context that it was trained with, rounded up to whole seconds, as in
    a Hugging Face folder.

    Args:
        model: With the tokens of whisper's own vocabulary.
        settings: What stands beside its weights.
        values: "fp32", "fp16", or "int8": matrices with a scale for each row, the rest in float32.

    Raises:
        ValueError: If the model has no tokenizer or another vocabulary than whisper's, or a weight
            is beyond the range of fp16.
    """
    tokenizer = settings.tokenizer
    if not isinstance(tokenizer, ByteBPETokenizer):
        found = "no tokenizer" if tokenizer is None else f"{tokenizer.kind} targets"
        raise ValueError(
            f"CTranslate2 runs whisper with its own vocabulary, and this one has {found}: give a "
            "model trained with --target text, or export it with --to hf"
        )
    seconds, positions = exported_context(model, settings.frontend)
    tensors = {name: tensor.detach().cpu().float() for name, tensor in model.state_dict().items()}
    tensors["encoder.positions"] = tensors["encoder.positions"][:positions]

    variables = dict(sorted(_stored(_fused(tensors), values)))
    for side in ("encoder", "decoder"):
        heads = getattr(model.config, f"{side}_heads")
        variables[f"{side}/num_heads"] = np.array(heads, np.int16)
    variables |= _SCALARS
    files = {
        "config.json": _config(settings.decoding, tokenizer),
        "preprocessor_config.json": preprocessor_json(model, seconds, settings.frontend),
        "tokenizer.json": hf_tokenizer_json(tokenizer),
    }
    return ExportedFolder(
        files | {"vocabulary.json": _tokens(tokenizer)},
        {"model.bin": partial(_write_model, variables)},
        num_parameters=sum(tensor.numel() for tensor in tensors.values()),
    )


def _fused(tensors: Mapping[str, Tensor]) -> Arrays:
    """Join projections and rename: what the reader splits and names by "." and "layers.0"."""
    parts: dict[str, list[np.ndarray]] = {}
    for name, tensor in tensors.items():
        path = re.sub(r"\.layers\.(\d+)\.", r".layer_\1.", KEYS.to_foreign(name)).replace(".", "/")
        module, _, leaf = path.rpartition("/")
        if module.endswith("layer_norm"):
            leaf = {"weight": "gamma", "bias": "beta"}[leaf]
        block = "/".join(module.split("/")[-2:])
        if block in _PLACES:
            module = module.removesuffix(block) + _PLACES[block]
        array = tensor.numpy()
        parts.setdefault(f"{module}/{leaf}", []).append(array)
        if block.endswith("k_proj"):  # which has no bias here, and has one there
            zeros = np.zeros(len(array), np.float32)
            parts.setdefault(f"{module}/bias", []).append(zeros)
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _stored(arrays: Arrays, values: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield every variable in the type that it is stored in, scales too."""
    for name, array in arrays.items():
        if values == "int8" and name.endswith("/weight"):
            rows = array.reshape(len(array), -1)
            greatest = np.abs(rows).max(1)
            scales = (_INT8_STEPS / np.where(greatest > 0, greatest, 1)).astype(np.float32)
            yield name, np.rint(rows * scales[:, None]).astype(np.int8).reshape(array.shape)
            yield f"{name}_scale", scales
        elif values == "fp16":
            if np.abs(array).max() > np.finfo(np.float16).max:
                raise ValueError(f"{name} has values beyond the range of fp16: store it as fp32")
            yield name, array.astype(np.float16)
        else:
            yield name, array


def _write_model(variables: Arrays, file: BinaryIO) -> None:
    file.write(struct.pack("<I", BINARY_VERSION) + _text(SPEC))
    file.write(struct.pack("<II", REVISION, len(variables)))
    for name, array in variables.items():
        shape = struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        dtype = DTYPES.index(array.dtype.newbyteorder("<").str.replace("|", ""))
        file.write(_text(name) + shape + struct.pack("<BI", dtype, array.nbytes))
        file.write(np.ascontiguousarray(array).tobytes())
    file.write(struct.pack("<I", 1))
    file.write(_text("decoder/projection/weight") + _text("decoder/embeddings/weight"))


def _text(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def _config(decoding: DecodingFacts, tokenizer: ByteBPETokenizer) -> JsonObject:
    """Return ``config.json``; start ids and the most tokens are for the way back."""
    return {
        "suppress_ids": list(decoding["suppress_ids"]),
        "suppress_ids_begin": list(decoding["begin_suppress_ids"]),
        "lang_ids": sorted(language_ids(tokenizer).values()),
        "start_ids": list(decoding["start_ids"]),
        "max_tokens": decoding["max_tokens"],
    }


def _tokens(tokenizer: ByteBPETokenizer) -> list[str]:
    """Return the token of every id."""
    tokens = [f"<|unused {i}|>" for i in range(tokenizer.vocab_size)]
    tokens[: len(tokenizer.vocab)] = tokenizer.vocab
    for token, i in tokenizer.added_tokens.items():
        tokens[i] = token
    return tokens


_LOAD_WITH = """\
import numpy as np
from faster_whisper import WhisperModel

# 30 s of audio as in training: of less, faster-whisper pads the log-mel instead, with zeros.
waveform = np.pad(waveform, (0, max(0, 480_000 - len(waveform))))
segments, info = WhisperModel("FOLDER").transcribe(waveform, beam_size=1, language="en")
print("".join(segment.text for segment in segments))
"""
EXPORT = ForeignExport("ct2", ctranslate2_folder, _LOAD_WITH)
