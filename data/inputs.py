"""Utterances as a model takes them: waveforms or log-mels, computed once and kept."""

import hashlib
import json
import math
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from tqdm import tqdm

from data.batching import BatchSampler
from data.files import (
    IDLE_SECONDS,
    JsonObject,
    Schema,
    check_fields,
    check_room,
    read_json,
    remove_left_overs,
    write_file,
    write_json,
)
from data.formats import FORMATS
from data.front_ends import front_end_of
from data.options import option
from data.phones import PHONE_SETS
from data.synthetic import ensure_demo_corpus
from data.utterance import Utterance

_ENTRY: Schema = {"dtype": "str", "shapes": "list of list of id", "crc32": "number"}
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
DEMO_FOLDER = Path("data/demo")  # in the current folder, as data/TIMIT is
COMPUTED_TOGETHER = 16  # on CUDA, where one at a time leaves most of the device idle
FORMAT = 3  # raise it when the same utterance and frontend would give another file

Compute = Callable[[Sequence[Utterance]], Sequence[Tensor]]


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """What is trained on.

    Every field is a flag of train.py.
    """

    data: str | None = option("corpus, or demo; without it $TIMIT_ROOT, then data/TIMIT", None)
    corpus: str = option("format of --data; auto recognises it", "auto", ("auto", *FORMATS))
    resample: bool = option("take recordings of any sample rate, resampled to 16 kHz", False)
    splits: str = option(
        "what to train on, to choose the best weights by, and to report, joined by commas; names "
        "of parts that the corpus has will do, as train-clean-100,dev-clean,test-clean",
        "train,dev,test",
    )
    subset: str | None = option(
        "part of train: sex=f, dialect=1+2, minutes=10, a file that lists utterances, or several "
        "joined by commas",
        None,
    )
    target: str = option("what to recognise", "phone", choices=("phone", "char", "text", "subword"))
    phones: int = option("phone set to train on; scores are on 39", 39, choices=tuple(PHONE_SETS))
    subword_vocab: int = option("vocabulary size of --target subword", 300, positive=True)
    audio_ctx: str = option(
        "what audio is padded to for log-mels: own (each utterance's own length, rounded up to a "
        "second), auto (the corpus' longest utterance), full (30 s), or seconds",
        "auto",
    )
    precompute: bool = option(
        "compute what a frozen feature encoder gives once, instead of in every step", True
    )
    cache: str | None = option("folder that keeps computed inputs for the next run", None)


def resolve_data(data: str | None) -> str:
    """Return the corpus to use: as given, else ``$TIMIT_ROOT``, else ``data/TIMIT``.

    ``demo`` stands for the synthetic corpus, which is written on first use.
    """
    if data == "demo":
        return str(ensure_demo_corpus(DEMO_FOLDER))
    return data or os.environ.get("TIMIT_ROOT") or "data/TIMIT"


def model_input(utterance: Utterance, frontend: Mapping[str, Any]) -> Tensor:
    """Read an utterance as the model takes it: a waveform (S,) or a log-mel (M, F), float32.

    Raises:
        ValueError: If the utterance is longer than the checkpoint's context.
    """
    return front_end_of(frontend).read(utterance)


def check_inputs(utterances: Sequence[Utterance], frontend: Mapping[str, Any]) -> None:
    """Check that a checkpoint's front end can read some utterances.

    Raises:
        ValueError: If the context does not hold one; names the longest.
    """
    front_end_of(frontend).check(utterances)


def batch_sampler(
    utterances: Sequence[Utterance],
    frontend: Mapping[str, Any],
    batch_seconds: float,
    seed: int = 0,
    shuffle: bool = True,
    num_lengths: int | None = None,
) -> BatchSampler:
    """Return a sampler of utterances with the lengths that a front end pads them to."""
    front_end = front_end_of(frontend)
    lengths = [front_end.padded_seconds(utterance) for utterance in utterances]
    same = front_end.same_length
    return BatchSampler(lengths, batch_seconds, seed, shuffle, same, None if same else num_lengths)


