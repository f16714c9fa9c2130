"""The division into tasks: golden splits, and properties of any division."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kaizen.cli.resolve import resolve
from kaizen.data.load import Stream, make_stream
from kaizen.data.splits import Source, Split
from kaizen.data.stream import class_stream, cut, data_stream
from kaizen.errors import ConfigError

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "schedules.json").read_text())["class_splits"]


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
    with pytest.raises(ConfigError, match="10 classes"):
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
    with pytest.raises(ConfigError, match=r"\(dog\) has no labelled test image"):
        cut("class", np.array([0, 1]), np.array([0, 0]), 2, 2, 5, class_names=["cat", "dog"])


def test_a_task_is_named_by_its_classes() -> None:
    labels = np.arange(12)
    for tasks, more in ((4, None), (1, "... (12)")):
        task = cut("class", labels, labels, 12, tasks, 5, class_names="abcdefghijkl")[0]
        shown = ["abcdefghijkl"[c] for c in task.classes]
        assert task.name.split(", ") == ([*shown[:2], more] if more else shown)


def test_joint_is_one_task_with_everything_that_can_be_judged() -> None:
    (task,) = cut("joint", np.array([0, -1, 1]), np.array([0, -1, 1]), 2, 5, 5)
    assert (list(task.train), list(task.test), task.classes) == ([0, 1, 2], [0, 2], (0, 1))


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))), st.integers(0, 2**31 - 1))
@settings(deadline=None)
def test_data_streams_are_disjoint_complete_even_and_seeded(size: tuple[int, int], seed: int) -> None:
    images, tasks = size
    parts = data_stream(images, tasks, seed, split=0)
    assert len(parts) == tasks
    assert sorted(i for part in parts for i in part) == list(range(images))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert all(list(part) == sorted(part) for part in parts)
    again = data_stream(images, tasks, seed, split=0)
    assert all(np.array_equal(one, two) for one, two in zip(parts, again, strict=True))


def test_a_data_stream_has_another_cut_for_each_seed_and_split() -> None:
    cuts = [data_stream(100, 2, seed, split)[0].tolist() for seed, split in ((0, 0), (1, 0), (0, 1))]
    assert cuts[0] != cuts[1]
    assert cuts[0] != cuts[2]
    assert cuts[0] != list(range(50)), "random, not in dataset order"
    # Of the 50 images of a part, half are expected from the first half of the data: 25, give or take 2.5.
    assert all(15 <= sum(i < 50 for i in part) <= 35 for part in cuts)


@pytest.mark.parametrize("tasks", [0, 11])
def test_more_tasks_than_images_is_refused(tasks: int) -> None:
    with pytest.raises(ConfigError, match="10 images"):
        data_stream(10, tasks, 5, split=0)


labels_of_any_kind = st.lists(st.integers(-1, 3), min_size=4, max_size=40).map(np.array)


@given(labels_of_any_kind, labels_of_any_kind, st.integers(1, 4), st.integers(0, 1000))
@settings(deadline=None)
def test_data_tasks_share_all_training_images_and_all_test_images_with_a_label(
    train: np.ndarray, test: np.ndarray, tasks: int, seed: int
) -> None:
    judged = np.flatnonzero(test >= 0)
    if len(judged) < tasks:
        with pytest.raises(ConfigError, match="images"):
            cut("data", train, test, 4, tasks, seed)
        return
    made = cut("data", train, test, 4, tasks, seed)
    assert len(made) == tasks
    assert sorted(np.concatenate([task.train for task in made])) == list(range(len(train)))
    assert sorted(np.concatenate([task.test for task in made])) == list(judged)
    for task in made:
        assert set(task.classes) == set(train[task.train]) - {-1}
    for sizes in ([len(task.train) for task in made], [len(task.test) for task in made]):
        assert max(sizes) - min(sizes) <= 1


@given(st.data(), st.integers(1, 4))
def test_domain_tasks_are_the_images_of_each_domain_in_order(data: st.DataObject, domains: int) -> None:
    numbers = st.lists(st.tuples(st.integers(0, 3), st.integers(0, domains - 1)), max_size=20)
    every = [(0, d) for d in range(domains)]
    train, test = (np.array([*every, *data.draw(numbers)]) for _ in range(2))
    chosen = data.draw(st.permutations(range(domains)))[: data.draw(st.integers(1, domains))]
    made = cut(
        "domain",
        train[:, 0],
        test[:, 0],
        4,
        99,
        0,
        train_domains=train[:, 1],
        test_domains=test[:, 1],
        domains=[(d, f"domain {d}") for d in chosen],
    )
    assert [task.name for task in made] == [f"domain {d}" for d in chosen]
    for task, domain in zip(made, chosen, strict=True):
        assert list(task.train) == [i for i, row in enumerate(train) if row[1] == domain]
        assert list(task.test) == [i for i, row in enumerate(test) if row[1] == domain]
        assert task.classes == tuple(sorted(set(train[task.train, 0])))


def test_a_domain_without_a_test_image_that_can_be_judged_is_refused_by_name() -> None:
    arguments = {"train_domains": np.array([0, 1]), "test_domains": np.array([0, 1])}
    with pytest.raises(ConfigError, match=r"task 1 \(sketch\) has no labelled test image"):
        cut("domain", np.array([0, 0]), np.array([0, -1]), 1, 1, 0, **arguments, domains=[(0, "real"), (1, "sketch")])
    with pytest.raises(ConfigError, match="needs the domain"):
        cut("domain", np.array([0, 0]), np.array([0, -1]), 1, 1, 0, domains=[(0, "real")])


# ------------------------------------------------------------------------------------------- lines on a source


def made(names: Sequence[str], train: list[int], test: list[int], **keys: str) -> Stream:
    splits = [Split(np.zeros((len(labels), 3, 8, 8), np.uint8), np.array(labels), None, "") for labels in (train, test)]
    source = Source(*splits, tuple(names), (), (0.5,) * 3, (0.5,) * 3, "", notes=("train/metadata.csv",))
    return make_stream(resolve("digits", {"stream.kind": "joint"} | keys)[1], source)


def test_classes_of_one_split_and_names_that_look_alike_are_told() -> None:
    names = ["cat", "Cat", "caf\u00e9", "cafe\u0301 ", "eel"]
    said = made(names, [0, 0, 1, 2], [0, 0, 3, 3, 1], **{"stream.tasks": "1"}).describe()
    assert said[-4:] == [
        f"no training image   {names[3]!r}: 2 of 5 test images, which cannot be classified correctly",
        f"no test image       {names[2]!r}: trained on, never evaluated",
        "names alike         'cat' and 'Cat', 'caf\\xe9' and 'cafe\\u0301 ': separate classes",
        "not read            train/metadata.csv",
    ]
    quiet = made(["a", "b"], [0, 1], [1, 0]).describe()
    assert not [line for line in quiet if line.startswith(("no ", "names alike"))]


def test_a_test_split_that_shares_no_class_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"data\.test_split: is .test., and none of its classes has a training image: b"
    ):
        made(["a", "b"], [0, 0], [1, 1])
