"""The cut into tasks: golden splits, and properties of any cut."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaizen.data.stream import StreamError, class_stream, cut

GOLDEN = json.loads((Path(__file__).parent / "golden" / "schedules.json").read_text())["class_splits"]


@pytest.mark.parametrize("name", [name for name in GOLDEN if name != "note"])
def test_equal_cuts_are_the_released_ones(name: str) -> None:
    classes, tasks = (int(part.removeprefix("classes").removeprefix("tasks")) for part in name.split("_"))
    assert class_stream(classes, tasks, 5) == GOLDEN[name]


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))), st.integers(0, 2**31 - 1))
def test_every_class_is_in_one_task_and_tasks_are_even(size: tuple[int, int], seed: int) -> None:
    classes, tasks = size
    parts = class_stream(classes, tasks, seed)
    assert len(parts) == tasks
    assert sorted(c for part in parts for c in part) == list(range(classes))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert parts == class_stream(classes, tasks, seed)


@pytest.mark.parametrize("tasks", [0, 11])
def test_more_tasks_than_classes_is_refused(tasks: int) -> None:
    with pytest.raises(StreamError, match="10 classes"):
        class_stream(10, tasks, 5)


@given(st.integers(2, 8), st.integers(1, 8), st.integers(0, 1000), st.data())
def test_tasks_hold_the_images_of_their_classes(classes: int, tasks: int, seed: int, data: st.DataObject) -> None:
    tasks = min(tasks, classes)
    extra = data.draw(st.lists(st.integers(-1, classes - 1), max_size=30))
    train, test = np.array([*range(classes), *extra]), np.array([*reversed(range(classes)), *extra])
    made = cut("class", train, test, classes, tasks, seed)
    for task in made:
        for ids, labels in ((task.train, train), (task.test, test)):
            assert set(labels[ids]) == set(task.classes)
            assert list(ids) == sorted(ids)
    assert sum(len(task.train) for task in made) == (train >= 0).sum()


def test_a_task_without_images_is_refused() -> None:
    with pytest.raises(StreamError, match="no labelled test image"):
        cut("class", np.array([0, 1]), np.array([0, 0]), 2, 2, 5)


def test_joint_is_one_task_with_everything_that_can_be_judged() -> None:
    (task,) = cut("joint", np.array([0, -1, 1]), np.array([0, -1, 1]), 2, 5, 5)
    assert (list(task.train), list(task.test), task.classes) == ([0, 1, 2], [0, 2], (0, 1))
