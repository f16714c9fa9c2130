"""Tasks as index sets: pure arithmetic on label arrays, the same on every process."""

from dataclasses import dataclass

import numpy as np
import torch


class StreamError(ValueError):
    """A stream that cannot be cut as asked; the message says why."""


@dataclass(frozen=True)
class Task:
    """One task: which classes it brings and which images, as indices into the source's train and test split."""

    name: str
    classes: tuple[int, ...]
    train: np.ndarray
    test: np.ndarray


def class_stream(num_classes: int, tasks: int, seed: int) -> list[list[int]]:
    """Classes of each task: a seeded permutation of all classes, cut by torch.tensor_split.

    Cuts may be uneven; every class is in exactly one task, and every task has at least one class.

    Raises:
        StreamError: fewer than one task, or more tasks than classes.
    """
    if not 1 <= tasks <= num_classes:
        raise StreamError(f"{tasks} tasks cannot be cut from {num_classes} classes; allowed: 1 to {num_classes}")
    generator = torch.Generator().manual_seed(seed)
    permutation = torch.randperm(num_classes, generator=generator)
    return [part.tolist() for part in torch.tensor_split(permutation, tasks)]


def cut(
    kind: str, train_labels: np.ndarray, test_labels: np.ndarray, classes: int, tasks: int, seed: int
) -> list[Task]:
    """Tasks of a stream.

    Args:
        kind: class (each task brings classes of its own) or joint (one task with everything).
        train_labels, test_labels: int64 (n,); images labelled -1 belong to no class and only to a joint stream.
        classes, tasks, seed: see `class_stream`.

    Raises:
        StreamError: a cut that is not possible, or a task without an image to train on or to test on.
    """
    if kind == "joint":
        everything = (np.arange(len(train_labels)), np.flatnonzero(test_labels >= 0))
        made = [Task("joint", tuple(range(classes)), *everything)]
    else:
        made = []
        for chosen in class_stream(classes, tasks, seed):
            train, test = (np.flatnonzero(np.isin(labels, chosen)) for labels in (train_labels, test_labels))
            made.append(Task(f"classes {', '.join(map(str, chosen))}", tuple(chosen), train, test))
    for index, task in enumerate(made):
        for split, found in (("training", task.train), ("labelled test", task.test)):
            if len(found) == 0:
                raise StreamError(f"task {index} (classes {list(task.classes)}) has no {split} image")
    return made
