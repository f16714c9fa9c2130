"""The replay memory: which images of past tasks it keeps, and how it is saved.

It holds the images themselves, because past data may be gone. What is kept is a function of (seed, task, data) alone,
so every process holds the same memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kaizen.data.random import Purpose, fold, permutation


@dataclass(frozen=True)
class Memory:
    """Images uint8 (n, c, h, w), labels, sample ids and task ids, int64 (n,), ordered by class, best choice first."""

    images: Tensor
    labels: Tensor
    sample_ids: Tensor
    task_ids: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @staticmethod
    def empty(channels: int, size: int) -> "Memory":
        """A memory without images."""
        none = torch.empty(0, dtype=torch.int64)
        return Memory(torch.empty(0, channels, size, size, dtype=torch.uint8), none, none.clone(), none.clone())

    def tensors(self) -> dict[str, Tensor]:
        """What is saved."""
        return {name: getattr(self, name) for name in ("images", "labels", "sample_ids", "task_ids")}

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> "Memory":
        """The memory that `tensors` gave."""
        return Memory(**tensors)

    def extended(self, other: "Memory") -> "Memory":
        """This memory followed by another."""
        mine, theirs = self.tensors(), other.tensors()
        return Memory(**{name: torch.cat([mine[name], theirs[name]]) for name in mine})

    def rows(self, rows: Tensor) -> "Memory":
        """The memory's rows (m,) int64, in that order."""
        return Memory(**{name: tensor[rows] for name, tensor in self.tensors().items()})


def remember(
    memory: Memory,
    images: np.ndarray,
    labels: np.ndarray,
    sample_ids: np.ndarray,
    *,
    task: int,
    seed: int,
    policy: str,
    budget: tuple[str, float],
) -> Memory:
    """The memory after a task: what it held and its choice of the task's images, cut to the budget.

    Args:
        memory: the memory before the task.
        images, labels: uint8 (N, c, h, w) and int64 (N,) of the source's train split.
        sample_ids: (n,) indices of the task's images in them; images without a label (-1) count as one class.
        task, seed: index of the task, seed of the run.
        policy: none, random (seeded, class-balanced) or first (of each class in dataset order).
        budget: ("per_class", k), ("fraction", part of each class, at least one image) or ("total", images in all).
    """
    if policy == "none":
        return memory
    kind, size = budget
    chosen = []
    for label in np.unique(labels[sample_ids]):
        ids = sample_ids[labels[sample_ids] == label]
        if policy == "random":
            ids = ids[permutation(len(ids), fold(seed, Purpose.MEMORY, task, int(label))).numpy()]
        keep = max(1, round(size * len(ids))) if kind == "fraction" else int(size)
        chosen.append(ids[:keep])
    ids = np.concatenate(chosen)
    new = Memory(
        images=torch.from_numpy(np.ascontiguousarray(images[ids])),
        labels=torch.from_numpy(labels[ids]),
        sample_ids=torch.from_numpy(ids.astype(np.int64)),
        task_ids=torch.full((len(ids),), task, dtype=torch.int64),
    )
    together = memory.extended(new)
    return together.rows(_within_total(together, int(size))) if kind == "total" else together


def _within_total(memory: Memory, total: int) -> Tensor:
    """Rows to keep so that each (task, class) group has an even share of the total, given out one image at a time.

    Groups keep their first rows: a random order cut short is still a random choice.
    """
    groups = torch.stack([memory.task_ids, memory.labels], dim=1)
    _, group = torch.unique(groups, dim=0, return_inverse=True)
    place = torch.empty_like(group)
    for index in range(int(group.max()) + 1):
        members = (group == index).nonzero().flatten()
        place[members] = torch.arange(len(members))
    # The first image of every group, then the second of every group, and so on, until the total is reached.
    order = torch.argsort(place * (int(group.max()) + 1) + group)
    return order[:total].sort().values
