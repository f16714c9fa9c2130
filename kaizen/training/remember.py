"""What a task leaves behind besides its networks: the replay memory, statistics of its classes, an aligned classifier.

All processes compute the features together; the main process makes the files from them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from kaizen.config.schema import Config
from kaizen.data.chapters import Chapters
from kaizen.data.encoded import Encoded
from kaizen.data.load import Stream
from kaizen.data.policies import own_policy
from kaizen.data.random import Purpose, fold
from kaizen.data.replay import Choice, Memory, choose
from kaizen.data.splits import Images
from kaizen.errors import ConfigError
from kaizen.evaluation.features import extract_features, extract_logits
from kaizen.model.networks.encoders import build_encoder
from kaizen.model.networks.heads import mlp
from kaizen.model.statistics import FILE, Map, Statistics, fit_map, memory_weights, statistics_bytes
from kaizen.model.teacher import read_network
from kaizen.parallel import memory_format
from kaizen.training.align import align
from kaizen.training.state import TaskState

HEAD = "classifier."


def kept_bytes(config: Config, stream: Stream, task: int, features: int) -> int:
    """Bytes of the statistics after a task, for features of that size."""
    return statistics_bytes(len(stream.taught(task)), features) if config.statistics.keep else 0


def image_bytes(config: Config, stream: Stream, ids: np.ndarray | None = None) -> int:
    """Bytes of an image in the replay memory with its stored logits; of the largest of these if they are encoded.

    Args:
        ids: (n,) rows of the train split; None: all.
    """
    images = stream.source.train.images
    largest = int(np.prod(images.shape[1:]))
    if isinstance(images, Encoded):
        largest = int((images.lengths if ids is None else images.lengths[ids]).max())
    return largest + logit_bytes(config, stream)


def logit_bytes(config: Config, stream: Stream) -> int:
    """Bytes of an image's logits in the replay memory, where they are stored."""
    return 4 * stream.source.num_classes if config.classifier.distill == "stored_logits" else 0


def check_budgets(chapters: Chapters) -> None:
    """Refuse a `replay.bytes` that is too small for a chapter whose source is here; see `check_budget`."""
    for part in chapters.parts:
        if part.stream is not None:
            check_budget(part.config, part.stream)


def check_budget(config: Config, stream: Stream) -> None:
    """Refuse a `replay.bytes` that is too small, before any work.

    Raises:
        ConfigError: after some task it does not pay the statistics and an image of each class of each task.
    """
    budget, keep = config.replay.bytes, config.statistics.keep
    if budget is None:
        return
    with torch.device("meta"):
        features = build_encoder(config.encoder, config.data.image_size).feature_dim
    groups, needed, images = stream.groups, 0, stream.groups * image_bytes(config, stream)
    for number in range(stream.first, len(stream.tasks)):
        ids = stream.tasks[number].train
        alike = [] if config.replay.policy == "none" else [ids]
        if config.replay.policy not in ("none", "reservoir"):
            alike = [ids[stream.labels[ids] == label] for label in stream.labels_of(number)]
        groups, images = groups + len(alike), images + sum(image_bytes(config, stream, some) for some in alike)
        needed = max(needed, images + kept_bytes(config, stream, number, features))
    if budget < needed:
        kept = f" and {kept_bytes(config, stream, len(stream.tasks) - 1, features)} of statistics" if keep else ""
        less = ", or statistics.keep false" if keep else ""
        problem = f"is {budget}; {groups} images, one of each class of each task, take {images} bytes{kept}"
        raise ConfigError("replay.bytes", f"{problem}; allowed: at least {needed}{less}")


