"""Numbers of the log that are kept per task: their means over a task's log lines, in state.json and results.json."""

import copy
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kaizen.run.checkpoint import STATE

MEASURES = ("projection_rankme", "gradient_norm", "update_norm")
"""Their keys in log.jsonl, state.json and results.json."""


class TaskMeans:
    """Means of MEASURES over the log lines of a task, over all starts.

    Args:
        held: sums and counts by name, as `sums` gave them; None: unknown, as saved by a version without them.
    """

    def __init__(self, held: Any) -> None:
        self._sums = _sums(held)

    @property
    def sums(self) -> dict[str, list[float]] | None:
        """Sum and count of each so far, for state.json; None if lines of the task are unknown."""
        # A copy, as checkpoints are written while the next lines are added.
        return copy.deepcopy(self._sums)

    def add(self, record: Mapping[str, float | None]) -> None:
        """Add the numbers of a log line; None is not counted."""
        for name, held in (self._sums or {}).items():
            if (value := record[name]) is not None:
                held[:] = [held[0] + value, held[1] + 1]

    def means(self) -> dict[str, float | None]:
        """The means, None where unknown."""
        if self._sums is None:
            return dict.fromkeys(MEASURES)
        return {name: total / count if count else None for name, (total, count) in self._sums.items()}


def task_means(directory: Path) -> dict[str, float | None]:
    """Means over the log lines of a finished task, from its directory; None where unknown."""
    try:
        held = json.loads((directory / STATE).read_text(encoding="utf-8"))["measures"]
    except (OSError, ValueError, KeyError, TypeError):
        held = None
    return TaskMeans(held).means()


def _sums(held: Any) -> dict[str, list[float]] | None:
    """Sums and counts of all MEASURES, those that are missing from 0; None for what is none."""
    if not isinstance(held, dict):
        return None
    found = {name: held.get(name, [0.0, 0]) for name in MEASURES}
    for pair in found.values():
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(n, int | float) for n in pair)):
            return None
        if not all(map(math.isfinite, pair)):
            return None
    return {name: list(pair) for name, pair in found.items()}
