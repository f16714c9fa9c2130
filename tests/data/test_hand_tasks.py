"""Tasks that a user decides: classes by hand, sizes, and a column that tells the task."""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_sources import LABELS, load, no_hub, refusal, table, write_parquet

from kaizen.cli.resolve import resolve
from kaizen.data.chosen import chosen_classes
from kaizen.data.load import Stream, load_stream, make_stream
from kaizen.data.splits import Source, Split
from kaizen.data.stream import class_stream, cut, data_stream
from kaizen.errors import ConfigError

__all__ = ["no_hub"]  # a fixture of every test here

sizes_of_tasks = st.lists(st.integers(1, 12), min_size=1, max_size=8)


@given(sizes_of_tasks, st.integers(0, 20), st.integers(0, 2**31 - 1))
def test_classes_are_cut_into_the_sizes_in_the_seeds_order(sizes: list[int], rest: int, seed: int) -> None:
    classes = sum(sizes) + rest
    parts = class_stream(classes, 1, seed, sizes)
    assert list(map(len, parts)) == sizes
    order = [c for part in class_stream(classes, classes, seed) for c in part]
    assert [c for part in parts for c in part] == order[: sum(sizes)]


@given(sizes_of_tasks, st.integers(0, 20), st.integers(0, 2**31 - 1))
@settings(deadline=None)
def test_images_are_cut_into_the_sizes_and_the_rest_is_left_out(sizes: list[int], rest: int, seed: int) -> None:
    parts = data_stream(sum(sizes) + rest, 1, seed, 0, sizes)
    assert list(map(len, parts)) == sizes
    assert all(list(part) == sorted(part) for part in parts)
    used = [i for part in parts for i in part]
    assert len(set(used)) == len(used)
    assert set(used) <= set(range(sum(sizes) + rest))


@pytest.mark.parametrize("stream", [class_stream, lambda *sizes: data_stream(*sizes[:3], 0, sizes[3])])
def test_more_than_there_is_is_refused(stream: Any) -> None:
    with pytest.raises(ConfigError, match=r"stream\.sizes: is \[6, 5\], 11 .* in all; allowed: at most the 10"):
        stream(10, 2, 5, [6, 5])


def test_sizes_of_a_data_stream_cut_the_test_images_evenly() -> None:
    labels = np.arange(20) % 2
    made = cut("data", labels, labels[:9], 2, 2, 0, sizes=[2, 10, 3])
    assert [len(task.train) for task in made] == [2, 10, 3]
    assert [len(task.test) for task in made] == [3, 3, 3]
    assert [task.name for task in made] == ["part 1 of 3", "part 2 of 3", "part 3 of 3"]


@given(st.permutations(range(6)), st.lists(st.integers(1, 3), min_size=1, max_size=4))
def test_a_class_that_is_left_out_is_in_no_task(order: list[int], sizes: list[int]) -> None:
    labels, wanted = np.arange(18) % 6, []
    for size in sizes:
        part, order = order[:size], order[size:]
        wanted += [part] if part else []
    made = cut("class", labels, labels, 6, 9, 0, chosen=wanted)
    assert [list(task.classes) for task in made] == wanted
    for task, part in zip(made, wanted, strict=True):
        assert set(labels[task.train]) == set(labels[task.test]) == set(part)
    (joint,) = cut("joint", labels, labels, 6, 1, 0, chosen=wanted)
    assert sorted(joint.train) == sorted(i for task in made for i in task.train)
    assert joint.name == "joint"


@pytest.mark.parametrize(
    ("wanted", "names", "found"),
    [
        ([["dog", "cat"], ["eel"]], ["cat", "dog", "eel"], [[1, 0], [2]]),
        ([["2", "cat"]], ["cat", "dog", "eel"], [[2, 0]]),
        ([["10"], ["9", "2"]], ["2", "9", "10"], [[2], [1, 0]]),
    ],
)
def test_classes_are_named_or_numbered(wanted: list[list[str]], names: list[str], found: list[list[int]]) -> None:
    assert chosen_classes(wanted, names) == found


