"""What a replay policy of the user's own has; ours are in replay.py."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from kaizen.config.memory import POLICIES, ReplayConfig
from kaizen.errors import ConfigError
from kaizen.plugins import own_class


@dataclass(frozen=True)
class Candidates:
    """Images of one class of a task, of which the memory may keep some.

    ids: sample ids int64 (n,); label: their class, -1: without a label; features: float32 (n, d), of the encoder at the
    task's end; draws: uniform random numbers float64 (n,), the same in every start and process; keep: how many it
    keeps.
    """

    ids: np.ndarray
    label: int
    features: np.ndarray
    draws: np.ndarray
    keep: int


class ReplayPolicy(ABC):
    """Orders the images of each class of a task; the memory keeps the first ones, as its budget allows.

    Every process computes the order, and all must find the same.
    """

    Settings: ClassVar[type[ReplayConfig]] = ReplayConfig
    """Keys of section `replay`: a class that extends ReplayConfig where it has more than those."""

    def __init__(self, config: ReplayConfig) -> None:
        self.config = config

    @abstractmethod
    def order(self, candidates: Candidates) -> np.ndarray:
        """Rows of the candidates, int64 (keep,) or more, best first: later tasks may push the last ones out."""


def own_policy(config: ReplayConfig) -> ReplayPolicy | None:
    """The user's own policy, or None where the configuration names one of ours."""
    if config.policy in POLICIES.words:
        return None
    kind: type[ReplayPolicy] = own_class("replay.policy", config.policy)
    return kind(config)


def ordered(policy: ReplayPolicy, candidates: Candidates) -> np.ndarray:
    """The rows that the policy keeps, int64 (keep,), checked.

    Raises:
        ConfigError: they are too few, or are not rows of the candidates, each at most once.
    """
    rows = np.asarray(policy.order(candidates))
    n, keep = len(candidates.ids), candidates.keep
    if rows.ndim != 1 or rows.dtype.kind not in "iu" or len(rows) < keep:
        found = f"gave {rows.dtype} {list(rows.shape)}"
    elif len(np.unique(rows)) < len(rows) or rows.min(initial=0) < 0 or rows.max(initial=0) >= n:
        found = "gave a row twice or a row that does not exist"
    else:
        return rows[:keep].astype(np.int64)
    problem = f"is {policy.config.policy!r}, which {found} for {n} images of class {candidates.label}"
    raise ConfigError("replay.policy", f"{problem}; allowed: at least {keep} different rows, 0 to {n - 1}")