class LazyInputs(Sequence[Tensor]):
    """Inputs, each computed with its group when one of them is first asked for, and then kept.

    A run begins at once, and its first epoch computes what it needs.

    Args:
        compute: Returns the inputs of a group of places.
        groups: All places, each in one group.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[int]], Sequence[Tensor]],
        groups: Sequence[Sequence[int]],
    ) -> None:
        self._compute = compute
        self._group_of = {i: group for group in groups for i in group}
        self._kept: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._group_of)

    def __getitem__(self, index: Any) -> Any:
        """Return one input; slices are not taken.

        Raises:
            IndexError: If there is none.
        """
        place = range(len(self))[index]
        if place not in self._kept:
            group = self._group_of[place]
            self._kept.update(zip(group, self._compute(group), strict=True))
        return self._kept[place]


def load_inputs(
    utterances: Sequence[Utterance],
    compute: Compute,
    about: Mapping[str, Any],
    device: torch.device,
    spill: Path,
    cache: Path | None = None,
) -> Sequence[Tensor]:
    """Return the inputs of utterances, on the device where they fit.

    Without a cache each is computed when it is first asked for, on CUDA together with others of
    similar length, and stays in the device's memory if all take less than a quarter of what is free
    there; else, with a line on stderr, they are computed now and kept on disk in ``spill``,
    memory-mapped.

    A cache is found by ``about`` and by path, length and content of every recording, and
    checked against its checksum; one that does not fit is made anew with a line on stderr.

    Args:
        utterances: What to load.
        compute: Returns the inputs of some utterances, always of the same dtype.
        about: What else the inputs depend on: frontend, weights. JSON can hold it.
        device: Where inputs are wanted.
        spill: Folder for inputs that do not fit.
        cache: Folder of caches for this and later runs.
    """
    if cache is None:
        needed = _estimate_bytes(utterances, _compute_ends(utterances, compute))
        free = free_bytes(device)
        if 4 * needed <= free:
            together = COMPUTED_TOGETHER if device.type == "cuda" else 1
            by_length = sorted(range(len(utterances)), key=lambda i: utterances[i].num_samples)
            groups = [by_length[i : i + together] for i in range(0, len(by_length), together)]
            return LazyInputs(
                lambda group: [x.to(device) for x in compute([utterances[i] for i in group])],
                groups,
            )
        tqdm.write(
            f"inputs of {needed / 1e9:.1f} GB are kept on disk in {spill}: {device.type} has "
            f"{free / 1e9:.1f} GB free",
            file=sys.stderr,
        )

    inputs = _map_inputs(utterances, compute, about, cache or spill)
    bytes_mapped = sum(tensor.nbytes for tensor in inputs)
    if device.type == "cpu" or 4 * bytes_mapped > free_bytes(device):
        return inputs
    return LazyInputs(
        lambda group: [inputs[i].to(device) for i in group], [[i] for i in range(len(inputs))]
    )


def _compute_ends(utterances: Sequence[Utterance], compute: Compute) -> dict[int, Tensor]:
    """Return the inputs of the shortest and the longest utterance by their places."""
    places = range(len(utterances))
    ends = {pick(places, key=lambda i: utterances[i].num_samples) for pick in (min, max)}
    return {i: compute([utterances[i]])[0] for i in sorted(ends)}


def _estimate_bytes(utterances: Sequence[Utterance], ends: Mapping[int, Tensor]) -> float:
    """Estimate the size of all inputs from those between whose lengths it grows."""
    sizes = sorted((utterances[i].num_samples, tensor.nbytes) for i, tensor in ends.items())
    (short, small), (long, large) = sizes[0], sizes[-1]
    slope = (large - small) / max(1, long - short)
    return sum(small + slope * (u.num_samples - short) for u in utterances)


def free_bytes(device: torch.device) -> float:
    """Return the bytes of memory that are free on a device, infinity where it does not tell."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024.0 * next(int(x.split()[1]) for x in lines if x.startswith("MemAvailable"))
    except (OSError, StopIteration):  # a system that does not tell
        return math.inf


