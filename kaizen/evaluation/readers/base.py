"""What every reader has, and the evidence that it may draw on."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor

from kaizen.config.schema import Config
from kaizen.errors import ConfigError
from kaizen.model.learner import Network

Check = Callable[[], None]
Sees = Literal["run", "seen", "all", "memory"]
"""What a reader learns from: what the run itself saved (its network, its task-end directory), true labels of the
training images of the tasks seen or of all tasks, or the labels in the replay memory."""


@dataclass(frozen=True)
class Evidence:
    """What readers may draw on after a task; features are computed once, for all readers.

    task: -1 for the untrained network. features, labels: float32 (n, d) and int64 (n,) of training images with their
    true labels, in the order of the tasks, as far as a reader sees them; ends: for each task the row after its last.
    memory: features (m, d) and labels (m,) of the labelled images in the replay memory after the task; None if there is
    none or no reader asks. directory: the task-end directory, if there is one. taught: classes of the labels that the
    run has seen. check: called between pieces of long work, and may raise. shared: results that readers share.
    """

    config: Config
    network: Network
    task: int
    features: Tensor
    labels: Tensor
    ends: tuple[int, ...]
    memory: tuple[Tensor, Tensor] | None
    directory: Path | None
    taught: frozenset[int]
    check: Check
    shared: dict[Any, Any] = field(default_factory=dict)

    def images(self, sees: Sees) -> tuple[Tensor, Tensor]:
        """Features (n, d) and labels (n,) of the tasks seen (untrained network: all), all tasks, or the memory."""
        if sees == "memory":
            assert self.memory is not None
            return self.memory
        count = self.ends[self.task] if sees == "seen" and self.task >= 0 else self.ends[-1]
        return self.features[:count], self.labels[:count]


class Reader(ABC):
    """Turns features into classes: `fit` on the evidence after a task, then `predict`.

    Both are called by the main process alone.
    """

    sees: ClassVar[Sees] = "seen"
    protocol: ClassVar[str | None] = None
    """What it is and learns from, for tables and results.json; of our own readers: in `metrics.PROTOCOLS`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def can_read(self, evidence: Evidence) -> bool:
        """Whether there is anything to learn from; without it, its row is null."""
        return self.sees != "memory" or (evidence.memory is not None and len(evidence.memory[1]) > 0)

    def taught(self, evidence: Evidence) -> Set[int]:
        """The classes that it can name; none: it guesses among all."""
        return evidence.taught if self.sees == "run" else set(evidence.images(self.sees)[1].unique().tolist())

    def checked(self, guesses: Tensor, features: Tensor) -> Tensor:
        """What `predict` gave.

        Raises:
            ConfigError: it is not one class for each image.
        """
        shape = list(guesses.shape) if isinstance(guesses, Tensor) else type(guesses).__name__
        if shape != [len(features)] or guesses.is_floating_point():
            kind = f" {guesses.dtype}" if isinstance(guesses, Tensor) else ""
            problem = f"is {self.name}, whose predict gave {shape}{kind} for {len(features)} images"
            raise ConfigError("eval.readers", f"{problem}; allowed: their classes, as scores.argmax(dim=1)")
        return guesses

    @abstractmethod
    def fit(self, evidence: Evidence) -> None:
        """Learn from the evidence."""

    @abstractmethod
    def predict(self, features: Tensor) -> Tensor:
        """Features (n, d) -> labels int64 (n,)."""
