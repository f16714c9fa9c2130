"""Evaluation after a task: features of all images, then every reader's accuracy on every task's test images."""

from collections.abc import Sequence, Set
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kaizen.config.schema import Config
from kaizen.data.load import Stream
from kaizen.data.replay import Memory
from kaizen.errors import ConfigError, TrainingFailed
from kaizen.evaluation.features import extract_features, rankme
from kaizen.evaluation.metrics import PROTOCOLS, cannot_name, mean
from kaizen.evaluation.readers import REGISTRY, Check, Evidence, reader_class
from kaizen.evaluation.readers.classifier import Classifier
from kaizen.model.learner import Network
from kaizen.model.teacher import read_network
from kaizen.parallel import Parallel, memory_format
from kaizen.plugins import short
from kaizen.run.places import task_directory


class Measured(NamedTuple):
    """Measurements of a network.

    accuracies: by reader, the fraction of correct predictions on each task's test images; None where the reader cannot
    name any of their classes, and everywhere if it had nothing to learn from. rankme: effective rank of the features of
    all test images. constant: the class that the network's own classifier gives for every test image of the tasks seen,
    if there is one and they have several. protocols: by reader, what it is.
    """

    accuracies: dict[str, list[float | None]]
    rankme: float
    constant: int | None = None
    protocols: dict[str, str | None] = {}  # noqa: RUF012

    def means(self, tasks: int) -> str:
        """The mean accuracy in % on the first tasks, by reader, for the user."""
        rows = {reader: row[:tasks] for reader, row in self.accuracies.items()}
        return ", ".join(
            f"{reader} -" if all(cell is None for cell in row) else f"{reader} {100 * mean(row):.1f}"
            for reader, row in rows.items()
        )


