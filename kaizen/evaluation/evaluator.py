"""Evaluation after a task: features of all images, then every reader's accuracy on every task's test images."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kaizen.config.schema import Config
from kaizen.data.load import Stream
from kaizen.errors import ConfigError, TrainingFailed
from kaizen.evaluation.features import BATCH, extract_features, rankme
from kaizen.evaluation.metrics import cannot_name
from kaizen.evaluation.readers import TOLERANCE, Check, fit_probe, nearest_neighbours
from kaizen.model.learner import Network
from kaizen.model.teacher import read_network
from kaizen.parallel import Parallel, memory_format
from kaizen.run.places import task_directory


class Measured(NamedTuple):
    """Measurements of a network.

    accuracies: by reader, the fraction of correct predictions on each task's test images; None where the reader cannot
    name any of their classes. rankme: effective rank of the features of all test images. constant: the class that the
    network's own classifier gives for every test image of the tasks seen, if there is one and they have several.
    """

    accuracies: dict[str, list[float | None]]
    rankme: float
    constant: int | None = None


class Evaluator:
    """Measures networks on the test images of all tasks, over all classes, without the task index.

    A network is put into eval mode, so its running statistics are used and not updated. Readers that learn do so from
    training images with their true labels, except images without a label (-1): `knn` and `linear_probe_seen` from the
    tasks up to the one evaluated (the untrained network: all), `linear_probe_all` from all.

    Raises:
        ConfigError: such a reader is configured, and the first task has no labelled training image.
    """

    def __init__(self, config: Config, stream: Stream, parallel: Parallel) -> None:
        self.config, self.stream, self.parallel = config, stream, parallel
        mean, std = stream.moments
        self.moments = mean.to(parallel.device), std.to(parallel.device)
        labels = stream.source.train.labels
        self.labelled = [task.train[labels[task.train] >= 0] for task in stream.tasks]
        if self._learning(config.eval.readers) and not len(self.labelled[0]):
            problem = f"is {list(config.eval.readers)}, and no training image of task 0 has a label to train them"
            raise ConfigError("eval.readers", f"{problem}; allowed: [classifier]")

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
    ) -> Measured:
        """Accuracies by reader after a task (-1: untrained network), and the rank of the features.

        All processes call `check` before each batch of images, the main one `check_alone` while readers work; both may
        raise.

        Raises:
            TrainingFailed: features are not finite.
        """
        seen = task if task >= 0 else len(self.stream.tasks) - 1
        last = -1 if not self._learning(readers) else len(self.labelled) - 1 if "linear_probe_all" in readers else seen
        train_ids = np.concatenate([np.empty(0, dtype=np.int64), *self.labelled[: last + 1]])
        train, test = self._features(network, train_ids, check)
        known = sum(map(len, self.labelled[: seen + 1]))
        labels = torch.from_numpy(self.stream.source.train.labels[train_ids])

        def read() -> Measured:
            found: dict[str, list[float | None]] = {}
            with torch.no_grad():
                own = torch.cat([network.classifier(part).argmax(dim=1) for part in test.split(BATCH)])
            probed: dict[int, Tensor] = {}  # by training images, as both probes are the same after the last task
            for reader in readers:
                if reader == "classifier":
                    guesses = own
                elif reader == "knn":
                    guesses = nearest_neighbours(
                        train[:known], labels[:known], test, self.config.eval.knn_k, check_alone
                    )
                else:
                    count = known if reader == "linear_probe_seen" else len(train)
                    if count not in probed:
                        name = f"{reader} after task {task}"
                        probed[count] = self._probe(train[:count], labels[:count], test, name, check_alone)
                    guesses = probed[count]
                found[reader] = self._accuracies(guesses, self._taught(reader, task))
            return Measured(found, rankme(test), self._constant(own, task))

        return self.parallel.on_main(read)

    @staticmethod
    def _learning(readers: Sequence[str]) -> bool:
        return any(reader != "classifier" for reader in readers)

    def _probe(self, train: Tensor, labels: Tensor, test: Tensor, name: str, check: Check) -> Tensor:
        probe = fit_probe(train, labels, self.config.run.seed, check)
        if probe.gradient > TOLERANCE:
            print(f"note: {name}: the solver ended before it converged, at a gradient of {probe.gradient:.1e}")
        return probe.predict(test)

    def _constant(self, guesses: Tensor, task: int) -> int | None:
        """The only class among the classifier's guesses for the tasks seen, though it was taught and asked several."""
        labels = [self.stream.source.test.labels[part.test] for part in self.stream.tasks[: task + 1]]
        asked = {int(label) for part in labels for label in np.unique(part) if label >= 0}
        if len(asked) < 2 or len(self._taught("classifier", task)) < 2:
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

    def _taught(self, reader: str, task: int) -> set[int]:
        """Classes that a reader has been taught after a task (-1: untrained network)."""
        labels, last = self.stream.source.train.labels, task
        if reader == "classifier":
            labels = self.stream.labels if self.config.classifier.weight else np.full_like(labels, -1)
        elif reader == "linear_probe_all" or task < 0:
            last = len(self.stream.tasks) - 1
        taught = [labels[part.train] for part in self.stream.tasks[: last + 1]]
        return {int(label) for part in taught for label in np.unique(part) if label >= 0}

    def _accuracies(self, guesses: Tensor, taught: set[int]) -> list[float | None]:
        """Fraction of correct predictions (all test images, by task) per task, for a reader taught these classes."""
        labels = [self.stream.source.test.labels[task.test] for task in self.stream.tasks]
        parts = guesses.cpu().split(list(map(len, labels)))
        return [
            None if cannot_name(taught, set(truth.tolist())) else float(np.mean(part.numpy() == truth))
            for part, truth in zip(parts, labels, strict=True)
        ]

    def _features(self, network: Network, train_ids: np.ndarray, check: Check) -> tuple[Tensor, Tensor]:
        """Features (n, d) of these training images and of all test images, by task, on every process."""
        network.to(self.parallel.device).to(memory_format=memory_format(network, self.parallel.device)).eval()
        source, tests = self.stream.source, [task.test for task in self.stream.tasks]
        sets = [(source.train.images, train_ids), (source.test.images, np.concatenate(tests))]
        features = extract_features(network.encoder, sets, self.moments, self.parallel, check)
        if not bool(features.isfinite().all()):
            raise TrainingFailed("the network has diverged: its features of some images, in eval mode, are not finite")
        return features[: len(train_ids)], features[len(train_ids) :]
