"""The chapters of a run's stream: the tasks of its own source, then those that each extension added with another one.

A chapter is recorded in history.json when it is first loaded, so that its source need not exist any more once it is
trained. Later chapters see the tasks of earlier ones by name and classes, without their images.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from kaizen.config.extension import Extension
from kaizen.config.schema import Config, settled, with_numbers
from kaizen.config.yaml import YamlError, parse_yaml
from kaizen.data.history import Record, read_history, record_of, write_history
from kaizen.data.load import Stream, load_stream
from kaizen.data.splits import Split
from kaizen.data.stream import Task, task_name
from kaizen.errors import ConfigError

OFFSET = 1 << 40
"""Distance between the sample ids of two chapters, far more than a source has images."""
NONE = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class Chapter:
    """A chapter: `config` with its own sections, `first` task, `record`, and its stream or why that is gone."""

    number: int
    config: Config
    first: int
    record: Record
    stream: Stream | None
    gone: ConfigError | None = None

    @property
    def present(self) -> Stream:
        """The stream; the ConfigError that says why it is gone."""
        if self.stream is None:
            raise self.gone or ConfigError("data.source", f"{self.record.source} is gone")
        return self.stream

    @property
    def last(self) -> int:
        """Number of the chapter's last task."""
        return self.first + len(self.record.tasks) - 1


class Chapters:
    """All chapters of a run, in order."""

    def __init__(self, parts: Sequence[Chapter]) -> None:
        self.parts = tuple(parts)
        self.records = [task for part in self.parts for task in part.record.tasks]
        self.tasks = [Task(task.name, task.classes, NONE, NONE) for task in self.records]

    @classmethod
    def single(cls, config: Config, stream: Stream) -> "Chapters":
        """The only chapter of a run that was never extended."""
        return cls([Chapter(0, config, 0, record_of(stream, config.data.source, stream.source.digest()), stream)])

    def of_config(self, config: Config) -> "Chapters":
        """The same chapters, of a run's configuration in which numbers have replaced `auto`."""
        return Chapters([replace(part, config=config.chapter(part.number)) for part in self.parts])

    def check_from(self, task: int) -> None:
        """Raise the ConfigError of the first source that is gone although tasks from this one on need it."""
        for part in self.parts:
            if part.gone is not None and part.last >= task:
                raise part.gone

    def of(self, task: int) -> Chapter:
        """The chapter of a task; that of the untrained network (-1) is the first one."""
        return next(part for part in self.parts if task <= part.last)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of all classes, by output."""
        return self.parts[-1].record.class_names

    @property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and std, (3,) each, by which all images are normalised."""
        return torch.tensor(self.parts[0].record.mean), torch.tensor(self.parts[0].record.std)

    def taught(self, task: int) -> frozenset[int]:
        """Classes of the labels that the run has seen after a task (-1: none)."""
        return frozenset(label for record in self.records[: task + 1] for label in record.taught)

    def digest(self) -> str:
        """Digests of the sources that are here, for a comparison between processes."""
        return ",".join("-" if part.stream is None else part.record.digest for part in self.parts)

    def describe(self) -> list[str]:
        """Lines for the user on what was found; a source that is gone takes one."""
        lines = []
        for part in self.parts:
            if part.number:
                tasks = f"task {part.first}" if part.first == part.last else f"tasks {part.first} to {part.last}"
                lines.append(f"extension           {part.number}: {tasks} from {part.config.data.source}")
            if part.stream is not None:
                lines += part.stream.describe()
            else:
                lines.append(
                    f"gone                {part.config.data.source}: its images are neither read nor evaluated"
                )
        return lines

    def write(self, run: Path) -> None:
        """Write history.json."""
        write_history(run, [part.record for part in self.parts])


def held_extensions(config: Config, run: Path) -> tuple[Extension, ...]:
    """The extensions of the run in a directory; of the configuration if there is no run.

    Raises:
        ConfigError: the configuration has other extensions, or config.yaml cannot be read.
    """
    if not (held := _held(run)):
        return config.extensions
    try:
        extensions = tuple(Extension.model_validate_json(json.dumps(one)) for one in held.get("extensions") or ())
    except (ValidationError, TypeError) as error:
        raise ConfigError(str(run / "config.yaml"), f"has extensions that cannot be read ({error})") from None
    if config.extensions and extensions != config.extensions:
        problem = f"are not those of the run in {run}"
        raise ConfigError("extensions", f"{problem}; allowed: none, which takes the run's, or another run.dir")
    return extensions


