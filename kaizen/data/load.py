"""Loads images, labels and tasks as configured."""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kaizen.config.data import StreamConfig
from kaizen.config.schema import Config
from kaizen.config.types import AUTO
from kaizen.data.chosen import chosen_classes
from kaizen.data.columns import sort_names
from kaizen.data.decoding import Decoding, evaluation_side
from kaizen.data.files import listed
from kaizen.data.labels import visible_labels
from kaizen.data.source import Source, load_source
from kaizen.data.stream import Task, cut
from kaizen.errors import ConfigError


@dataclass(frozen=True)
class Stream:
    """The source and its division into tasks.

    labels: int64 (n,) of the training images as the learner and the memory may see them, -1 = not available; the
    source's labels are for the division and for evaluation. moments: mean and std, (3,) each for 0..1, that images are
    normalised by.

    Where the source was added to a run later, tasks of earlier sources come first, without images (`first` of them).
    known: classes of labels that those had; groups: the number of their (task, class) groups; offset: added to the
    indices of training images, so that sample ids in the memory differ from those of earlier sources.
    """

    source: Source
    tasks: tuple[Task, ...]
    labels: np.ndarray
    moments: tuple[Tensor, Tensor]
    first: int = 0
    known: frozenset[int] = frozenset()
    groups: int = 0
    offset: int = 0

    def describe(self) -> list[str]:
        """Lines for the user on what was found."""
        train, test = self.source.train.labels, self.source.test.labels
        lines = [f"images              {len(train)} to train, {len(test)} to test, {self.source.num_classes} classes"]
        lines += self.source.describe()
        used = sum(self.train_sizes)
        if unused := len(train) - used:
            lines.append(f"left out            {unused} training images that are in no task of the stream")
        lines.append(f"labels              {(self.labels >= 0).sum()} of {used} training images are labelled")
        if len(self.tasks) > 1:
            names = [f"{number}: {task.name}" for number, task in enumerate(self.tasks[:10])]
            more = f"; ... ({len(self.tasks)} tasks)" if len(self.tasks) > len(names) else ""
            lines.append(f"names of tasks      {'; '.join(names)}{more}")
        lines += _odd_classes(self.source.class_names, *_labels_used(self.source, self.tasks))
        return lines + ([f"not read            {listed(self.source.notes)}"] if self.source.notes else [])

    @property
    def train_sizes(self) -> list[int]:
        """Training images of each task."""
        return [len(task.train) for task in self.tasks[self.first :]]

    def labels_of(self, task: int) -> list[int]:
        """The different labels, -1 among them, that the task's images have as the run sees them, ascending."""
        return [int(label) for label in np.unique(self.labels[self.tasks[task].train])]

    def taught(self, task: int) -> frozenset[int]:
        """Classes of the labels that the run has seen after a task of this source."""
        seen = (label for number in range(self.first, task + 1) for label in self.labels_of(number))
        return self.known.union(label for label in seen if label >= 0)


def load_stream(
    config: Config, check: Callable[[], None] = lambda: None, *, decode: bool = True, labelled: bool = True
) -> Stream:
    """Load the data (from the cache if possible) and divide them; for the rest see `load_source` and `make_stream`."""
    # Images have one number besides their label: of their task or else of their domain.
    unused = "domain_column" if config.stream.kind == "column" else "task_column"
    keys: dict[str, Any] = config.data.model_dump() | {unused: None}
    source = load_source(**keys, resize=config.eval.resize, check=check, decode=decode)
    return make_stream(config, source, labelled=labelled)


def decoding_of(config: Config, size: int) -> Decoding | None:
    """How a run decodes encoded images with unaugmented ones of this side; None with data.store pixels."""
    if config.data.store != "files":
        return None
    resize = evaluation_side(size) if config.eval.resize in (None, AUTO) else config.eval.resize
    return Decoding(size, resize, config.data.background, config.data.workers)


