"""The only order: (seed, task, epoch, step) -> the global batch -> this process' slice.

No generator state is involved, so a restart or another number of processes draws the same images and the same views.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from kaizen.data.random import Purpose, fold, hash_rows, permutation
from kaizen.parallel import ONE_PROCESS, Batch, Group, shard


@dataclass(frozen=True)
class Selection:
    """This process' images of one step.

    sample_ids: (n,) indices into the source's train split; memory_rows: (m,) rows of the replay memory;
    keys: int64 (n + m,), random keys of their views.
    """

    sample_ids: Tensor
    memory_rows: Tensor
    keys: Tensor
    batch: Batch


class Sampler:
    """Order of one task.

    Args:
        seed: the run's seed.
        task: index of the task.
        sample_ids: (n,) indices of the task's images in the source's train split.
        labels: (n,) their labels, -1 = not available.
        batch: images of the current task in a global batch; fewer if the task has fewer.
        memory_ids, memory_labels: (m,) sample ids and labels of the replay memory.
        replay: replay images in a global batch (none when the memory is empty).
        group: the processes that share each batch.
        parts: batches that a step's batch is cut into (gradient accumulation).
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
    ) -> None:
        self.seed, self.task, self.group, self.parts = seed, task, group, parts
        self.sample_ids, self.labels = torch.from_numpy(sample_ids), torch.from_numpy(labels)
        self.memory_ids, self.memory_labels = memory_ids, memory_labels
        self.batch = min(batch, len(sample_ids))
        self.replay = replay if len(memory_ids) else 0
        self._orders: dict[tuple[Purpose, int], Tensor] = {}

    @property
    def steps_per_epoch(self) -> int:
        """Full batches per epoch of the task; independent of the replay memory."""
        return len(self.sample_ids) // self.batch

    def draw(self, step: int) -> list[Selection]:
        """The images of a step of the task (counted from 0 over its epochs), one selection per part of its batch."""
        epoch, place = divmod(step, self.steps_per_epoch)
        current = self._order(Purpose.ORDER, epoch, len(self.sample_ids))[place * self.batch :][: self.batch]
        rows = self._memory_rows(step)
        return [self._part(step, current, rows, part) for part in range(self.parts)]

    def _part(self, step: int, current: Tensor, rows: Tensor, part: int) -> Selection:
        """This process' images of one part of a step's batch [current ; rows]; a part spans all processes."""
        epoch, place = divmod(step, self.steps_per_epoch)
        (a, b), (c, d) = _ends(len(current), part, self.parts), _ends(len(rows), part, self.parts)
        labels = torch.cat([self.labels[current[a:b]], self.memory_labels[rows[c:d]]])
        key = fold(self.seed, Purpose.METHOD, self.task, step)
        batch = Batch(b - a, d - c, int((labels >= 0).sum()), self.group.rank, self.group.world, key)
        new, old = batch.slices(self.group.rank)
        mine = torch.arange(a + new.start, a + new.stop)
        memory = torch.arange(c + old.start - batch.current, c + old.stop - batch.current)
        ids, held = self.sample_ids[current[mine]], rows[memory]
        # Views depend on the place in the step's whole batch, so that neither parts nor processes change them.
        keys = [
            hash_rows(fold(self.seed, purpose, self.task, epoch, place), where, images)
            for purpose, where, images in (
                (Purpose.VIEWS, mine, ids),
                (Purpose.REPLAY_VIEWS, len(current) + memory, self.memory_ids[held]),
            )
        ]
        places = torch.cat([current[mine], torch.full((len(memory),), -1)])
        return Selection(ids, held, torch.cat(keys), replace(batch, places=places))

    def _memory_rows(self, step: int) -> Tensor:
        """Replay draws of a step: without replacement until the memory is used up, then again in another order."""
        size, start, end = len(self.memory_ids), step * self.replay, (step + 1) * self.replay
        if start == end:
            return torch.empty(0, dtype=torch.int64)
        first, last = start // size, (end - 1) // size
        laps = torch.cat([self._order(Purpose.REPLAY, lap, size) for lap in range(first, last + 1)])
        return laps[start - first * size : end - first * size]

    def _order(self, purpose: Purpose, lap: int, size: int) -> Tensor:
        """Permutation of one pass over the images; the latest ones are cached, as a pass takes many steps."""
        found = self._orders.get((purpose, lap))
        if found is None:
            found = permutation(size, fold(self.seed, purpose, self.task, lap))
            self._orders = {key: order for key, order in self._orders.items() if key[1] >= lap - 1 or key[0] != purpose}
            self._orders[purpose, lap] = found
        return found


def _ends(count: int, part: int, parts: int) -> tuple[int, int]:
    piece = shard(count, part, parts)
    return piece.start, piece.stop
