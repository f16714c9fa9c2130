"""Which images a chapter of the run's stream has for readers: those that teach, and those that they are asked about."""

from collections.abc import Sequence, Set
from typing import NamedTuple

import numpy as np
from torch import Tensor

from kaizen.data.chapters import NONE, Chapter
from kaizen.data.splits import Images
from kaizen.evaluation.metrics import cannot_name


class Rows(NamedTuple):
    """Images of a chapter, in the order of its tasks.

    images: those of a split and the rows (n,) of them that are meant; labels: the true ones of each task, or None for
    a task whose images are gone.
    """

    images: tuple[Images, np.ndarray]
    labels: list[np.ndarray | None]


def teaching(part: Chapter, last: int) -> Rows:
    """The labelled training images of a chapter's tasks up to task `last` of the run."""
    tasks = range(part.first, part.last + 1)
    if part.stream is None:
        return _gone(part)
    split = part.stream.source.train
    rows = [part.stream.tasks[task].train if task <= last else NONE for task in tasks]
    rows = [held[split.labels[held] >= 0] for held in rows]
    return Rows((split.images, np.concatenate(rows)), [split.labels[held] for held in rows])


def asking(part: Chapter) -> Rows:
    """The test images of a chapter's tasks."""
    if part.stream is None:
        return _gone(part)
    split, tasks = part.stream.source.test, part.stream.tasks[part.first :]
    return Rows((split.images, np.concatenate([task.test for task in tasks])), [split.labels[t.test] for t in tasks])


def _gone(part: Chapter) -> Rows:
    return Rows((np.empty((0, *part.record.image), dtype=np.uint8), NONE), [None] * len(part.record.tasks))


def accuracies(guesses: Tensor, truths: Sequence[np.ndarray | None], taught: Set[int]) -> list[float | None]:
    """Fraction of correct predictions (of all test images, by task) per task, for a reader taught these classes.

    None: the images are gone, or the reader cannot name any of their classes.
    """
    parts = guesses.cpu().split([0 if truth is None else len(truth) for truth in truths])
    return [
        None if truth is None or cannot_name(taught, set(truth.tolist())) else float(np.mean(part.numpy() == truth))
        for part, truth in zip(parts, truths, strict=True)
    ]


def constant(guesses: Tensor, truths: Sequence[np.ndarray | None], taught: Set[int]) -> int | None:
    """The only class among the guesses for these first tasks, though it was taught several and asked for several."""
    labels = [truth for truth in truths if truth is not None]
    asked = {int(label) for part in labels for label in np.unique(part) if label >= 0}
    if len(asked) < 2 or len(taught) < 2:
        return None
    given = guesses[: sum(map(len, labels))].unique().tolist()
    return int(given[0]) if len(given) == 1 else None
