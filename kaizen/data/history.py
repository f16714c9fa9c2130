"""history.json: what is known of a run's data without the data."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kaizen.data.load import Stream
from kaizen.errors import ConfigError
from kaizen.run.checkpoint import write_json

FILE = "history.json"


@dataclass(frozen=True)
class TaskRecord:
    """What is known of a task without its images.

    taught: classes of the labels that the run sees; groups: their number, with one more if images without a label are
    among them.
    """

    name: str
    classes: tuple[int, ...]
    train_images: int
    test_images: int
    taught: tuple[int, ...]
    groups: int


@dataclass(frozen=True)
class Record:
    """What is known of a chapter without its source.

    source, digest: where the data were, and their digest; class_names: all classes up to this chapter, by output;
    image: shape (c, h, w); mean, std: (3,) by which images are normalised.
    """

    source: str
    digest: str
    class_names: tuple[str, ...]
    image: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    tasks: tuple[TaskRecord, ...]


def record_of(stream: Stream, source: str, digest: str) -> Record:
    """The record of a stream's own tasks."""
    tasks = []
    for number in range(stream.first, len(stream.tasks)):
        task, labels = stream.tasks[number], stream.labels_of(number)
        taught = tuple(label for label in labels if label >= 0)
        tasks.append(TaskRecord(task.name, task.classes, len(task.train), len(task.test), taught, len(labels)))
    mean, std = (tuple(moment.tolist()) for moment in stream.moments)
    shape = stream.source.train.images.shape[1:]
    return Record(source, digest, tuple(stream.source.class_names), tuple(shape), mean, std, tuple(tasks))


def read_history(run: Path) -> list[Record]:
    """Records of the chapters of a run; none if it has no history.json.

    Raises:
        ConfigError: the file cannot be read.
    """
    file = run / FILE
    try:
        held = json.loads(file.read_text(encoding="utf-8"))["chapters"]
        return [_record(part) for part in held]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(str(file), f"cannot be read ({type(error).__name__}: {error})") from None


def _record(held: dict[str, Any]) -> Record:
    """A record as JSON holds it, with its lists as tuples again."""

    def frozen(value: Any) -> Any:
        return tuple(map(frozen, value)) if isinstance(value, list) else value

    tasks = tuple(TaskRecord(**{key: frozen(value) for key, value in task.items()}) for task in held["tasks"])
    return Record(**{key: frozen(value) for key, value in held.items() if key != "tasks"}, tasks=tasks)


def write_history(run: Path, records: Sequence[Record]) -> None:
    """Write history.json."""
    write_json(run / FILE, {"chapters": [asdict(record) for record in records]})