def make_stream(config: Config, source: Source, *, labelled: bool = True) -> Stream:
    """Divide a source into tasks and hide labels.

    Args:
        labelled: whether some training image must have a label, and classes of training and test images must meet.

    Raises:
        ConfigError: it cannot be divided as configured, or a key does not fit the tasks.
    """
    data, stream, train, test = config.data, config.stream, source.train, source.test
    tasks = cut(
        stream.kind,
        train.labels,
        test.labels,
        source.num_classes,
        stream.tasks,
        stream.seed,
        train_domains=train.domains,
        test_domains=test.domains,
        domains=_domains(stream, source),
        class_names=source.class_names,
        sizes=stream.sizes,
        chosen=None if stream.classes is None else chosen_classes(stream.classes, source.class_names),
    )
    taught, judged = _labels_used(source, tasks)
    if labelled and not len(taught):
        problem = f"is {data.train_split!r}, where no image that takes part has a label"
        raise ConfigError("data.train_split", f"{problem}; allowed: a split with labels")
    if labelled and not set(taught) & set(judged):
        key = "test_split" if data.test_fraction is None else "test_fraction"
        problem = f"is {getattr(data, key)!r}, and none of its classes has a training image: {_classes(source, judged)}"
        raise ConfigError(f"data.{key}", f"{problem}; allowed: some of {_classes(source, taught)}")
    # Only among images that take part, so that no class has its only label in a domain that is left out.
    labels = np.full_like(train.labels, -1)
    used = np.concatenate([task.train for task in tasks])
    labels[used] = train.labels[used]
    labels = visible_labels(labels, config.labels.fraction, config.labels.seed)
    _check_tasks(config, tasks, labels)
    mean, std = (source.mean, source.std) if data.normalize == "dataset" else data.normalize
    if min(std) <= 0:
        raise ConfigError(
            "data.normalize", f"std of the training images is {list(std)}; allowed: above 0, as [[mean x 3], [std x 3]]"
        )
    return Stream(source, tuple(tasks), labels, (torch.tensor(mean), torch.tensor(std)))


def _labels_used(source: Source, tasks: Sequence[Task]) -> tuple[np.ndarray, np.ndarray]:
    """Known labels of the training and the test images that are in a task."""
    train = source.train.labels[np.concatenate([task.train for task in tasks])]
    return train[train >= 0], source.test.labels[np.concatenate([task.test for task in tasks])]


def _classes(source: Source, labels: np.ndarray) -> str:
    return listed([source.class_names[number] for number in np.unique(labels)]) or "none"


def _odd_classes(names: Sequence[str], taught: np.ndarray, judged: np.ndarray) -> list[str]:
    """Lines on classes that occur in only one split, or whose names look alike."""
    train, test = set(taught.tolist()), set(judged.tolist())
    lines = []
    if only := sorted(test - train):
        part = f"{np.isin(judged, only).sum()} of {len(judged)} test images, which cannot be classified correctly"
        lines.append(f"no training image   {listed([repr(names[i]) for i in only])}: {part}")
    if only := sorted(train - test):
        lines.append(f"no test image       {listed([repr(names[i]) for i in only])}: trained on, never evaluated")
    alike: dict[str, list[str]] = {}
    for name in names:
        # ascii() shows the difference if letters look the same, such as composed and decomposed umlauts.
        alike.setdefault(" ".join(unicodedata.normalize("NFKC", name).casefold().split()), []).append(ascii(name))
    twins = [" and ".join(group) for group in alike.values() if len(group) > 1]
    return [*lines, f"names alike         {listed(twins)}: separate classes"] if twins else lines


def _domains(stream: StreamConfig, source: Source) -> list[tuple[int, str]]:
    """Numbers and names of domains or of values of the task column in the order of the tasks; none for other streams.

    By default these are all domains, sorted (numbers by their value), and the values that training images have.
    """
    names = source.domain_names
    if stream.kind == "column" and source.train.domains is not None:
        return [(number, names[number]) for number in np.unique(source.train.domains).tolist() if number >= 0]
    if stream.kind != "domain":
        return []
    wanted = sort_names(names) if stream.domains is None else stream.domains
    for name in wanted:
        if name not in names:
            raise ConfigError("stream.domains", f"names {name!r}; allowed: {', '.join(sorted(names))}")
    return [(list(names).index(name), name) for name in wanted]


def _check_tasks(config: Config, tasks: Sequence[Task], labels: np.ndarray) -> None:
    """Refuse keys that do not fit the tasks."""
    replay, total = config.replay, config.replay.total
    if replay.policy not in ("none", "reservoir") and total is not None:
        groups = sum(len(np.unique(labels[task.train])) for task in tasks)
        if total < groups:
            raise ConfigError(
                "replay.total",
                f"is {total}; allowed: at least {groups}, an image of each class (-1 among them) of each task",
            )
    if config.classifier.distill_weight == "class_ratio":
        seen: set[int] = set()
        for index, task in enumerate(tasks):
            if seen.issuperset(task.classes):
                raise ConfigError(
                    "classifier.distill_weight",
                    f"is 'class_ratio', but task {index} ({task.name}) brings no new class; allowed: a number",
                )
            seen.update(task.classes)
