"""Write a run's events for TensorBoard as well, with its own writer."""

import importlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.run_folder import EventLog


class BoardLog(EventLog):
    """An event log that also writes every number of an event to ``tensorboard/`` beside it.

    Each stage is a run of its own there, and each number a curve: "train/loss", "dev/per".

    Args:
        path: As of :class:`EventLog`, and so are the others.

    Raises:
        ValueError: If the package tensorboard is missing.
    """

    def __init__(self, path: Path, at: tuple[int, int] = (0, 0), writes: bool = True) -> None:
        super().__init__(path, at, writes)
        self._at, self._folder = at, path.with_name("tensorboard") if writes else None
        self._writers: dict[int, Any] = {}
        check_tensorboard()

    def write(self, event: str, stage: int, step: int, values: Mapping[str, Any]) -> None:
        """Append one event to both."""
        super().write(event, stage, step, values)
        if self._folder is None:
            return
        if stage not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            # What an interrupted run wrote after the point it goes on from is hidden.
            goes_on = stage == self._at[0] and self._at[1]
            self._writers[stage] = SummaryWriter(
                self._folder / f"stage-{stage}", purge_step=self._at[1] + 1 if goes_on else None
            )
        for name, value in values.items():
            if isinstance(value, int | float) and math.isfinite(value):
                self._writers[stage].add_scalar(f"{event}/{name}", value, step)
        self._writers[stage].flush()


def check_tensorboard() -> None:
    """Raise ValueError where the package tensorboard is missing."""
    try:
        importlib.import_module("tensorboard")
    except ModuleNotFoundError:
        raise ValueError(
            '--tensorboard needs tensorboard: pip install -e ".[tensorboard]", or leave it out'
        ) from None
