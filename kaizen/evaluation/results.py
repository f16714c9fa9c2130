"""results.json: the accuracy matrices and what the run cost, rewritten after every task."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kaizen.checkpoint import write_json
from kaizen.data.stream import Task
from kaizen.errors import ConfigError
from kaizen.evaluation.metrics import summarize


class Results:
    """The content of results.json, read back when a run goes on.

    Args:
        file: where it is kept.
        described: recipe, preset (or None) and config_hash of the run.
        kind, tasks: the stream.

    Raises:
        ConfigError: the file is there and cannot be read.
    """

    def __init__(self, file: Path, described: Mapping[str, str | None], kind: str, tasks: Sequence[Task]) -> None:
        self.file = file
        listed = [
            {"name": t.name, "classes": list(t.classes), "train_images": len(t.train), "test_images": len(t.test)}
            for t in tasks
        ]
        self.content: dict[str, Any] = {
            "schema": 1,
            **described,
            "stream": {"kind": kind, "tasks": listed},
            "readers": {},
            "seconds": {"train": [], "evaluate": [], "total": 0.0},
            "images_per_second": [],
            "peak_memory_bytes": 0,
            "world_size": 0,
        }
        if file.exists():
            try:
                self.content |= _read(file)
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise ConfigError(
                    str(file), f"cannot be read ({type(error).__name__}: {error}); delete it to evaluate again"
                ) from None

    def keep(self, tasks: int) -> None:
        """Drop the rows of tasks beyond the first `tasks`: those whose end state is gone will be trained again."""
        for found in self.content["readers"].values():
            found["matrix"] = found["matrix"][:tasks]
            found |= summarize(found["matrix"], found["untrained"])
        seconds = self.content["seconds"]
        for name in ("train", "evaluate"):
            seconds[name] = seconds[name][:tasks]
        self.content["images_per_second"] = self.content["images_per_second"][:tasks]

    @property
    def evaluated(self) -> int:
        """Tasks whose row is there for every reader; -1 where the untrained row is missing too."""
        lengths: list[int] = [len(reader["matrix"]) for reader in self.content["readers"].values()]
        return min(lengths) if lengths else -1

    def add_untrained(self, row: Mapping[str, list[float]]) -> None:
        """The accuracies of the untrained network, by reader."""
        self.content["readers"] = {
            reader: {"untrained": values, "matrix": [], **summarize([], values)} for reader, values in row.items()
        }

    def add_row(self, row: Mapping[str, list[float]], *, images: int, trained: float, evaluated: float) -> None:
        """The next task: accuracies by reader, images it trained on (counted again each epoch), seconds it took."""
        for reader, values in row.items():
            found = self.content["readers"][reader]
            found["matrix"].append(values)
            found |= summarize(found["matrix"], found["untrained"])
        self.content["seconds"]["train"].append(trained)
        self.content["seconds"]["evaluate"].append(evaluated)
        self.content["images_per_second"].append(images / max(trained, 1e-9))

    def write(self, *, world: int, peak_memory: int) -> None:
        """Replace the file."""
        seconds = self.content["seconds"]
        seconds["total"] = sum(seconds["train"]) + sum(seconds["evaluate"])
        self.content["world_size"] = world
        self.content["peak_memory_bytes"] = max(peak_memory, self.content["peak_memory_bytes"])
        write_json(self.file, self.content)


def _read(file: Path) -> dict[str, Any]:
    """An earlier results.json; what is added to later must be there."""
    held = json.loads(file.read_text())
    seconds = held["seconds"]
    lists = [held["images_per_second"], seconds["train"], seconds["evaluate"]]
    for reader in held["readers"].values():
        lists += [reader["matrix"], reader["untrained"]]
    if not all(isinstance(part, list) for part in lists):
        raise TypeError("a list is missing")
    return held
