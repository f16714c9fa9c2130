"""Tasks as index sets: pure arithmetic on label and domain arrays, the same on every process."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kaizen.data.random import Purpose, fold, permutation
from kaizen.errors import ConfigError


@dataclass(frozen=True)
class Task:
    """One task: its new classes and its images, as indices into the source's train and test split."""

    name: str
    classes: tuple[int, ...]
    train: np.ndarray
    test: np.ndarray


def task_name(names: Sequence[str]) -> str:
    """The name of a task with these new classes: up to five, or two and their number, as `cat, dog, ... (20)`."""
    return ", ".join(names if len(names) <= 5 else [*names[:2], f"... ({len(names)})"])


def class_stream(num_classes: int, tasks: int, seed: int, sizes: Sequence[int] | None = None) -> list[list[int]]:
    """Classes of each task: a seeded permutation of all classes, cut by torch.tensor_split or into these sizes.

    Without `sizes`, which replace `tasks`, sizes differ by at most one, and every class is in exactly one task. With
    them, the last classes of the permutation may be in none.

    Raises:
        ConfigError: fewer than one task, or more tasks or larger sizes than there are classes.
    """
    if sizes is not None:
        _check_sizes(sizes, num_classes, "classes")
    elif not 1 <= tasks <= num_classes:
        problem = f"{tasks} tasks cannot be cut from {num_classes} classes; allowed: 1 to {num_classes}"
        raise ConfigError("stream.tasks", problem)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(num_classes, generator=generator)
    return [part.tolist() for part in _parts(order, tasks, sizes)]


def data_stream(images: int, tasks: int, seed: int, split: int, sizes: Sequence[int] | None = None) -> list[np.ndarray]:
    """Positions of each task's images among `images`, ascending int64: a seeded permutation, cut as in `class_stream`.

    Without `sizes`, sizes differ by at most one, and every image is in exactly one task. `split` (0 train, 1 test)
    seeds it too.

    Raises:
        ConfigError: fewer than one task, or more tasks or larger sizes than there are images.
    """
    if sizes is not None:
        _check_sizes(sizes, images, "images")
    elif not 1 <= tasks <= images:
        raise ConfigError("stream.tasks", f"{tasks} tasks cannot be cut from {images} images; allowed: 1 to {images}")
    order = permutation(images, fold(seed, Purpose.STREAM, split))
    return [part.sort().values.numpy() for part in _parts(order, tasks, sizes)]


def _check_sizes(sizes: Sequence[int], most: int, what: str) -> None:
    if sum(sizes) > most:
        problem = f"is {list(sizes)}, {sum(sizes)} {what} in all; allowed: at most the {most} there are"
        raise ConfigError("stream.sizes", problem)


def _parts(order: torch.Tensor, tasks: int, sizes: Sequence[int] | None) -> Sequence[torch.Tensor]:
    """An order cut into even parts, or into parts of these sizes from its beginning."""
    return torch.tensor_split(order, tasks) if sizes is None else order[: sum(sizes)].split(list(sizes))


def cut(
    kind: str,
    train_labels: np.ndarray,
    test_labels: np.ndarray,
    classes: int,
    tasks: int,
    seed: int,
    *,
    train_domains: np.ndarray | None = None,
    test_domains: np.ndarray | None = None,
    domains: Sequence[tuple[int, str]] = (),
    class_names: Sequence[str] = (),
    sizes: Sequence[int] | None = None,
    chosen: Sequence[Sequence[int]] | None = None,
) -> list[Task]:
    """Tasks of a stream; test images without a label are not evaluated and belong to no task.

    Args:
        kind: class (each task brings new classes), data (random parts of all images), domain or column (one task per
            domain, or per value of a column) or joint (one task with everything).
        train_labels, test_labels: int64 (n,); training images labelled -1 belong to no class, hence to no class stream.
        classes, tasks, seed, sizes: see `class_stream` and `data_stream`; other streams need no number of tasks. Test
            images of a data stream are always cut evenly.
        train_domains, test_domains: int64 (n,), -1 = none, for a domain or column stream.
        domains: numbers and names of the domains, in the order of the tasks; images of other domains belong to no task.
        class_names: names of the classes, from which tasks of a class stream get their names; none: numbers.
        chosen: classes of each task of a class stream, in place of a seeded cut; a joint stream has all of them.

    Raises:
        ConfigError: the division is impossible, or a task has no image to train on or to test on.
    """
    judged = np.flatnonzero(test_labels >= 0)
    if kind == "joint" and chosen is None:
        made = [Task("joint", tuple(range(classes)), np.arange(len(train_labels)), judged)]
    elif kind in ("class", "joint"):
        made = []
        parts = class_stream(classes, tasks, seed, sizes) if chosen is None else chosen
        for part in parts if kind == "class" else [[c for some in parts for c in some]]:
            train, test = (np.flatnonzero(np.isin(labels, part)) for labels in (train_labels, test_labels))
            names = [class_names[c] if class_names else f"class {c}" for c in part]
            made.append(Task(task_name(names) if kind == "class" else kind, tuple(part), train, test))
    elif kind == "data":
        tasks = tasks if sizes is None else len(sizes)
        names = [f"part {number} of {tasks}" for number in range(1, tasks + 1)]
        train_parts = data_stream(len(train_labels), tasks, seed, 0, sizes)
        test_parts = [judged[part] for part in data_stream(len(judged), tasks, seed, split=1)]
        made = _by_images(train_labels, zip(names, train_parts, test_parts, strict=True))
    else:
        if train_domains is None or test_domains is None:
            raise ConfigError("stream.kind", f"is {kind!r}, which needs the domain or value of every image")
        found = (
            (name, np.flatnonzero(train_domains == number), judged[test_domains[judged] == number])
            for number, name in domains
        )
        made = _by_images(train_labels, found)
    for index, task in enumerate(made):
        for split, images in (("training", task.train), ("labelled test", task.test)):
            if len(images) == 0:
                key = {"domain": "stream.domains", "column": "data.task_column"}.get(kind, "stream.tasks")
                key = key if chosen is None else "stream.classes"
                raise ConfigError(key, f"task {index} ({task.name}) has no {split} image")
    return made


def _by_images(labels: np.ndarray, parts: Iterable[tuple[str, np.ndarray, np.ndarray]]) -> list[Task]:
    """Tasks of given images (name, train, test); their classes are those that occur among the training images."""
    return [
        Task(name, tuple(np.unique(labels[train][labels[train] >= 0]).tolist()), train, test)
        for name, train, test in parts
    ]
