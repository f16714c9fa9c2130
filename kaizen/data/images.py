"""Encoded images to uint8 squares: any mode, depth, size and orientation that PIL reads."""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kaizen.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image

CHUNK_BYTES = 1 << 22
UNREADABLE = (OSError, ValueError, TypeError, SyntaxError, EOFError, struct.error, KeyError)
"""What PIL raises for broken files: SyntaxError is how its PNG and TIFF readers report them."""


@dataclass(frozen=True)
class Undecoded:
    """One split before decoding: rows of one column, each {"bytes", "path"} or bytes, and its checked labels."""

    name: str
    rows: Any
    column: str
    labels: np.ndarray
    domains: np.ndarray | None


def decode_image(row: Any) -> "Image.Image":
    """One encoded image, {"bytes", "path"} or bytes, as an upright RGB PIL image; alpha is dropped as PIL drops it."""
    import datasets
    from PIL import Image

    if row is None:
        raise ValueError("no image in this row")
    image = datasets.Image().decode_example({"bytes": row, "path": None} if isinstance(row, bytes) else row)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range; allowed: 8-bit and 16-bit images")
    if image.mode.startswith("I"):
        # PIL's own conversion clips at 255; 16-bit grey files open as "I;16" or, in older versions, as "I".
        levels = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    return image.convert("RGB")


def square(image: "Image.Image", size: int) -> np.ndarray:
    """An RGB image as uint8 (3, size, size): shorter side resized (antialiased bicubic), centre cropped."""
    from PIL import Image

    if image.size != (size, size):
        scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image).transpose(2, 0, 1)


def _decode_row(split: Undecoded, index: int, row: Any) -> "Image.Image":
    from PIL import Image

    try:
        return decode_image(row)
    except (*UNREADABLE, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ConfigError(
            "data.source", f"split {split.name!r}, row {index}: image cannot be read ({reason})"
        ) from error


def own_size(split: Undecoded) -> int:
    """Side of the first image in pixels; ConfigError unless it is a square."""
    width, height = _decode_row(split, 0, split.rows[0][split.column]).size
    if width != height:
        raise ConfigError(
            "data.image_size",
            f"is not set and the first image of split {split.name!r} is {width} x {height}; "
            "allowed without it: square images",
        )
    return width


def decoded(split: Undecoded, size: int, check: Callable[[], None] = lambda: None) -> Iterator[np.ndarray]:
    """Chunks uint8 (k, 3, size, size) of a few megabytes, in row order; `check` is called before each."""
    from tqdm import tqdm

    count = len(split.labels)
    step = min(max(CHUNK_BYTES // (3 * size * size), 1), 1024)
    with tqdm(total=count, desc=f"decoding {split.name}", unit="img", disable=None, leave=False) as bar:
        for start in range(0, count, step):
            check()
            rows = split.rows[start : start + step][split.column]
            yield np.stack([square(_decode_row(split, start + i, row), size) for i, row in enumerate(rows)])
            bar.update(len(rows))
