"""results.json (schema 2, see README.md): accuracy matrices and costs of the run, rewritten after every task.

Each reader has its own rows, one per task from the first on. A reader that is no longer configured keeps its rows.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from kaizen.config.schema import READERS, Config
from kaizen.data.chapters import Chapters
from kaizen.data.load import Stream
from kaizen.errors import ConfigError
from kaizen.evaluation.evaluator import Measured
from kaizen.evaluation.metrics import summarize
from kaizen.evaluation.schema import DAMAGED, SCHEMA, read_results
from kaizen.model.statistics import FILE, statistics_bytes
from kaizen.plugins import short
from kaizen.run.checkpoint import write_json
from kaizen.run.measures import MEASURES, task_means
from kaizen.run.places import task_directory


class Results:
    """The content of results.json, read back when a run resumes.

    Args:
        file: its path.
        described: recipe, preset (or None) and config_hash of the run.
        config, stream: the configuration and data of the evaluation.

    Raises:
        ConfigError: the file exists and cannot be read, or its results are on different data.
    """

    def __init__(
        self, file: Path, described: Mapping[str, str | None], config: Config, data: Stream | Chapters
    ) -> None:
        self.file = file
        chapters = data if isinstance(data, Chapters) else Chapters.single(config, data)
        told = _told(config, chapters)
        self.content: dict[str, Any] = {
            **told,
            **described,
            "readers": {},
            "seconds": {"train": [], "evaluate": [], "total": 0.0},
            "images_per_second": [],
            "rankme": [],
            **{name: [] for name in MEASURES},
            "memory_bytes": {"images": [], "statistics": []},
            "peak_memory_bytes": 0,
            "world_size": 0,
        }
        if file.exists():
            try:
                held = _read(file)
                same = held.get("data", told["data"])["digest"] == told["data"]["digest"]
            except DAMAGED as error:
                raise ConfigError(
                    str(file), f"cannot be read ({type(error).__name__}: {error}); delete it to evaluate again"
                ) from None
            if not same:
                raise ConfigError(str(file), "contains results on different images or labels; allowed: another file")
            self.content |= held | told
            self._widen(len(chapters.tasks))

    def _widen(self, tasks: int) -> None:
        """Add cells without a value for tasks that an extension has added since."""
        for found in self.content["readers"].values():
            for row in (found["untrained"], *found["matrix"]):
                row += [None] * (tasks - len(row))
        self._summarize()

    def _summarize(self) -> None:
        """The metrics of every reader anew."""
        gone = {int(task): missing for task, missing in self.content.get("gone", {}).items()}
        for found in self.content["readers"].values():
            rows = enumerate(found["matrix"])
            lacking = [t for t, row in rows if any(row[task] is None for task in gone.get(t, ()) if task <= t)]
            found |= summarize(found["matrix"], found["untrained"], lacking)

    def keep(self, tasks: int) -> None:
        """Drop the rows of tasks beyond the first `tasks`: tasks whose end state no longer exists are trained again."""
        for found in self.content["readers"].values():
            del found["matrix"][tasks:]
        self._summarize()
        seconds = self.content["seconds"]
        for held in (seconds["train"], seconds["evaluate"], self.content["images_per_second"], self.content["rankme"]):
            del held[tasks:]

    def lacking(self, task: int, readers: Sequence[str]) -> list[str]:
        """Those of these readers that have no row for a task (-1: untrained network)."""
        held = self.content["readers"]
        rows = {reader: len(held[name]["matrix"]) for reader in readers if (name := short(reader)) in held}
        return [reader for reader in readers if rows.get(reader, -1) <= task]

    def forget(self, readers: Sequence[str]) -> None:
        """Drop all rows of these readers."""
        for reader in readers:
            self.content["readers"].pop(short(reader), None)

    def filled(self, task: int, measured: Measured) -> Measured:
        """The measurements, with what the file knows from earlier of tasks whose test images are gone by now."""
        held, whole, found = self.content["readers"], str(task) not in self.content.get("gone", {}), {}
        for reader, row in measured.accuracies.items():
            before = held.get(reader, {"untrained": [], "matrix": []})
            rows = [before["untrained"], *before["matrix"]]
            old = rows[task + 1] if task + 1 < len(rows) else []
            whole &= len(old) == len(row)
            known = {place: old[place] for place in measured.gone if place < len(old)}
            found[reader] = [known.get(place, cell) for place, cell in enumerate(row)]
        ranks = self.content["rankme"]
        rank = ranks[task] if measured.gone and 0 <= task < len(ranks) else measured.rankme
        return measured._replace(accuracies=found, rankme=rank, gone=() if whole else measured.gone)

    def add_row(self, task: int, measured: Measured) -> None:
        """Add the measurements after a task (-1: untrained network); its readers have all earlier rows."""
        held, ranks = self.content["readers"], self.content["rankme"]
        if task >= 0:
            ranks += [None] * (task + 1 - len(ranks))
            ranks[task] = measured.rankme
        for reader, values in measured.accuracies.items():
            if task < 0:
                held[reader] = {"protocol": measured.protocols.get(reader), "untrained": values, "matrix": []}
            else:
                held[reader]["matrix"].append(values)
        if measured.gone:
            self.content.setdefault("gone", {})[str(task)] = list(measured.gone)
        elif self.content.get("gone", {}).pop(str(task), None) and not self.content["gone"]:
            del self.content["gone"]
        self._summarize()
        # In a fixed order, whenever a reader was added.
        places = {reader: place for place, reader in enumerate(READERS.words)}
        self.content["readers"] = dict(sorted(held.items(), key=lambda item: places.get(item[0], len(places))))

    def add_seconds(self, task: int, *, images: int | None, trained: float, evaluated: float) -> None:
        """Add the costs of a task: training images (counted in every epoch; None: unknown) and seconds.

        A further evaluation of a task, for new readers, adds to its evaluation time.
        """
        seconds = self.content["seconds"]
        if task < len(seconds["train"]):
            seconds["evaluate"][task] += evaluated
            return
        seconds["train"].append(trained)
        seconds["evaluate"].append(evaluated)
        self.content["images_per_second"].append(None if images is None else images / max(trained, 1e-9))

    def write(self, *, world: int, peak_memory: int) -> None:
        """Replace the file."""
        seconds = self.content["seconds"]
        seconds["total"] = sum(seconds["train"]) + sum(seconds["evaluate"])
        folders = [task_directory(self.file.parent, task) for task in range(len(seconds["train"]))]
        images = [_image_bytes(folder / "replay.safetensors") for folder in folders]
        statistics = [_statistics_bytes(folder / f"{FILE}.safetensors") for folder in folders]
        self.content["memory_bytes"] = {"images": images, "statistics": statistics}
        means = [task_means(folder) for folder in folders]
        self.content |= {name: [found[name] for found in means] for name in MEASURES}
        self.content["world_size"] = world
        self.content["peak_memory_bytes"] = max(peak_memory, self.content["peak_memory_bytes"])
        write_json(self.file, self.content)


def _told(config: Config, chapters: Chapters) -> dict[str, Any]:
    """What results.json tells of the data, with a list of extensions if there are any."""
    listed = [
        {"name": t.name, "classes": list(t.classes), "train_images": t.train_images, "test_images": t.test_images}
        for t in chapters.records
    ]
    own, *later = chapters.parts
    data = {"digest": own.record.digest, "mean": list(own.record.mean), "std": list(own.record.std)}
    told: dict[str, Any] = {
        "schema": SCHEMA,
        "data": {"source": config.data.source, **data},
        "class_names": list(chapters.class_names),
        "stream": {"kind": config.stream.kind, "tasks": listed},
    }
    if later:
        told["extensions"] = [
            {"source": part.record.source, "digest": part.record.digest, "first_task": part.first} for part in later
        ]
    return told


def _image_bytes(file: Path) -> int | None:
    """Bytes of the images in a replay memory, and of their logits if it holds any; None if it cannot be read."""
    try:
        with safe_open(file, "numpy") as held:
            logits = held.get_slice("logits").get_shape() if "logits" in held.keys() else [0]  # noqa: SIM118
            return math.prod(held.get_slice("images").get_shape()) + 4 * math.prod(logits)  # uint8 and float32
    except (OSError, SafetensorError):
        return None


def _statistics_bytes(file: Path) -> int | None:
    """Bytes of statistics of past classes; 0 where none are kept, None if the file cannot be read."""
    if not file.exists():
        return 0
    try:
        with safe_open(file, "numpy") as held:
            return statistics_bytes(*held.get_slice("means").get_shape())
    except (OSError, SafetensorError):
        return None


def _read(file: Path) -> dict[str, Any]:
    """An earlier results.json, with all members that are extended later."""
    held = read_results(file)
    seconds = held["seconds"]
    lists = [held["images_per_second"], held["rankme"], seconds["train"], seconds["evaluate"]]
    for reader in held["readers"].values():
        lists += [reader["matrix"], reader["untrained"]]
    if not all(isinstance(part, list) for part in lists):
        raise TypeError("a list is missing")
    return held