@dataclass(frozen=True)
class TaskEnd:
    """The end of a task, on every process.

    memory: the replay memory before it; moments: mean and std (3,) of the images, on the device.
    """

    state: TaskState
    stream: Stream
    memory: Memory
    moments: tuple[Tensor, Tensor]

    @cached_property
    def ids(self) -> np.ndarray:
        """Sample ids of the task's training images, ascending."""
        return np.sort(self.stream.tasks[self.state.task].train)

    @cached_property
    def labels(self) -> Tensor:
        """Their labels int64 (n,), as far as the run may see them."""
        return torch.from_numpy(self.stream.labels[self.ids])

    @cached_property
    def encoder_now(self) -> nn.Module:
        """The encoder as it ends the task."""
        return self.state.copied("encoder")["encoder"]

    @cached_property
    def current(self) -> Tensor:
        """Features (n, d) of the task's images by that encoder."""
        return self._features(self.encoder_now, self.stream.source.train.images, self.ids)

    @cached_property
    def remembered(self) -> Tensor:
        """Features (m, d) of the memory's images by that encoder."""
        return self._of_memory(self.encoder_now)

    @cached_property
    def before(self) -> tuple[Tensor, Tensor]:
        """Features of the task's and of the memory's images by the encoder that the task began with."""
        state, device = self.state, self.state.parallel.device
        assert state.before is not None
        network = read_network(state.before / "student.safetensors", state.config)
        encoder = network.encoder.to(device).to(memory_format=memory_format(network, device))
        return self._features(encoder, self.stream.source.train.images, self.ids), self._of_memory(encoder)

    def _of_memory(self, encoder: nn.Module) -> Tensor:
        return self._features(encoder, self.memory.pixels, np.arange(len(self.memory)))

    def _features(self, encoder: nn.Module, images: Images, ids: np.ndarray) -> Tensor:
        if not len(ids):
            size = self.state.learner.encoder.feature_dim
            return torch.empty(0, size, device=self.state.parallel.device)
        return extract_features(encoder, [(images, ids)], self.moments, self.state.parallel)

    def choice(self) -> Choice:
        """What the replay memory holds after the task.

        Raises:
            TrainingFailed: names processes whose choice differs.
        """
        state, config = self.state, self.state.config
        kind, size = config.replay_budget()
        images, costs = self.stream.source.train.images, None
        if kind == "bytes":
            size = int(size) - kept_bytes(config, self.stream, state.task, state.learner.encoder.feature_dim)
            if isinstance(images, Encoded) and isinstance(self.memory.images, Encoded):
                more = logit_bytes(config, self.stream)
                costs = self.memory.images.lengths + more, images.lengths + more
            else:
                kind, size = "total", size // image_bytes(config, self.stream)

        def features(ids: np.ndarray) -> np.ndarray:
            assert np.array_equal(ids, self.ids)
            return self.current.cpu().numpy()

        choice = choose(
            self.memory,
            self.stream.labels,
            self.stream.tasks[state.task].train,
            task=state.task,
            seed=config.run.seed,
            policy=config.replay.policy,
            budget=(kind, size),
            features=features,
            offset=self.stream.offset,
            own=own_policy(config.replay),
            costs=costs,
        )
        state.parallel.agree("the choice for the replay memory", choice.digest)
        return choice

    def files(self) -> Callable[[Mapping[str, Tensor]], dict[str, dict[str, Tensor]]]:
        """The work of all processes; returns a function that makes the files from the student's tensors."""
        config, choice = self.state.config, self.choice()
        logits = self._logits(choice) if self.state.stores_logits else None
        if config.statistics.keep:
            _ = self.current, self.remembered, self.before if self.state.before else None

        def make(student: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
            images, labels = self.stream.source.train.images, self.stream.labels
            more = self.state.task, logits, self.stream.offset
            made = {"replay": choice.applied(self.memory, images, labels, *more).tensors()}
            if config.statistics.keep:
                statistics, carry = self.statistics()
                made[FILE] = statistics.tensors()
                if carry is not None:
                    made[FILE] |= {"map.weight": carry.weight.float(), "map.bias": carry.bias.float()}
                # From what is kept, so that the next task and every reader find the same.
                statistics = Statistics.of(made[FILE])
                weight, bias = statistics.classifier(config.statistics.shrinkage)
                made[FILE] |= {"weight": weight.float(), "bias": bias.float()}
                if config.classifier.align == "statistics" and len(statistics.classes) > 1:
                    made["student"] = dict(student) | self._aligned(student, statistics)
            return made

        return make

    def _logits(self, choice: Choice) -> Tensor:
        """Logits of the images that the memory takes up, on every process."""
        networks = self.state.copied("encoder", "classifier")
        images, parallel = self.stream.source.train.images, self.state.parallel
        return extract_logits(**networks, images=images, ids=choice.ids, moments=self.moments, parallel=parallel)

    def statistics(self) -> tuple[Statistics, Map | None]:
        """Statistics of all classes seen, for the new encoder, and the map from the one before."""
        config, current, remembered = self.state.config.statistics, self.current.cpu(), self.remembered.cpu()
        found = Statistics.measured(current, self.labels)
        if self.state.before is None:
            return found, None
        old, new = torch.cat([part.cpu() for part in self.before]), torch.cat([current, remembered])
        weights = memory_weights(len(current), len(remembered), config.memory_share)
        carry = fit_map(old, new, weights, config.ridge)
        kept = Statistics.read(self.state.before / f"{FILE}.safetensors", current.shape[1])
        residuals = remembered - carry(old[len(current) :])
        return kept.carried(carry).corrected(residuals, self.memory.labels, config.prior).merged(found), carry

    def _aligned(self, student: Mapping[str, Tensor], statistics: Statistics) -> dict[str, Tensor]:
        """The student's classifier, trained further on features and on draws from the statistics."""
        config, device = self.state.config, self.state.parallel.device
        held = {name.removeprefix(HEAD): t for name, t in student.items() if name.startswith(HEAD)}
        with torch.random.fork_rng(devices=[]):  # its first values come from the global generator, and are replaced
            classifier = mlp((statistics.means.shape[1], *config.classifier.hidden, self.state.num_classes))
        classifier.load_state_dict(held)

        def labelled(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            known = (labels >= 0).to(device)
            return features[known], labels.to(device)[known]

        current, remembered = labelled(self.current, self.labels), labelled(self.remembered, self.memory.labels)
        seed = fold(config.run.seed, Purpose.ALIGN, self.state.task)
        align(classifier.to(device), current, remembered, statistics, config.classifier, seed)
        return {f"{HEAD}{name}": t.cpu() for name, t in classifier.state_dict().items()}
