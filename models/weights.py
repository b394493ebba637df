"""Weights by parameter name: fitted to a model strictly, and renamed from other formats."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

ATTENTION_LEAVES = ("q_proj", "k_proj", "v_proj", "out_proj")  # the same in every format


Model = TypeVar("Model", bound=nn.Module)


def build_with_weights(
    model_class: Callable[[Any], Model],
    config: Any,
    tensors: Mapping[str, Tensor],
    may_lack: Iterable[str] = (),
    unknown: Iterable[str] = (),
    shown: Callable[[str], str] = str,
) -> Model:
    """Build ``model_class(config)`` with ``tensors`` as its parameters; every name and shape fits.

    The config's sizes are held against the tensors before anything of such a size is built. The
    tensors are taken over, not copied.

    Args:
        model_class: Takes the config.
        config: A family's, whose depths are fields that end in ``layers``.
        tensors: By native name.
        may_lack: Names that keep the model's random values where ``tensors`` lacks them.
        unknown: Further names to report as unexpected.
        shown: Maps a native name to the one that a message shows.

    Returns:
        The model, on the CPU.

    Raises:
        ValueError: If a name is missing or unexpected, or a shape or type differs, which lists all;
            or if floating types are mixed.
    """
    outline = _outline(model_class, config, len(tensors))
    expected = outline.state_dict()
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
    types = sorted({str(tensor.dtype) for tensor in tensors.values() if tensor.is_floating_point()})
    if len(types) > 1:
        raise ValueError(f"its weights are of {' and '.join(types)}: store all in one type")

    model = model_class(config)
    model.load_state_dict({**model.state_dict(), **tensors}, assign=True)
    return model


def _outline(model_class: Callable[[Any], Model], config: Any, num_tensors: int) -> Model:
    """Build the model without memory for its parameters."""
    sizes = dataclasses.asdict(config)
    depth = sum(value for name, value in sizes.items() if name.endswith("layers"))
    depth += max(len(value) for value in (*sizes.values(), ()) if isinstance(value, tuple))
    if depth > num_tensors:
        raise ValueError(
            f"the config has {depth} layers, and the weights only {num_tensors} tensors"
        )
    try:
        with torch.device("meta"), _NothingDrawn():
            return model_class(config)
    except (RuntimeError, OverflowError, ZeroDivisionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"the config's sizes are those of no model ({reason})") from None


class _NothingDrawn(TorchFunctionMode):
    """Leaves out initial values, for which meta tensors would load all of torch's compiler."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "kaiming_normal_"):
            return args[0] if args else named["tensor"]
        if func is torch.linalg.vector_norm:
            return torch.sum(*args, **named)  # of the same shape
        return func(*args, **named)


def refuse_not_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise where a weight is NaN or infinite.

    Raises:
        ValueError: Names the first such tensor and counts them.
    """
    found = [n for n, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]
    if found:
        raise ValueError(
            f"{found[0]} has values that are NaN or infinite, as {len(found)} of {len(tensors)} "
            "tensors do: the training that wrote them diverged, so give other weights"
        )


def _described(value: object) -> str:
    """Name what has to agree between a stored tensor and the model's: type and shape.

    Weights are computed with as they are, so none of fewer bits than float32 are taken.
    """
    if not isinstance(value, Tensor):
        return type(value).__name__
    is_floating = value.dtype in (torch.float32, torch.float64)
    return f"{'floating' if is_floating else value.dtype} {tuple(value.shape)}"


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


def build_renamed(
    model_class: Callable[[Any], Model],
    config: Any,
    tensors: Mapping[str, Tensor],
    keys: KeyMap,
    may_lack: tuple[str, ...] = (),
) -> Model:
    """Build ``model_class(config)`` with ``tensors``, by foreign name, as its parameters.

    Args:
        model_class: Takes the config.
        config: A family's.
        tensors: All tensors of the file; floating ones become float32.
        keys: Table of the file's format.
        may_lack: Native names that keep the model's random values where the file lacks them.

    Returns:
        The model, on the CPU.

    Raises:
        ValueError: Listing every name that is unknown, missing or stands there twice, and every
            shape that differs; or if a weight is NaN or infinite.
    """
    native: dict[str, Tensor] = {}
    unknown = []
    for foreign, tensor in without_wrappers(tensors).items():
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
    model = build_with_weights(model_class, config, native, may_lack, unknown, keys.to_foreign)
    refuse_not_finite({keys.to_foreign(name): tensor for name, tensor in native.items()})
    return model


def without_wrappers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo what torch adds to the names of a module that is wrapped or being pruned.

    Data parallel modules prefix ``module.``, compiled ones ``_orig_mod.``, and
    ``torch.nn.utils.prune`` keeps a weight as ``weight_orig`` times ``weight_mask``.

    Raises:
        ValueError: If a mask does not fit its weight.
    """
    bare = dict(tensors)
    for prefix in ("module.", "_orig_mod.", "module."):
        if bare and all(name.startswith(prefix) for name in bare):
            bare = {name.removeprefix(prefix): tensor for name, tensor in bare.items()}

    plain = {}
    for name, tensor in bare.items():
        weight = name.removesuffix("_orig")
        mask = bare.get(f"{weight}_mask")
        if name.endswith("_orig") and mask is not None:
            if mask.shape != tensor.shape:
                raise ValueError(f"{weight}_mask has another shape than {name}")
            plain[weight] = tensor * mask
        elif not (name.endswith("_mask") and name.removesuffix("_mask") + "_orig" in bare):
            plain[name] = tensor
    return plain


def _translated(name: str, pairs: Mapping[str, str]) -> str:
    """Look ``name`` up whole, then by its module; the layer number is carried over."""
    number = re.search(r"(?<=\.)\d+(?=\.)", name, re.ASCII)
    template = name if number is None else f"{name[: number.start()]}{{}}{name[number.end() :]}"
    if template not in pairs:
        module, _, leaf = template.rpartition(".")
        found = f"{pairs[module]}.{leaf}"
    else:
        found = pairs[template]
    return found if number is None else found.replace("{}", number[0])
