"""View operations of the user's own, after ours and before the normalisation."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from kaizen.data.random import uniform
from kaizen.errors import ConfigError
from kaizen.plugins import own_class

STREAMS = 64
"""Streams of random numbers between two operations, more than a configuration has views."""


class ViewOperation(ABC):
    """Changes images of one view, each by random numbers of its own.

    It must treat each image alone, as a CPU gives it some of a batch's images and every process others. On a GPU it
    must not read values of tensors in Python (`if x > 0`, `.item()`), as steps are recorded there.
    """

    draws: ClassVar[int] = 1
    """Random numbers per image."""

    @abstractmethod
    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Images float32 (n, 3, s, s) in grey levels 0..255 and uniform numbers in 0..1, (n, draws) -> such images.

        The images may be changed in place. The numbers depend on the image, the epoch and the view alone.
        """


@cache
def operations(names: Sequence[str]) -> tuple[ViewOperation, ...]:
    """The operations of these names."""
    return tuple(own_class("views.extra", name)() for name in names)


def draw(names: Sequence[str], keys: Tensor, view: int) -> Tensor | None:
    """Random numbers (n, all of them) of a view's operations for images with keys int64 (n,); None without any."""
    found = [
        uniform(keys, operation.draws, stream=view + STREAMS * (place + 1))
        for place, operation in enumerate(operations(names))
    ]
    return torch.cat(found, dim=1) if found else None


def apply(names: Sequence[str], images: Tensor, draws: Tensor) -> Tensor:
    """The images (n, 3, s, s) after these operations with what `draw` gave.

    Raises:
        ConfigError: an operation gives something other than such images.
    """
    first = 0
    for name, operation in zip(names, operations(names), strict=True):
        shape, images = images.shape, operation(images, draws[:, first : first + operation.draws])
        first += operation.draws
        if not isinstance(images, Tensor) or images.shape != shape or images.dtype != torch.float32:
            found = f"{images.dtype} {list(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
            problem = f"is {name!r}, which gave {found}"
            raise ConfigError("views.extra", f"{problem}; allowed: torch.float32 {list(shape)}, as it got")
    return images
