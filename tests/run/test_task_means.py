"""Means over a task's log lines: over restarts, and unknown where an older version saved none."""

import json
from pathlib import Path
from typing import Any

import pytest

from kaizen.run.measures import MEASURES, TaskMeans, task_means

LINES: list[dict[str, float | None]] = [
    dict(zip(MEASURES, values, strict=True)) for values in ((0.1, 0.7, 3.3), (0.2, None, 1e-9), (0.3, 0.1, 2.0))
]


def test_they_are_means_of_what_was_measured() -> None:
    means = TaskMeans({})
    assert means.means() == dict.fromkeys(MEASURES)
    for line in LINES:
        means.add({**line, "projection_std": 1.0})
    expected = [(0.1 + 0.2 + 0.3) / 3, (0.7 + 0.1) / 2, (3.3 + 1e-9 + 2.0) / 3]
    assert list(means.means().values()) == expected


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_restart_changes_no_bit(at: int) -> None:
    whole, first = TaskMeans({}), TaskMeans({})
    for line in LINES[:at]:
        first.add(line)
    saved = first.sums
    first.add(LINES[0])  # while the checkpoint is being written
    second = TaskMeans(json.loads(json.dumps(saved)))
    for line in LINES[at:]:
        second.add(line)
    for line in LINES:
        whole.add(line)
    assert second.sums == whole.sums


BAD = [None, [], "x", {"update_norm": 1}, {"update_norm": [1]}, {"update_norm": [1, "a"]}, {"update_norm": [1e999, 1]}]


@pytest.mark.parametrize("held", BAD)
def test_what_was_not_saved_stays_unknown(held: Any, tmp_path: Path) -> None:
    means = TaskMeans(held)
    means.add(LINES[0])
    assert means.sums is None
    assert means.means() == dict.fromkeys(MEASURES)
    assert task_means(tmp_path) == dict.fromkeys(MEASURES), "no state.json"
    for content in ({"measures": held}, {"step": 3}, []):
        (tmp_path / "state.json").write_text(json.dumps(content))
        assert task_means(tmp_path) == dict.fromkeys(MEASURES)
