"""Crops of a step's images, made from their encoded originals by a pool of threads."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kaizen.config.views import ViewConfig
from kaizen.data.encoded import Encoded
from kaizen.data.pool import each
from kaizen.data.views import sample_crops

AHEAD_BYTES = 1 << 29
"""Bytes of crops that are made ahead of the steps that need them."""
MOST_AHEAD = 8
"""Steps that are made ahead at most."""


class Cropper:
    """Makes the crops of all views of images of a task and of the memory.

    Args:
        pinned: into pinned memory, from which copies to a GPU wait for nothing.
    """

    def __init__(self, images: Encoded, memory: Encoded, views: Sequence[ViewConfig], *, pinned: bool) -> None:
        self.images, self.memory, self.views, self.pinned = images, memory, views, pinned
        self.sizes = [view.size or images.decoding.size for view in views]

    @property
    def image_bytes(self) -> int:
        """Bytes of the crops of one image."""
        return sum(3 * size * size for size in self.sizes)

    def ahead(self, images: int) -> int:
        """Number of steps of so many images that may be made ahead, at least one."""
        return max(1, min(MOST_AHEAD, AHEAD_BYTES // max(1, images * self.image_bytes)))

    def crop(self, ids: np.ndarray, rows: np.ndarray, keys: Tensor) -> tuple[Tensor, ...]:
        """Crops uint8 (n + m, 3, size, size), one tensor for each view.

        An image is decoded once for all views; boxes and mirrors are those that `kaizen.data.views.augment` draws.

        Args:
            ids: (n,) rows of the images; rows: (m,) rows of the memory; keys: int64 (n + m,).
        """
        sources = [*((self.images, row) for row in ids.tolist()), *((self.memory, row) for row in rows.tolist())]
        shapes = np.concatenate([self.images.shapes[ids], self.memory.shapes[rows]])
        heights, widths = (torch.from_numpy(shapes[:, column].astype(np.int64)) for column in (0, 1))
        drawn = [sample_crops(keys, number, view, heights, widths) for number, view in enumerate(self.views)]
        boxes, mirrored = ([part.tolist() for part in parts] for parts in zip(*drawn, strict=True))
        made = tuple(
            torch.empty(len(sources), 3, size, size, dtype=torch.uint8, pin_memory=self.pinned) for size in self.sizes
        )
        arrays = [tensor.numpy() for tensor in made]

        def work(place: int) -> None:
            images, row = sources[place]
            crops = images.crop(row, [view[place] for view in boxes], self.sizes)
            # A mirrored copy takes no longer than a plain one.
            for array, crop, mirror in zip(arrays, crops, mirrored, strict=True):
                np.copyto(array[place], (crop[:, ::-1] if mirror[place] else crop).transpose(2, 0, 1))

        each(work, len(sources), self.images.decoding.pool)
        return made