class Evaluator:
    """Measures networks on the test images of all tasks, over all classes, without the task index.

    A network is put into eval mode, so its running statistics are used and not updated. What readers learn from is in
    `Evidence`; images without a label (-1) teach none.

    Raises:
        ConfigError: a reader of true labels is configured, and the first task has no labelled training image.
    """

    def __init__(self, config: Config, stream: Stream, parallel: Parallel) -> None:
        self.config, self.stream, self.parallel = config, stream, parallel
        mean, std = stream.moments
        self.moments = mean.to(parallel.device), std.to(parallel.device)
        labels = stream.source.train.labels
        self.labelled = [task.train[labels[task.train] >= 0] for task in stream.tasks]
        if self._learning(config.eval.readers) and not len(self.labelled[0]):
            problem = f"is {list(config.eval.readers)}, and no training image of task 0 has a label to train them"
            others = [reader for reader in REGISTRY if not self._learning([reader])]
            raise ConfigError("eval.readers", f"{problem}; allowed: {', '.join(others)}")

    def network(self, run: Path, task: int) -> Network:
        """The network from a run's snapshot of a task; task -1: untrained.

        Raises:
            ConfigError: the snapshot is missing, damaged, or of different networks.
        """
        if task < 0:
            return Network(self.config, self.stream.source.num_classes)
        snapshot = task_directory(run, task) / "student.safetensors"
        return read_network(snapshot, self.config, self.stream.source.num_classes)

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
            ConfigError: a reader asks for the replay memory, and its file is missing or damaged.
        """
        chosen = [reader_class(name)(short(name)) for name in readers]
        protocols = {reader.name: PROTOCOLS.get(reader.name, reader.protocol) for reader in chosen}
        directory = None if run is None or task < 0 else task_directory(run, task)
        sees, tasks = {reader.sees for reader in chosen}, len(self.stream.tasks)
        last = tasks if "all" in sees or task < 0 else task + 1
        ids = np.concatenate([np.empty(0, np.int64), *self.labelled[: last if sees & {"all", "seen"} else 0]])
        memory, kept = self._memory(directory if "memory" in sees else None)
        train, held, test = self._features(network, [(self.stream.source.train.images, ids), memory], check)
        evidence = Evidence(
            self.config,
            network,
            task,
            train,
            torch.from_numpy(self.stream.source.train.labels[ids]),
            ends=tuple(np.cumsum([len(part) for part in self.labelled]).tolist()),
            memory=None if kept is None else (held, kept),
            directory=directory,
            taught=self._taught(task),
            check=check_alone,
        )

        def read() -> Measured:
            found: dict[str, list[float | None]] = {}
            own = Classifier("classifier")
            own.fit(evidence)
            given = own.predict(test)
            for reader in chosen:
                found[reader.name] = [None] * tasks
                if reader.can_read(evidence):
                    reader.fit(evidence)
                    guesses = given if isinstance(reader, Classifier) else reader.predict(test)
                    found[reader.name] = self._accuracies(guesses, reader.taught(evidence))
            return Measured(found, rankme(test), self._constant(given, task, own.taught(evidence)), protocols)

        return self.parallel.on_main(read)

    @staticmethod
    def _learning(readers: Sequence[str]) -> list[str]:
        """Those that learn from the labels of training images."""
        return [reader for reader in readers if reader_class(reader).sees in ("seen", "all")]

    def _memory(self, directory: Path | None) -> tuple[tuple[np.ndarray, np.ndarray], Tensor | None]:
        """Images of the replay memory, rows of those with a label, and these labels; without a directory, none."""
        if directory is None:
            return (self.stream.source.train.images, np.empty(0, np.int64)), None
        file = directory / "replay.safetensors"
        self.parallel.await_file(file)
        logits = self.config.classifier.distill == "stored_logits"
        memory = Memory.read(file, None, self.stream.source.num_classes, logits=logits)
        rows = torch.nonzero(memory.labels >= 0).squeeze(1)
        return (memory.images.numpy(), rows.numpy()), memory.labels[rows]

    def _taught(self, task: int) -> frozenset[int]:
        """Classes of the labels that the run has seen after a task (-1: none)."""
        seen = [self.stream.labels[part.train] for part in self.stream.tasks[: task + 1]]
        return frozenset(int(label) for part in seen for label in np.unique(part) if label >= 0)

    def _constant(self, guesses: Tensor, task: int, taught: Set[int]) -> int | None:
        """The only class among the classifier's guesses for the tasks seen, though it was taught and asked several."""
        labels = [self.stream.source.test.labels[part.test] for part in self.stream.tasks[: task + 1]]
        asked = {int(label) for part in labels for label in np.unique(part) if label >= 0}
        if len(asked) < 2 or len(taught) < 2:
            return None
        given = guesses[: sum(map(len, labels))].unique().tolist()
        return int(given[0]) if len(given) == 1 else None

    def notes(self, task: int, measured: Measured) -> list[str]:
        """What the user should know about the measurements after a task, one line each."""
        if measured.constant is None:
            return []
        name, optim = self.stream.source.class_names[measured.constant], self.config.optim
        return [
            f"note: after task {task} the classifier gives the class {name!r} for every test image of the tasks seen, "
            f"so it no longer learns; lower optim.classifier_lr ({optim.classifier_lr}) or raise optim.warmup_epochs "
            f"({optim.warmup_epochs})"
        ]

    def _accuracies(self, guesses: Tensor, taught: Set[int]) -> list[float | None]:
        """Fraction of correct predictions (all test images, by task) per task, for a reader taught these classes."""
        labels = [self.stream.source.test.labels[task.test] for task in self.stream.tasks]
        parts = guesses.cpu().split(list(map(len, labels)))
        return [
            None if cannot_name(taught, set(truth.tolist())) else float(np.mean(part.numpy() == truth))
            for part, truth in zip(parts, labels, strict=True)
        ]

    def _features(
        self, network: Network, sets: Sequence[tuple[np.ndarray, np.ndarray]], check: Check
    ) -> tuple[Tensor, ...]:
        """Features (n, d) of rows of images, for each set, and of all test images, by task, on every process."""
        network.to(self.parallel.device).to(memory_format=memory_format(network, self.parallel.device)).eval()
        tests = np.concatenate([task.test for task in self.stream.tasks])
        sets = [*sets, (self.stream.source.test.images, tests)]
        features = extract_features(network.encoder, sets, self.moments, self.parallel, check)
        if not bool(features.isfinite().all()):
            raise TrainingFailed("the network has diverged: its features of some images, in eval mode, are not finite")
        return features.split([len(rows) for _, rows in sets])
