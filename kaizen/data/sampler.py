"""The only order: (seed, task, epoch, step) -> the global batch -> this process' slice.

No generator state is involved, so a restart or another number of processes draws the same images and the same views.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from kaizen.data.mixing import Mixing
from kaizen.data.random import Purpose, fold, hash_rows, permutation
from kaizen.parallel import ONE_PROCESS, Batch, Group


@dataclass(frozen=True)
class Selection:
    """This process' images of one step.

    sample_ids: (n,) indices into the source's train split; memory_rows: (m,) rows of the replay memory;
    keys: int64 (n + m,), random keys of their views; batch: as networks see it, without its m replay images where
    these are mixed into the others; shares: float64 (n,), the parts of the others, or None where nothing is mixed.
    """

    sample_ids: Tensor
    memory_rows: Tensor
    keys: Tensor
    batch: Batch
    shares: Tensor | None = None


class Sampler:
    """Order of one task.

    Args:
        sample_ids: (n,) indices of the task's images in the source's train split.
        labels: (n,) their labels, -1 = not available.
        batch: images of the current task in a global batch; fewer if the task has fewer.
        memory_ids, memory_labels: (m,) sample ids and labels of the replay memory.
        replay: replay images in a global batch (none when the memory is empty).
        parts: batches that a step's batch is cut into (gradient accumulation).
        mix: with a memory, as many replay images as current ones are drawn, and mixed into them by these shares: the
            i-th into the i-th, which are always in the same process and part.
    """

    def __init__(
        self,
        seed: int,
        task: int,
        sample_ids: np.ndarray,
        labels: np.ndarray,
        batch: int,
        memory_ids: Tensor,
        memory_labels: Tensor,
        replay: int,
        *,
        group: Group = ONE_PROCESS,
        parts: int = 1,
        mix: Mixing | None = None,
    ) -> None:
        self.seed, self.task, self.group, self.parts = seed, task, group, parts
        self.sample_ids, self.labels = torch.from_numpy(sample_ids), torch.from_numpy(labels)
        self.memory_ids, self.memory_labels = memory_ids, memory_labels
        self.batch = min(batch, len(sample_ids))
        self.mix = mix if len(memory_ids) else None
        self.replay = (self.batch if mix else replay) if len(memory_ids) else 0
        # Cached, as a pass over the images takes many steps.
        self._order = lru_cache(maxsize=2)(permutation)
        self._replay_order = lru_cache(maxsize=16)(permutation)

    @property
    def steps_per_epoch(self) -> int:
        """Full batches per epoch of the task; independent of the replay memory."""
        return len(self.sample_ids) // self.batch

    def draw(self, step: int) -> list[Selection]:
        """The images of a step of the task (counted from 0 over its epochs), one selection per part of its batch."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = self._order(len(self.sample_ids), fold(self.seed, Purpose.ORDER, self.task, epoch))
        current = order[place * self.batch :][: self.batch]
        rows = self._memory_rows(step)
        return [self._part(step, current, rows, part) for part in range(self.parts)]

    def _part(self, step: int, current: Tensor, rows: Tensor, part: int) -> Selection:
        """This process' images of one part of a step's batch [current ; rows]; a part spans all processes."""
        epoch, place = divmod(step, self.steps_per_epoch)
        now, past = (Group(part, self.parts).shard(len(whole)) for whole in (current, rows))
        labels = self.labels[current[now]], self.memory_labels[rows[past]]
        labelled = int((torch.cat(labels) >= 0).sum())
        key = fold(self.seed, Purpose.METHOD, self.task, step)
        batch = Batch(len(labels[0]), len(labels[1]), labelled, self.group.rank, self.group.world, key)
        new, old = batch.slices(self.group.rank)
        mine = torch.arange(now.start + new.start, now.start + new.stop)
        memory = torch.arange(past.start + old.start, past.start + old.stop) - batch.current
        ids, held = self.sample_ids[current[mine]], rows[memory]
        # Views depend on the place in the step's whole batch, so that neither parts nor processes change them.
        keys = [
            hash_rows(fold(self.seed, purpose, self.task, epoch, place), where, images)
            for purpose, where, images in (
                (Purpose.VIEWS, mine, ids),
                (Purpose.REPLAY_VIEWS, len(current) + memory, self.memory_ids[held]),
            )
        ]
        if self.mix:
            shares = self.mix.shares(fold(self.seed, Purpose.MIX, self.task, step), len(current))[mine]
            return Selection(ids, held, torch.cat(keys), replace(batch, replay=0, places=current[mine]), shares)
        places = torch.cat([current[mine], torch.full((len(memory),), -1)])
        return Selection(ids, held, torch.cat(keys), replace(batch, places=places))

    def _memory_rows(self, step: int) -> Tensor:
        """Replay draws of a step: without replacement until the memory is used up, then again in another order."""
        size, start, end = len(self.memory_ids), step * self.replay, (step + 1) * self.replay
        if start == end:
            return torch.empty(0, dtype=torch.int64)
        first, last = start // size, (end - 1) // size
        keys = [fold(self.seed, Purpose.REPLAY, self.task, lap) for lap in range(first, last + 1)]
        return torch.cat([self._replay_order(size, key) for key in keys])[start - first * size : end - first * size]
