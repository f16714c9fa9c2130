"""Gathers the batch of each step ahead of it, while earlier steps are computed."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kaizen.data.crops import Cropper
from kaizen.data.encoded import Encoded
from kaizen.data.packing import pack
from kaizen.data.replay import Memory
from kaizen.data.sampler import Sampler, Selection
from kaizen.data.splits import Images
from kaizen.parallel import Batch

Numbers = Callable[[int, Batch], Sequence[float]]
"""Step of the task, part of its batch -> rates, follow, label_share, the method's numbers (see kaizen.data.packing)."""
RESIDENT_PART = 4
"""A task's images are stored on the device if they take less than this fraction (1 / 4) of its free memory."""
CHUNK = 1024
"""Images per copy to the device."""


@dataclass(frozen=True)
class HostBatch:
    """This process' images of one part of a step, on the CPU: [current images ; replay images].

    packed: the buffer that `kaizen.data.packing` takes apart; numbers: those in it; images: one tensor uint8
    (n, 3, h, w), or of encoded images the crops of each view uint8 (n, 3, size, size); None where the device holds the
    task's images and finds these by their rows; count: images of this process. The batch is the one that networks see:
    where images are mixed it has one image for each two of these.
    """

    packed: Tensor
    numbers: Sequence[float]
    images: tuple[Tensor, ...] | None
    batch: Batch
    count: int


def resident(images: Images, ids: np.ndarray, memory: Memory, device: torch.device) -> Tensor | None:
    """A task's images and those of the memory on the device, uint8 (n + m, 3, h, w); None where they take too much.

    Encoded images never are: their crops come from the host.
    """
    if device.type != "cuda" or isinstance(images, Encoded) or isinstance(memory.images, Encoded):
        return None
    shape = (len(ids) + len(memory), *images.shape[1:])
    if int(np.prod(shape)) * RESIDENT_PART > torch.cuda.mem_get_info(device)[0]:
        return None
    held = torch.empty(shape, dtype=torch.uint8, device=device)
    for first in range(0, len(ids), CHUNK):
        some = ids[first : first + CHUNK]
        held[first : first + len(some)] = torch.from_numpy(images[some]).to(device)
    held[len(ids) :] = memory.images.to(device)
    return held


class Feed:
    """Host batches of one task's steps; what a step gets depends on its number alone, not on when it was gathered.

    Args:
        images, labels: uint8 (N, 3, h, w) and int64 (N,) of the source's train split; no images: the device has them;
            a cropper: they are encoded.
        pinned: gather into pinned memory, from which copies to a GPU wait for nothing.
    """

    def __init__(
        self,
        sampler: Sampler,
        images: np.ndarray | Cropper | None,
        labels: np.ndarray,
        memory: Memory,
        *,
        steps: int,
        numbers: Numbers,
        pinned: bool,
    ) -> None:
        self.sampler, self._images, self._labels, self._memory = sampler, images, labels, memory
        self.steps, self._numbers, self._pinned = steps, numbers, pinned
        most = -(-(sampler.batch + sampler.replay) // sampler.group.world)
        self._steps_ahead = images.ahead(most) if isinstance(images, Cropper) else 1
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kaizen-feed")
        self._ahead: dict[int, Future[list[HostBatch]]] = {}

    def take(self, step: int) -> list[HostBatch]:
        """The host batches of a step of the task, one for each part of its batch; those of later steps are begun."""
        host_batches = self._begun(step).result()
        self._ahead = {number: future for number, future in self._ahead.items() if number >= step}
        for later in range(step + 1, min(step + 1 + self._steps_ahead, self.steps)):
            self._begun(later)
        return host_batches

    def _begun(self, step: int) -> Future[list[HostBatch]]:
        if step not in self._ahead:
            self._ahead[step] = self._thread.submit(self.gather, step)
        return self._ahead[step]

    def gather(self, step: int) -> list[HostBatch]:
        """Make the host batches of a step."""
        return [self._load(step, selection) for selection in self.sampler.draw(step)]

    def _load(self, step: int, selection: Selection) -> HostBatch:
        ids, rows, places = selection.sample_ids.numpy(), selection.memory_rows.numpy(), selection.batch.places
        assert places is not None
        labels = torch.cat([torch.from_numpy(self._labels[ids]), self._memory.labels[selection.memory_rows]])
        # The device's store is [the task's images ; the memory's].
        held = torch.cat([places[: len(ids)], len(self.sampler.sample_ids) + selection.memory_rows])
        places = torch.cat([places[: len(ids)], torch.full_like(selection.memory_rows, -1)])
        numbers, key = self._numbers(step, selection.batch), selection.batch.key
        assert isinstance(key, int)
        weights = torch.ones(len(labels), dtype=torch.float64)
        if (shares := selection.shares) is not None:
            weights = torch.cat([shares, 1 - shares])
        packed = pack((labels, selection.keys, places, held, weights), key, numbers, pinned=self._pinned)
        images = self._gathered(ids, rows, selection.keys)
        return HostBatch(packed, numbers, images, selection.batch, len(labels))

    def _gathered(self, ids: np.ndarray, rows: np.ndarray, keys: Tensor) -> tuple[Tensor, ...] | None:
        """The images of a host batch, unless the device has them."""
        if self._images is None:
            return None
        if isinstance(self._images, Cropper):
            return self._images.crop(ids, rows, keys)
        assert isinstance(self._memory.images, Tensor)
        shape = (len(ids) + len(rows), *self._images.shape[1:])
        images = torch.empty(shape, dtype=torch.uint8, pin_memory=self._pinned)
        # NumPy's copy, as torch's would start threads here. Indices are in range, so nothing is clipped.
        np.take(self._images, ids, axis=0, out=images[: len(ids)].numpy(), mode="clip")
        np.take(self._memory.images.numpy(), rows, axis=0, out=images[len(ids) :].numpy(), mode="clip")
        return (images,)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)
