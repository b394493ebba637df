"""Numbers and options as reports show them."""

from collections.abc import Iterable, Sequence
from typing import Any

from data.intervals import Estimate

LEAST_P = 1e-4  # what a normal tail over some hundred segments can tell

Rows = Iterable[Sequence[str]]


def table(header: Sequence[str], rows: Rows) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def percent(value: float, digits: int = 2, sign: str = "") -> str:
    """Return a fraction in percent, without the sign of percent."""
    return f"{100.0 * value:{sign}.{digits}f}"


def whole_percent(value: float) -> str:
    """Return a fraction in percent with no more digits than it takes: "70", "92.5"."""
    return f"{100.0 * value:g}"


def rate_and_interval(estimate: Estimate, sign: str = "") -> str:
    """Return a rate in percent with its interval, "no interval" where there is none."""
    rate = percent(estimate.rate, sign=sign)
    if estimate.interval is None:
        return f"{rate} (no interval)"
    low, high = (percent(limit, sign=sign) for limit in estimate.interval)
    return f"{rate} [{low}, {high}]"


def describe_value(value: Any) -> str:
    """Return the value of an option as a table shows it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def p_value(p: float) -> str:
    """Return a p-value; what is too small to be told is a bound."""
    return f"{p:.2g}" if p >= LEAST_P else f"<{LEAST_P:g}"
