"""What each step trains on, gathered one step ahead while the one before is computed."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kaizen.data.replay import Memory
from kaizen.data.sampler import Draw, Sampler
from kaizen.parallel import Batch


@dataclass(frozen=True)
class Load:
    """This process' images of one part of a step, on the CPU: [current images ; replay images].

    images: uint8 (n, 3, h, w); labels: int64 (n,), -1 = not available; keys: int64 (n,), random keys of their views.
    """

    images: Tensor
    labels: Tensor
    keys: Tensor
    batch: Batch


class Feed:
    """Loads of one task's steps; what a step gets is a function of its number, whether it was gathered ahead or not.

    Args:
        images, labels: uint8 (N, 3, h, w) and int64 (N,) of the source's train split.
        steps: of the task.
        pinned: gather into pinned memory, from which copies to a GPU wait for nothing.
    """

    def __init__(
        self, sampler: Sampler, images: np.ndarray, labels: np.ndarray, memory: Memory, *, steps: int, pinned: bool
    ) -> None:
        self.sampler, self._images, self._labels, self._memory = sampler, images, labels, memory
        self._steps, self._pinned = steps, pinned
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kaizen-feed")
        self._ahead: tuple[int, Future[list[Load]]] | None = None

    def take(self, step: int) -> list[Load]:
        """The loads of a step of the task, one for each part of its batch; those of the next step are begun."""
        if self._ahead is None or self._ahead[0] != step:
            self._begin(step)
        assert self._ahead is not None
        loads = self._ahead[1].result()
        if step + 1 < self._steps:
            self._begin(step + 1)
        return loads

    def _begin(self, step: int) -> None:
        self._ahead = step, self._thread.submit(lambda: [self._gather(draw) for draw in self.sampler.draw(step)])

    def _gather(self, draw: Draw) -> Load:
        ids, rows = draw.sample_ids.numpy(), draw.memory_rows.numpy()
        shape = (len(ids) + len(rows), *self._images.shape[1:])
        images = torch.empty(shape, dtype=torch.uint8, pin_memory=self._pinned)
        # NumPy's own copy, as torch's would start threads of its own here; in range, so nothing is clipped.
        np.take(self._images, ids, axis=0, out=images[: len(ids)].numpy(), mode="clip")
        np.take(self._memory.images.numpy(), rows, axis=0, out=images[len(ids) :].numpy(), mode="clip")
        labels = torch.cat([torch.from_numpy(self._labels[ids]), self._memory.labels[draw.memory_rows]])
        return Load(images, labels, draw.keys, draw.batch)