@pytest.mark.parametrize(
    ("wanted", "names", "said"),
    [
        ([["cta"]], ["cat", "dog"], "names 'cta'; did you mean cat?; allowed: cat, dog, or numbers 0 to 1"),
        ([["0"]], ["1", "2"], "names '0'; allowed: 1, 2"),
        ([["7"]], ["cat", "dog"], "names '7'; allowed: cat, dog, or numbers 0 to 1"),
        ([["cat"], ["0"]], ["cat", "dog"], "names cat and 0, the same class twice; allowed: each class once"),
        ([["cat", "cat"]], ["cat", "dog"], "names cat twice; allowed: each class once"),
    ],
)
def test_a_class_that_is_unknown_or_named_twice_is_refused(
    wanted: list[list[str]], names: list[str], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        chosen_classes(wanted, names)
    assert str(caught.value) == f"stream.classes: {said}"


def test_a_stream_by_hand_tells_what_it_leaves_out() -> None:
    labels = np.arange(12) % 3
    splits = [Split(np.zeros((12, 3, 8, 8), np.uint8), labels, None, "") for _ in range(2)]
    source = Source(splits[0], splits[1], ("cat", "dog", "eel"), (), (0.5,) * 3, (0.5,) * 3, "")
    stream = make_stream(resolve("digits", {"stream.classes": "[[eel],[cat]]", "replay.per_class": "2"})[1], source)
    assert [task.name for task in stream.tasks] == ["eel", "cat"]
    assert "left out            4 training images that are in no task of the stream" in stream.describe()
    assert set(stream.labels[labels == 1]) == {-1}, "labels of no task are hidden"


# ------------------------------------------------------------------------------------------------- a column of tasks

TEXT, NUMBER = datasets.Value("string"), datasets.Value("int64")
STREAM = {"stream.kind": "column", "data.task_column": "when"}


def with_column(folder: Path, train: tuple[Sequence[Any], Any], test: tuple[Sequence[Any], Any] | None) -> str:
    columns = {} if test is None else {"when": test}
    return write_parquet(folder, table(len(train[0]), when=train), table(len(test[0]) if test else 6, 100, **columns))


def loaded(tmp_path: Path, source: str, **more: str) -> Stream:
    keys = {"data.source": source, "data.cache_dir": str(tmp_path / "cache"), **STREAM, **more}
    return load_stream(resolve("digits", keys)[1])


@pytest.mark.parametrize(
    ("values", "feature", "order"),
    [
        ([2021, -3, 10**12], NUMBER, ["-3", "2021", "1000000000000"]),
        (["10", "9", "2"], TEXT, ["2", "9", "10"]),
        (["b", "a", "10"], TEXT, ["10", "a", "b"]),
        ([0.5, 0.25, 2.0], datasets.Value("float64"), ["0.25", "0.5", "2.0"]),
        ([1, 0, 2], datasets.ClassLabel(names=["may", "april", "june"]), ["may", "april", "june"]),
        (
            [datetime.date(2021, 5, 1), datetime.date(2020, 6, 1), datetime.date(2021, 4, 30)],
            datasets.Value("date32"),
            ["2020-06-01", "2021-04-30", "2021-05-01"],
        ),
    ],
)
def test_tasks_are_the_values_of_the_column_in_their_order(
    tmp_path: Path, values: list[Any], feature: Any, order: list[str]
) -> None:
    column = [value for value in values for _ in range(3)]
    stream = loaded(tmp_path, with_column(tmp_path / "data", (column, feature), (column, feature)))
    assert [task.name for task in stream.tasks] == order
    again = loaded(tmp_path, f"parquet:{tmp_path / 'data'}")
    for task, cached in zip(stream.tasks, again.tasks, strict=True):
        assert len(task.train) == len(task.test) == 3
        assert len({column[i] for i in (*task.train, *task.test)}) == 1
        assert np.array_equal(task.train, cached.train), "read from the cache"


def test_images_with_an_unknown_value_or_none_belong_to_no_task(tmp_path: Path) -> None:
    train, test = [1, 1, 2, 2, None, 1], [2, 1, 7, None, 2, 1]
    stream = loaded(tmp_path, with_column(tmp_path / "data", (train, NUMBER), (test, NUMBER)))
    assert [task.name for task in stream.tasks] == ["1", "2"]
    assert [list(task.train) for task in stream.tasks] == [[0, 1, 5], [2, 3]]
    assert [list(task.test) for task in stream.tasks] == [[1, 5], [0, 4]]


def test_a_task_column_is_part_of_the_key_of_decoded_images_and_changes_no_other_key(tmp_path: Path) -> None:
    source = with_column(tmp_path / "data", ([1, 2, 1, 2, 1, 2], NUMBER), ([1, 2, 1, 2, 1, 2], NUMBER))
    plain, told = load(tmp_path, source), load(tmp_path, source, task_column="when")
    assert plain.train.domains is None
    assert told.domain_names == ("1", "2")
    assert plain.fingerprint != told.fingerprint
    assert load(tmp_path, source, task_column=None).fingerprint == plain.fingerprint
    others = loaded(tmp_path, source, **{"stream.kind": "class", "stream.tasks": "3"})
    assert others.source.fingerprint == plain.fingerprint, "a column that is not used is not read"


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        (([1] * 6, NUMBER), None, r"is 'when', which split 'test' lacks, so that the tasks of its images are unknown"),
        (([[1]] * 6, [NUMBER]), ([[1]] * 6, [NUMBER]), r"'when', split 'train', row 0: found a list; allowed: text"),
        (([1] * 6, NUMBER), (["a"] * 6, TEXT), "'when' has numbers and text; allowed: values of one kind"),
    ],
)
def test_a_column_that_cannot_tell_the_task_is_refused(tmp_path: Path, train: Any, test: Any, said: str) -> None:
    error = refusal(tmp_path, with_column(tmp_path / "data", train, test), task_column="when")
    assert error.key == "data.task_column"
    assert said in error.problem


def test_a_value_without_test_images_is_refused_by_name(tmp_path: Path) -> None:
    source = with_column(tmp_path / "data", ([1, 1, 2], NUMBER), ([1, 1, 1], NUMBER))
    with pytest.raises(ConfigError, match=r"data\.task_column: task 1 \(2\) has no labelled test image"):
        loaded(tmp_path, source)


def test_without_decoding_everything_but_the_images_is_there(tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "data", table(6, label=([0, 1, 2, -1, 1, 0], LABELS)))
    seen = load(tmp_path, source, decode=False)
    assert not list((tmp_path / "cache").iterdir())
    whole = load(tmp_path, source)
    assert seen.train.labels.tolist() == whole.train.labels.tolist()
    assert (seen.class_names, seen.train.images.shape) == (whole.class_names, whole.train.images.shape)
    assert load(tmp_path, source, decode=False).digest() == whole.digest(), "what is in the cache is taken from there"
