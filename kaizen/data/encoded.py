"""Images of any size that stay encoded: where their bytes are, and the crops and squares made from them."""

import os
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from kaizen.data.decoding import Decoding, Shape, centre, crops
from kaizen.data.images import reason_of
from kaizen.data.pool import each
from kaizen.errors import ConfigError

T = TypeVar("T")
WHOLE = -1
"""Offset of an image that is a file of its own."""
PLACE = ("file", "offset", "bytes")
"""Columns of a table of places."""
SHAPE = ("height", "width", "plain")
"""Columns of a table of shapes; see `Shape`."""


class Contents(Protocol):
    """The bytes of encoded images."""

    lengths: np.ndarray
    """Bytes of each, int64 (n,)."""

    def read(self, row: int) -> np.ndarray:
        """The bytes of one image, uint8 (bytes,), for the caller to keep."""

    def name(self, row: int) -> str:
        """What a message calls it."""


class InFiles:
    """Encoded images in files, which are read at each use.

    Args:
        files: paths of the files.
        places: int64 (n, 3), columns PLACE: the file's number, the image's offset in it (or WHOLE) and its bytes.
        rows: int64 (n,), the number of each image in its source, for messages.
    """

    def __init__(self, files: Sequence[str], places: np.ndarray, rows: np.ndarray) -> None:
        self.files, self.places, self.rows = files, places, rows
        self.lengths = places[:, 2]
        # Open from the beginning, so that a cleared cache leaves a run what it reads. Not mapped: a mapped file that is
        # cut short kills the process.
        shared = np.unique(places[places[:, 1] != WHOLE, 0]).tolist()
        self._opened = {number: open(files[number], "rb", buffering=0) for number in shared}  # noqa: SIM115

    def read(self, row: int) -> np.ndarray:
        """The bytes of one image; an OSError if its file is gone, a ValueError if it has another length."""
        number, offset, length = self.places[row].tolist()
        if offset == WHOLE:
            content = np.fromfile(self.files[number], dtype=np.uint8)
        else:
            content = np.empty(length, dtype=np.uint8)
            content = content[: os.preadv(self._opened[number].fileno(), [content.data], offset)]
        if len(content) != length:
            raise ValueError(f"it has {len(content)} bytes and had {length}")
        return content

    def name(self, row: int) -> str:
        """The file of an image, and its row where it is one of many there."""
        number, offset, _ = self.places[row].tolist()
        return self.files[number] + ("" if offset == WHOLE else f", row {self.rows[row]}")


class Joined:
    """Encoded images one after another in one array.

    Args:
        content: uint8 (all bytes,); offsets: int64 (n + 1,), where each begins and the last ends.
    """

    def __init__(self, content: Tensor, offsets: Tensor) -> None:
        self.content, self.offsets = content, offsets
        self.lengths = offsets.diff().numpy()

    def read(self, row: int) -> np.ndarray:
        """The bytes of one image."""
        return np.array(self.content[int(self.offsets[row]) : int(self.offsets[row + 1])].numpy())

    def name(self, row: int) -> str:
        """The image's place in the memory."""
        return f"row {row} of the replay memory"


class Encoded:
    """Encoded images, of which `[rows]` gives unaugmented squares, as an array of pixels would.

    Args:
        shapes: int32 (n, 3), columns SHAPE.
    """

    def __init__(self, contents: Contents, shapes: np.ndarray, decoding: Decoding) -> None:
        self.contents, self.shapes, self.decoding = contents, shapes, decoding

    def __len__(self) -> int:
        return len(self.shapes)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Number of images, and channels, height and width of an unaugmented one."""
        return len(self), 3, self.decoding.size, self.decoding.size

    @property
    def lengths(self) -> np.ndarray:
        """Bytes of each image, int64 (n,)."""
        return self.contents.lengths

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Unaugmented squares uint8 (n, 3, size, size) of rows (n,); see `kaizen.data.decoding.centre`."""
        size = self.decoding.size
        made = np.empty((len(rows), 3, size, size), dtype=np.uint8)

        def work(place: int) -> None:
            square = self._made(int(rows[place]), lambda content, shape: centre(content, shape, self.decoding))
            made[place] = square.transpose(2, 0, 1)

        each(work, len(rows), self.decoding.pool)
        return made

    def crop(self, row: int, boxes: Sequence[Sequence[int]], sizes: Sequence[int]) -> list[np.ndarray]:
        """Crops of one image, uint8 (size, size, 3) each; see `kaizen.data.decoding.crops`."""
        background = self.decoding.background
        return self._made(row, lambda content, shape: crops(content, shape, boxes, sizes, background))

    def take(self, rows: np.ndarray) -> "Encoded":
        """Some of the images, with their bytes in memory."""
        return Encoded.collected([(self, row) for row in rows.tolist()], self.decoding)

    @staticmethod
    def collected(images: Sequence[tuple["Encoded", int]], decoding: Decoding) -> "Encoded":
        """Images that are given by their rows in others, with their bytes in memory; there may be none."""
        lengths = [int(source.lengths[row]) for source, row in images]
        offsets = torch.tensor([0, *accumulate(lengths)])
        content = torch.empty(int(offsets[-1]), dtype=torch.uint8)
        for (source, row), part in zip(images, content.split(lengths) if images else (), strict=True):
            np.copyto(part.numpy(), source.contents.read(row))
        shapes = [source.shapes[row] for source, row in images]
        held = np.stack(shapes) if shapes else np.empty((0, len(SHAPE)), dtype=np.int32)
        return Encoded(Joined(content, offsets), held, decoding)

    def tensors(self) -> dict[str, Tensor]:
        """The images as they are saved: all bytes uint8, offsets int64 (n + 1,), shapes int32 (n, 3)."""
        held = self.contents
        if not isinstance(held, Joined):
            return self.take(np.arange(len(self))).tensors()
        return {"images": held.content, "offsets": held.offsets, "shapes": torch.from_numpy(self.shapes)}

    @staticmethod
    def of_tensors(tensors: dict[str, Tensor], decoding: Decoding) -> "Encoded":
        """The images from what `tensors` gave; a ValueError if it does not fit together."""
        offsets, shapes = tensors["offsets"], tensors["shapes"]
        fits = len(offsets) == len(shapes) + 1 and int(offsets[0]) == 0 and int(offsets[-1]) == len(tensors["images"])
        if not fits or bool((offsets.diff() <= 0).any()) or bool((shapes[:, :2] <= 0).any()):
            raise ValueError("offsets, shapes and bytes of the images do not fit together")
        return Encoded(Joined(tensors["images"], offsets), shapes.numpy(), decoding)

    def _made(self, row: int, work: Callable[[np.ndarray, Shape], T]) -> T:
        """What `work` makes of an image; a ConfigError if it cannot be read."""
        height, width, plain = self.shapes[row].tolist()
        try:
            return work(self.contents.read(row), Shape(height, width, bool(plain)))
        except MemoryError:
            raise
        except Exception as error:  # Pillow's readers raise many kinds of exceptions for broken files
            problem = f"{self.contents.name(row)}: image can no longer be read ({reason_of(error)})"
            raise ConfigError("data.source", f"{problem}; allowed: the data as they were when the run began") from error
