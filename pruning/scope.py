"""Choose the parameters that may be pruned."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict

from torch import Tensor

from pruning.interface import PruneOptions


class ChosenScope(TypedDict):
    """Which parameters may be pruned.

    ``scope`` is the name, ``biases`` says whether they are in, and ``scope_pattern`` is a regular
    expression of whole parameter names.
    """

    scope: str
    biases: bool
    scope_pattern: str


def select_parameters(named_parameters: Mapping[str, Tensor], pattern: str) -> dict[str, Tensor]:
    """Return the parameters whose whole name matches ``pattern``, in their given order.

    The tensors are the given ones, not copies, so masks applied to the result change the model.

    Args:
        named_parameters: Tensors by native parameter name, e.g. ``dict(model.named_parameters())``.
        pattern: Regular expression that has to match the full name.

    Raises:
        ValueError: If no name matches, or ``pattern`` is not a regular expression.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"scope pattern {pattern!r} is not a regular expression: {error}"
        ) from None
    selected = {name: p for name, p in named_parameters.items() if expression.fullmatch(name)}
    if not selected:
        first = next(iter(named_parameters), None)
        raise ValueError(
            f"scope pattern {pattern!r} matches none of the {len(named_parameters)} parameter "
            f"names (the first is {first!r}): it has to match a full name"
        )
    return selected


def choose_scope(
    scopes: Sequence[str], pattern_of: Callable[[str, bool], str], options: PruneOptions
) -> ChosenScope:
    """Return what ``options`` say of the scope, with the pattern of its parameter names.

    Args:
        scopes: Names of the model's scopes, the default first.
        pattern_of: Takes a scope and whether biases are in; returns the pattern.
        options: ``scope`` and ``biases``; biases are in unless the pattern is N:M.

    Raises:
        ValueError: If the model has no such scope.
    """
    scope = options.scope or scopes[0]
    if scope not in scopes:
        raise ValueError(f"--scope {scope} is not for this model: give {' or '.join(scopes)}")
    biases = options.pattern == "unstructured" if options.biases is None else options.biases
    return {"scope": scope, "biases": biases, "scope_pattern": pattern_of(scope, biases)}
