"""From the configuration to images, labels and tasks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kaizen.config import Config
from kaizen.data.source import Source, load_source
from kaizen.data.stream import StreamError, Task, cut
from kaizen.errors import ConfigError


@dataclass(frozen=True)
class Stream:
    """The source, its cut into tasks, and mean and std ((3,) each, for 0..1) that images are normalised by."""

    source: Source
    tasks: tuple[Task, ...]
    moments: tuple[Tensor, Tensor]

    def describe(self) -> list[str]:
        """What was found, as lines for the user."""
        train, test = self.source.train.labels, self.source.test.labels
        lines = [f"images              {len(train)} to train, {len(test)} to test, {self.source.num_classes} classes"]
        if unused := len(train) - sum(self.train_sizes):
            lines.append(f"left out            {unused} training images without a label, which belong to no task")
        return lines

    @property
    def train_sizes(self) -> list[int]:
        """Training images of each task."""
        return [len(task.train) for task in self.tasks]


def load_stream(config: Config) -> Stream:
    """Load the data (from the cache where it is there) and cut it into tasks.

    Raises:
        ConfigError: the data cannot be had, or cannot be cut so.
    """
    data, stream = config.data, config.stream
    source = load_source(
        data.source,
        image_size=data.image_size,
        image_column=data.image_column,
        label_column=data.label_column,
        domain_column=data.domain_column,
        train_split=data.train_split,
        test_split=data.test_split,
        cache_dir=data.cache_dir,
    )
    labels = source.train.labels, source.test.labels
    try:
        tasks = cut(stream.kind, *labels, source.num_classes, stream.tasks, stream.seed)
    except StreamError as error:
        raise ConfigError("stream.tasks", str(error)) from None
    total = config.replay.total
    if config.replay.policy != "none" and total is not None and total < source.num_classes:
        raise ConfigError("replay.total", f"is {total}; allowed: at least {source.num_classes}, an image of each class")
    mean, std = (source.mean, source.std) if data.normalize == "dataset" else data.normalize
    if min(std) <= 0:
        raise ConfigError(
            "data.normalize", f"std of the training images is {list(std)}; allowed: above 0, as [[mean x 3], [std x 3]]"
        )
    return Stream(source, tuple(tasks), (torch.tensor(mean), torch.tensor(std)))
