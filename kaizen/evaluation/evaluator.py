"""Evaluation after a task: features of all images, then every reader's accuracy on every task's test images."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kaizen.config.schema import Config
from kaizen.data.chapters import NONE, Chapters
from kaizen.data.load import Stream, decoding_of
from kaizen.data.replay import Memory
from kaizen.data.splits import Images
from kaizen.errors import ConfigError, TrainingFailed
from kaizen.evaluation.features import extract_features, rankme
from kaizen.evaluation.metrics import PROTOCOLS, mean
from kaizen.evaluation.questions import accuracies, asking, constant, teaching
from kaizen.evaluation.readers import REGISTRY, Check, Evidence, reader_class
from kaizen.evaluation.readers.classifier import Classifier
from kaizen.model.learner import Network
from kaizen.model.pretrained import load_pretrained
from kaizen.model.teacher import read_network
from kaizen.parallel import Parallel, memory_format
from kaizen.plugins import short
from kaizen.run.places import task_directory


class Measured(NamedTuple):
    """Measurements of a network.

    accuracies: by reader, the fraction of correct predictions on each task's test images; None where the reader cannot
    name any of their classes, and everywhere if it had nothing to learn from. rankme: effective rank of the features of
    all test images; None without any. constant: the class that the network's own classifier gives for every test image
    of the tasks seen, if there is one and they have several. protocols: by reader, what it is. gone: tasks whose test
    images are gone.
    """

    accuracies: dict[str, list[float | None]]
    rankme: float | None
    constant: int | None = None
    protocols: dict[str, str | None] = {}  # noqa: RUF012
    gone: tuple[int, ...] = ()

    def means(self, tasks: int) -> str:
        """The mean accuracy in % on the first tasks whose images are here, by reader, for the user."""
        here = [task for task in range(tasks) if task not in self.gone]
        rows = {reader: [row[task] for task in here] for reader, row in self.accuracies.items()}
        return ", ".join(
            f"{reader} -" if all(cell is None for cell in row) else f"{reader} {100 * mean(row):.1f}"
            for reader, row in rows.items()
        )


class Evaluator:
    """Measures networks on the test images of all tasks, over all classes, without the task index.

    A network is put into eval mode, so its running statistics are used and not updated. What readers learn from is in
    `Evidence`; images without a label (-1) teach none. In a run that was extended, a network is evaluated on the tasks
    of its own chapter and of those before; tasks whose source is gone are left out, and so are readers of its images.

    Raises:
        ConfigError: a reader of true labels is configured, and the first task has no labelled training image.
    """

    def __init__(self, config: Config, data: Stream | Chapters, parallel: Parallel) -> None:
        self.config, self.parallel = config, parallel
        self.chapters = data if isinstance(data, Chapters) else Chapters.single(config, data)
        mean, std = self.chapters.moments
        self.moments = mean.to(parallel.device), std.to(parallel.device)
        first = self.chapters.parts[0].stream
        if (
            self._learning(config.eval.readers)
            and first is not None
            and not np.any(first.source.train.labels[first.tasks[0].train] >= 0)
        ):
            problem = f"is {list(config.eval.readers)}, and no training image of task 0 has a label to train them"
            others = [reader for reader in REGISTRY if not self._learning([reader])]
            raise ConfigError("eval.readers", f"{problem}; allowed: {', '.join(others)}")

    def network(self, run: Path, task: int) -> Network:
        """The network from a run's snapshot of a task; task -1: as task 0 starts, untrained.

        Raises:
            ConfigError: the snapshot is missing, damaged, or of different networks.
        """
        if task < 0:
            network = Network(self.config, len(self.chapters.of(task).record.class_names))
            load_pretrained(network.encoder, self.config, run)
            return network
        return read_network(task_directory(run, task) / "student.safetensors", self.config)

    def row(
        self,
        network: Network,
        task: int,
        readers: Sequence[str],
        check: Check = lambda: None,
        check_alone: Check = lambda: None,
        *,
        run: Path | None = None,
    ) -> Measured:
        """Accuracies by reader after a task (-1: untrained network), and the rank of the features.

        All processes call `check` before each batch of images, the main one `check_alone` while readers work; both may
        raise. Readers of what the run saved find it in the directory `run`.

        Raises:
            TrainingFailed: features are not finite.
            ConfigError: a reader asks for the replay memory, and its file is missing or damaged, or an own reader gives
                no class for each image.
        """
        chosen = [reader_class(name)(short(name)) for name in readers]
        protocols = {reader.name: PROTOCOLS.get(reader.name, reader.protocol) for reader in chosen}
        directory = None if run is None or task < 0 else task_directory(run, task)
        sees, parts = {reader.sees for reader in chosen}, self.chapters.parts[: self.chapters.of(task).number + 1]
        whole = all(part.stream is not None for part in parts)
        last = parts[-1].last if "all" in sees or task < 0 else task
        taught = [teaching(part, last if whole and sees & {"all", "seen"} else -1) for part in parts]
        memory, kept = self._memory(directory if "memory" in sees else None)
        asked = [asking(part) for part in parts]
        images = [*(sets.images for sets in taught), memory, *(sets.images for sets in asked)]
        features = self._features(network, images, check)
        train, held, test = torch.cat(features[: len(parts)]), features[len(parts)], torch.cat(features[-len(parts) :])
        truths = [labels for sets in asked for labels in sets.labels]
        gone = tuple(number for number, labels in enumerate(truths) if labels is None)
        own_labels = [NONE if labels is None else labels for sets in taught for labels in sets.labels]
        if len(test) == 0:
            return Measured({r.name: [None] * len(self.chapters.tasks) for r in chosen}, None, None, protocols, gone)
        evidence = Evidence(
            self.config,
            network,
            task,
            train,
            torch.from_numpy(np.concatenate(own_labels)),
            ends=tuple(np.cumsum([len(labels) for labels in own_labels]).tolist()),
            memory=None if kept is None else (held, kept),
            directory=directory,
            taught=self.chapters.taught(task),
            check=check_alone,
        )

        def read() -> Measured:
            found: dict[str, list[float | None]] = {}
            own = Classifier("classifier")
            own.fit(evidence)
            given = own.predict(test)
            for reader in chosen:
                found[reader.name] = [None] * len(self.chapters.tasks)
                if reader.can_read(evidence) and (whole or reader.sees not in ("seen", "all")):
                    reader.fit(evidence)
                    guesses = given if isinstance(reader, Classifier) else reader.checked(reader.predict(test), test)
                    row = accuracies(guesses, truths, reader.taught(evidence))
                    found[reader.name][: len(row)] = row
            return Measured(
                found, rankme(test), constant(given, truths[: task + 1], own.taught(evidence)), protocols, gone
            )

        return self.parallel.on_main(read)

    @staticmethod
    def _learning(readers: Sequence[str]) -> list[str]:
        """Those that learn from the labels of training images."""
        return [reader for reader in readers if reader_class(reader).sees in ("seen", "all")]

    def _memory(self, directory: Path | None) -> tuple[tuple[Images, np.ndarray], Tensor | None]:
        """Images of the replay memory, rows of those with a label, and these labels; without a directory, none."""
        image = self.chapters.parts[0].record.image
        if directory is None:
            return (np.empty((0, *image), np.uint8), NONE), None
        file = directory / "replay.safetensors"
        self.parallel.await_file(file)
        logits = self.config.classifier.distill == "stored_logits"
        decoding = decoding_of(self.config, image[-1])
        memory = Memory.read(file, None, len(self.chapters.class_names), logits=logits, decoding=decoding)
        rows = torch.nonzero(memory.labels >= 0).squeeze(1)
        return (memory.pixels, rows.numpy()), memory.labels[rows]

    def notes(self, task: int, measured: Measured) -> list[str]:
        """What the user should know about the measurements after a task, one line each."""
        if measured.constant is None:
            return []
        name, optim = self.chapters.class_names[measured.constant], self.chapters.of(task).config.optim
        return [
            f"note: after task {task} the classifier gives the class {name!r} for every test image of the tasks seen, "
            f"so it no longer learns; lower optim.classifier_lr ({optim.classifier_lr:g}) or raise optim.warmup_epochs "
            f"({optim.warmup_epochs})"
        ]

    def _features(
        self, network: Network, sets: Sequence[tuple[Images, np.ndarray]], check: Check
    ) -> tuple[Tensor, ...]:
        """Features (n, d) of rows of images, for each set, on every process."""
        network.to(self.parallel.device).to(memory_format=memory_format(network, self.parallel.device)).eval()
        features = extract_features(network.encoder, sets, self.moments, self.parallel, check)
        if not bool(features.isfinite().all()):
            raise TrainingFailed("the network has diverged: its features of some images, in eval mode, are not finite")
        return features.split([len(rows) for _, rows in sets])