def _map_inputs(
    utterances: Sequence[Utterance],
    compute: Compute,
    about: Mapping[str, Any],
    folder: Path,
) -> list[Tensor]:
    """Return inputs memory-mapped from a file in ``folder``, which is written where it is not."""
    # Times of files say little: archives and images set them all alike.
    contents = {path: _digest(path) for path in {utterance.path for utterance in utterances}}
    files = [(str(u.path.resolve()), contents[u.path], u.start, u.num_samples) for u in utterances]
    described = json.dumps([FORMAT, dict(about), files], sort_keys=True)
    key = hashlib.sha256(described.encode()).hexdigest()[:24]
    index, data = folder / f"{key}.json", folder / f"{key}.bin"
    inputs, problem = _read_cache(index, data, len(utterances))
    if inputs is None:
        ends = _compute_ends(utterances, compute)
        needed = _estimate_bytes(utterances, ends)
        said = check_room(folder, needed, f"{len(utterances)} inputs")
        tqdm.write(f"{problem}: computing {said}", file=sys.stderr)
        all_inputs = (
            ends[i] if i in ends else compute([utterance])[0]
            for i, utterance in enumerate(tqdm(utterances, "read", disable=None))
        )
        _write_cache(index, data, all_inputs)
        inputs, problem = _read_cache(index, data, len(utterances))
    if inputs is None:
        raise ValueError(f"cannot keep inputs in {folder} ({problem}): give another --cache")
    return inputs


def _digest(path: Path) -> str:
    """Return a hash of all that a recording holds."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _read_cache(index: Path, data: Path, count: int) -> tuple[list[Tensor] | None, str]:
    """Return ``count`` inputs, or None and why they can't be used."""
    if not index.is_file() or not data.is_file():
        return None, f"no cache for these recordings and weights in {index.parent}"
    try:
        entry = read_json(index)
        check_fields(entry, _ENTRY, index)
    except ValueError:
        return None, f"the cache {index} is damaged"
    dtype, shapes = _DTYPES.get(entry["dtype"]), entry["shapes"]
    if dtype is None or len(shapes) != count:
        return None, f"the cache {index} is damaged"

    sizes = [math.prod(shape) for shape in shapes]
    try:
        if not sum(sizes) or data.stat().st_size != sum(sizes) * dtype.itemsize:
            return None, f"the cache {data} is cut short"
        flat = torch.from_file(str(data), shared=False, size=sum(sizes), dtype=dtype)
    except (OSError, RuntimeError):
        return None, f"the cache {data} can't be read"
    checksum = zlib.crc32(flat.view(torch.uint8).numpy().data)
    if _with_entry(checksum, entry) != entry["crc32"]:
        return None, f"the cache {data} has another checksum than when it was written"
    pairs = zip(flat.split(sizes), shapes, strict=True)
    return [part.view(shape) for part, shape in pairs], ""


def _with_entry(checksum: int, entry: JsonObject) -> int:
    """Return the checksum of values and of what they are cut into."""
    return zlib.crc32(json.dumps([entry["dtype"], entry["shapes"]]).encode(), checksum)


def _write_cache(index: Path, data: Path, inputs: Iterable[Tensor]) -> None:
    """Write the data, then the index: without the second the first is not a cache."""
    crc, shapes, last = 0, [], torch.empty(0)

    def write(file: BinaryIO) -> None:
        nonlocal crc, last
        for last in inputs:
            content = last.cpu().contiguous().view(torch.uint8).numpy().data
            crc = zlib.crc32(content, crc)
            shapes.append(list(last.shape))
            file.write(content)

    remedy = "give another --cache"
    remove_left_overs(data.parent, idle_seconds=IDLE_SECONDS)
    write_file(data, write, remedy)

    entry: JsonObject = {"dtype": str(last.dtype).removeprefix("torch."), "shapes": shapes}
    write_json(index, entry | {"crc32": _with_entry(crc, entry)}, remedy=remedy)
