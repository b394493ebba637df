"""The few shapes that the batches of a run are padded to, so that a step is captured for each."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

MOST_SHAPES = 8  # a capture takes half a second and keeps memory


@dataclass(frozen=True)
class Shape:
    """The size of a padded batch.

    Attributes:
        rows: Utterances.
        width: Places of a row that are padded: frames, or tokens of a decoder.
        context: Further places of a row, which padding would change: a decoder's frames.
    """

    rows: int
    width: int
    context: int = 0

    @property
    def places(self) -> int:
        """Places of all rows."""
        return self.rows * (self.context + self.width)

    def holds(self, other: "Shape") -> bool:
        """Return whether a batch can be padded from ``other`` to this."""
        is_as_large = self.rows >= other.rows and self.width >= other.width
        return is_as_large and self.context == other.context


def choose_shapes(batches: Iterable[Shape], step: int, most: int = MOST_SHAPES) -> list[Shape]:
    """Choose shapes that hold all batches, so that little is padded.

    Batches whose widths are neighbours share a shape, those first of which it costs least.

    Args:
        batches: All batches of a run.
        step: Widths are multiples of this.
        most: Shapes; more where there are more contexts.

    Returns:
        The largest first.
    """
    groups: dict[Shape, list[int]] = {}  # of one context and width: batches, rows
    for batch in batches:
        group = groups.setdefault(replace(batch, rows=0, width=-(-batch.width // step) * step), [])
        group.append(batch.rows)
    ordered = sorted(groups.items(), key=lambda item: (item[0].context, item[0].width))
    counted = [(replace(shape, rows=max(rows)), len(rows)) for shape, rows in ordered]

    while len(counted) > most:
        joined = {
            i: _join(*counted[i], *counted[i + 1])
            for i in range(len(counted) - 1)
            if counted[i][0].context == counted[i + 1][0].context
        }
        if not joined:
            break
        first = min(joined, key=lambda i: _cost(joined[i]) - sum(map(_cost, counted[i : i + 2])))
        counted[first : first + 2] = [joined[first]]
    return sorted((shape for shape, _ in counted), key=lambda shape: shape.places, reverse=True)


def smallest_that_holds(shapes: Iterable[Shape], batch: Shape) -> Shape | None:
    """Return the smallest shape that a batch can be padded to, or None."""
    return min((s for s in shapes if s.holds(batch)), key=lambda s: s.places, default=None)


def _join(first: Shape, of_first: int, second: Shape, of_second: int) -> tuple[Shape, int]:
    joined = replace(second, rows=max(first.rows, second.rows))  # the second is the wider one
    return joined, of_first + of_second


def _cost(counted: tuple[Shape, int]) -> int:
    shape, batches = counted
    return shape.places * batches
