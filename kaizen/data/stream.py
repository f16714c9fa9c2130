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


def class_stream(num_classes: int, tasks: int, seed: int) -> list[list[int]]:
    """Classes of each task: a seeded permutation of all classes, cut by torch.tensor_split.

    Sizes may differ by one; every class is in exactly one task, and every task has at least one class.

    Raises:
        ConfigError: fewer than one task, or more tasks than classes.
    """
    if not 1 <= tasks <= num_classes:
        problem = f"{tasks} tasks cannot be cut from {num_classes} classes; allowed: 1 to {num_classes}"
        raise ConfigError("stream.tasks", problem)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(num_classes, generator=generator)
    return [part.tolist() for part in torch.tensor_split(order, tasks)]


def data_stream(images: int, tasks: int, seed: int, split: int) -> list[np.ndarray]:
    """Positions of each task's images among `images`, ascending int64: a seeded permutation, cut by torch.tensor_split.

    Sizes differ by at most one; every image is in exactly one task. `split` (0 train, 1 test) seeds it too.

    Raises:
        ConfigError: fewer than one task, or more tasks than images.
    """
    if not 1 <= tasks <= images:
        raise ConfigError("stream.tasks", f"{tasks} tasks cannot be cut from {images} images; allowed: 1 to {images}")
    order = permutation(images, fold(seed, Purpose.STREAM, split))
    return [part.sort().values.numpy() for part in torch.tensor_split(order, tasks)]


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
) -> list[Task]:
    """Tasks of a stream; test images without a label are not evaluated and belong to no task.

    Args:
        kind: class (each task brings new classes), data (equal random parts of all images), domain (one task per
            domain) or joint (one task with everything).
        train_labels, test_labels: int64 (n,); training images labelled -1 belong to no class, hence to no class stream.
        classes, tasks, seed: see `class_stream` and `data_stream`; domain and joint streams need no number of tasks.
        train_domains, test_domains: int64 (n,), for a domain stream.
        domains: numbers and names of the domains, in the order of the tasks; images of other domains belong to no task.
        class_names: names of the classes, from which tasks of a class stream get their names; none: numbers.

    Raises:
        ConfigError: the division is impossible, or a task has no image to train on or to test on.
    """
    judged = np.flatnonzero(test_labels >= 0)
    if kind == "joint":
        made = [Task("joint", tuple(range(classes)), np.arange(len(train_labels)), judged)]
    elif kind == "class":
        made = []
        for chosen in class_stream(classes, tasks, seed):
            train, test = (np.flatnonzero(np.isin(labels, chosen)) for labels in (train_labels, test_labels))
            names = [class_names[c] if class_names else f"class {c}" for c in chosen]
            made.append(Task(task_name(names), tuple(chosen), train, test))
    elif kind == "data":
        names = [f"part {number} of {tasks}" for number in range(1, tasks + 1)]
        train_parts = data_stream(len(train_labels), tasks, seed, split=0)
        test_parts = [judged[part] for part in data_stream(len(judged), tasks, seed, split=1)]
        made = _by_images(train_labels, zip(names, train_parts, test_parts, strict=True))
    else:
        if train_domains is None or test_domains is None:
            raise ConfigError("stream.domains", "a domain stream needs the domain of every image")
        found = (
            (name, np.flatnonzero(train_domains == number), judged[test_domains[judged] == number])
            for number, name in domains
        )
        made = _by_images(train_labels, found)
    for index, task in enumerate(made):
        for split, images in (("training", task.train), ("labelled test", task.test)):
            if len(images) == 0:
                key = "stream.domains" if kind == "domain" else "stream.tasks"
                raise ConfigError(key, f"task {index} ({task.name}) has no {split} image")
    return made


def _by_images(labels: np.ndarray, parts: Iterable[tuple[str, np.ndarray, np.ndarray]]) -> list[Task]:
    """Tasks of given images (name, train, test); their classes are those that occur among the training images."""
    return [
        Task(name, tuple(np.unique(labels[train][labels[train] >= 0]).tolist()), train, test)
        for name, train, test in parts
    ]
