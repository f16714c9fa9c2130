"""results.json: the accuracy matrices and what the run cost, rewritten after every task.

Each reader has rows of its own, for the first so many tasks; one that the configuration no longer names keeps its rows.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from kaizen.config.schema import Reader
from kaizen.data.stream import Task
from kaizen.errors import ConfigError
from kaizen.evaluation.metrics import summarize
from kaizen.run.checkpoint import write_json


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

    def lacking(self, task: int, readers: Sequence[str]) -> list[str]:
        """Which of these readers have no row for a task; task -1 is the untrained network's."""
        held = self.content["readers"]
        return [reader for reader in readers if reader not in held or len(held[reader]["matrix"]) <= task]

    def forget(self, readers: Sequence[str]) -> None:
        """Drop all rows of these readers."""
        for reader in readers:
            self.content["readers"].pop(reader, None)

    def add_row(self, task: int, row: Mapping[str, list[float]]) -> None:
        """Accuracies by reader after a task (-1: of the untrained network); these readers have the rows before it."""
        held = self.content["readers"]
        for reader, values in row.items():
            if task < 0:
                held[reader] = {"untrained": values, "matrix": []}
            else:
                held[reader]["matrix"].append(values)
            held[reader] |= summarize(held[reader]["matrix"], held[reader]["untrained"])
        # In one order, whenever a reader came.
        ranks = {reader: rank for rank, reader in enumerate(get_args(Reader))}
        self.content["readers"] = dict(sorted(held.items(), key=lambda item: ranks.get(item[0], len(ranks))))

    def add_seconds(self, task: int, *, images: int, trained: float, evaluated: float) -> None:
        """What a task cost: images it trained on (counted again each epoch) and seconds.

        A task evaluated again, for other readers, takes that much longer to evaluate.
        """
        seconds = self.content["seconds"]
        if task < len(seconds["train"]):
            seconds["evaluate"][task] += evaluated
            return
        seconds["train"].append(trained)
        seconds["evaluate"].append(evaluated)
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
    held = json.loads(file.read_text(encoding="utf-8"))
    seconds = held["seconds"]
    lists = [held["images_per_second"], seconds["train"], seconds["evaluate"]]
    for reader in held["readers"].values():
        lists += [reader["matrix"], reader["untrained"]]
    if not all(isinstance(part, list) for part in lists):
        raise TypeError("a list is missing")
    return held
