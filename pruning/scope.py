"""Choose the parameters that may be pruned."""

import re
from collections.abc import Mapping

from torch import Tensor


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


def without_biases(pattern: str) -> str:
    """Return the pattern that matches the same names but for biases."""
    return rf"(?!.*\bbias$)(?:{pattern})"