def held_store(config: Config, run: Path) -> tuple[Any, Any]:
    """data.store and eval.resize of the run in a directory where the configuration leaves them open, else its own."""
    held = _held(run)
    config = settled(config, held) if held else config
    return config.data.store, config.eval.resize


def _held(run: Path) -> dict[str, Any]:
    file = run / "config.yaml"
    try:
        held = parse_yaml(file.read_text(encoding="utf-8")) if file.exists() else {}
    except (OSError, YamlError, ValueError) as error:
        raise ConfigError(str(file), f"cannot be read ({error})") from None
    return held if isinstance(held, dict) else {}


def open_chapters(
    config: Config,
    run: Path,
    load: Callable[[], Stream] | None = None,
    check: Callable[[], None] = lambda: None,
) -> Chapters:
    """All chapters of a run, with the streams of those sources that are here.

    Args:
        config: with the run's extensions (see `held_extensions`).
        load: loads the run's own source.

    Raises:
        ConfigError: the source of a run without extensions is missing, or one that was never recorded.
    """
    records, parts = read_history(run), list[Chapter]()
    for number in range(len(config.extensions) + 1):
        record = records[number] if number < len(records) else None
        parts.append(_open(config, parts, record, run, load, check))
    return Chapters(parts)


def _open(
    config: Config,
    before: Sequence[Chapter],
    record: Record | None,
    run: Path,
    load: Callable[[], Stream] | None,
    check: Callable[[], None],
) -> Chapter:
    """The next chapter, from its source or, where that is gone or has changed, from its record."""
    number, first = len(before), sum(len(part.record.tasks) for part in before)
    own = config.chapter(number)
    try:
        if number:
            stream, found = added(own, before, check)
        else:
            stream = (load or (lambda: load_stream(own, check)))()
            found = record_of(stream, own.data.source, stream.source.digest())
    except ConfigError as error:
        if record is None or not config.extensions:
            raise
        if not number:
            own = with_numbers(own, _held(run))
        return Chapter(number, own, first, record, None, error)
    if record is not None and record.digest != found.digest and config.extensions:
        problem = f"{own.data.source} contains other images or labels than {run} was trained on"
        other = ConfigError("data.source", f"{problem}; allowed: the original data")
        return Chapter(number, own, first, record, None, other)
    return Chapter(number, own, first, found, stream)


def added(config: Config, before: Sequence[Chapter], check: Callable[[], None] = lambda: None) -> tuple[Stream, Record]:
    """The stream of a source that comes after other chapters, and its record.

    Classes that are known by name keep their outputs, new ones get the next. Images have the run's size and are
    normalised as the run's own.

    Raises:
        ConfigError: the source is missing or does not fit.
    """
    held = before[-1].record
    normalize = (held.mean, held.std)
    data = config.data.model_copy(update={"image_size": held.image[-1], "normalize": normalize})
    raw = load_stream(config.model_copy(update={"data": data}), check, labelled=False)
    names = (*held.class_names, *(name for name in raw.source.class_names if name not in held.class_names))
    places = np.array([*(names.index(name) for name in raw.source.class_names), -1])

    def moved(split: Split) -> Split:
        return replace(split, labels=places[split.labels])

    source, digest = raw.source, raw.source.digest()
    source = replace(source, train=moved(source.train), test=moved(source.test), class_names=names)
    own = [replace(task, classes=tuple(places[list(task.classes)].tolist())) for task in raw.tasks]
    if config.stream.kind == "joint":
        own = [replace(own[0], name=task_name([names[label] for label in own[0].classes]))]
    earlier = [record for part in before for record in part.record.tasks]
    stream = Stream(
        source,
        (*(Task(task.name, task.classes, NONE, NONE) for task in earlier), *own),
        places[raw.labels],
        raw.moments,
        first=len(earlier),
        known=frozenset(label for record in earlier for label in record.taught),
        groups=sum(record.groups for record in earlier),
        offset=len(before) * OFFSET,
    )
    return stream, record_of(stream, config.data.source, digest)
