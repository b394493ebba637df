"""Weights by parameter name: fitted to a model strictly, and renamed from other formats."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

ATTENTION_LEAVES = ("q_proj", "k_proj", "v_proj", "out_proj")  # the same in every format


def load_strictly(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    may_lack: Iterable[str] = (),
    unknown: Iterable[str] = (),
    shown: Callable[[str], str] = str,
) -> None:
    """Make ``tensors`` the parameters of ``model``; every name and shape has to fit.

    The tensors are taken over, not copied, and keep their dtype.

    Args:
        model: Changed in place, on the CPU.
        tensors: By native name.
        may_lack: Names that keep the model's values where ``tensors`` lacks them.
        unknown: Further names to report as unexpected.
        shown: Maps a native name to the one that a message shows.

    Raises:
        ValueError: If a name is missing or unexpected, or a shape differs; lists all of them.
    """
    expected = model.state_dict()
    missing = [name for name in expected if name not in tensors and name not in set(may_lack)]
    unexpected = [name for name in tensors if name not in expected]
    differing = [
        f"{shown(name)} {_described(tensors[name])} instead of {_described(tensor)}"
        for name, tensor in expected.items()
        if name in tensors and _described(tensors[name]) != _described(tensor)
    ]
    problems = {
        "missing": list(map(shown, missing)),
        "unexpected": [*unknown, *map(shown, unexpected)],
        "of another shape or type": differing,
    }
    if any(problems.values()):
        listed = [f"{kind}: {', '.join(names)}" for kind, names in problems.items() if names]
        raise ValueError(f"weights do not fit the model; {'; '.join(listed)}")
    model.load_state_dict({**expected, **tensors}, assign=True)


def _described(value: object) -> str:
    """Name what has to agree between a stored tensor and the model's: kind and shape."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{'floating' if value.is_floating_point() else value.dtype} {tuple(value.shape)}"


@dataclass(frozen=True)
class KeyMap:
    """A two-way table of names.

    Both sides are whole parameter names, or names of modules whose leaf (``weight``, ``bias``)
    stays as it is; "{}" stands for a layer number.

    Attributes:
        prefix: Stands before every foreign name but those in ``unprefixed``; files may lack it.
        pairs: Foreign name, without the prefix, to native name.
        unprefixed: Foreign names in ``pairs`` that have no prefix.
        dropped: What foreign names start with that are left out on purpose.
    """

    prefix: str
    pairs: Mapping[str, str]
    unprefixed: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    def to_native(self, foreign: str) -> str | None:
        """Return the native name of ``foreign``, None if it is dropped; KeyError if unknown."""
        bare = foreign.removeprefix(self.prefix)
        return None if bare.startswith(self.dropped) else _translated(bare, self.pairs)

    def to_foreign(self, native: str) -> str:
        """Return the foreign name of ``native``; KeyError if unknown."""
        bare = _translated(native, self._reverse)
        return bare if bare.rpartition(".")[0] in self.unprefixed else self.prefix + bare

    @cached_property
    def _reverse(self) -> dict[str, str]:
        return {native: foreign for foreign, native in self.pairs.items()}


def load_renamed(
    model: nn.Module, tensors: Mapping[str, Tensor], keys: KeyMap, may_lack: tuple[str, ...] = ()
) -> None:
    """Make ``tensors``, by foreign name, the parameters of ``model``.

    Args:
        model: Changed in place.
        tensors: All tensors of the file; floating ones become float32.
        keys: Table of the file's format.
        may_lack: Native names that keep the model's values where the file lacks them.

    Raises:
        ValueError: Listing every name that is unknown, missing or stands there twice, and every
            shape that differs.
    """
    native: dict[str, Tensor] = {}
    unknown = []
    for foreign, tensor in tensors.items():
        try:
            name = keys.to_native(foreign)
        except KeyError:
            unknown.append(foreign)
            continue
        if name in native:
            unknown.append(f"{foreign} (a second {keys.to_foreign(name)})")
        elif name is not None:
            dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
            native[name] = tensor.to(dtype, copy=True).contiguous()  # files may share storage
    load_strictly(model, native, may_lack, unknown, shown=keys.to_foreign)


def _translated(name: str, pairs: Mapping[str, str]) -> str:
    """Look ``name`` up whole, then by its module; the layer number is carried over."""
    number = re.search(r"(?<=\.)\d+(?=\.)", name)
    template = name if number is None else f"{name[: number.start()]}{{}}{name[number.end() :]}"
    if template not in pairs:
        module, _, leaf = template.rpartition(".")
        found = f"{pairs[module]}.{leaf}"
    else:
        found = pairs[template]
    return found if number is None else found.replace("{}", number[0])
