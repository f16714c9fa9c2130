"""Encoded images to crops and centre squares, one image at a time, as the threads of a pool call it.

A JPEG is decoded by torchvision, every other image by Pillow; both use the same library for JPEG and give the same
pixels. Resizing is torch's for uint8, which follows Pillow's (bicubic, antialiased) to one grey level. What an
image gives depends on its bytes and boxes alone.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from kaizen.data.images import THIN, opaque, open_bounded, upright
from kaizen.data.pool import pool
from kaizen.parallel import threads

if TYPE_CHECKING:
    from PIL import Image

KEPT = 2
"""Where an image is decoded at reduced size, a pixel of the result is made of this many pixels per side or more. Grey
levels then differ by 0.6 on average, and by 4 at 99 % of pixels, from those of the whole image (two photographs)."""
REDUCTIONS = (8, 4, 2)
"""Reductions of libjpeg that skip work, largest first."""


def evaluation_side(size: int) -> int:
    """Default shorter side of an unaugmented image before the centre of this size is cropped, as 256 and 224."""
    return round(size * 256 / 224)


@dataclass(frozen=True)
class Decoding:
    """How encoded images become pixels: side of the images and shorter side before the centre crop, in pixels;
    colour behind transparent pixels; threads that decode (None: as many as the process computes with)."""

    size: int
    resize: int
    background: str = "white"
    workers: int | None = None

    @property
    def pool(self) -> ThreadPoolExecutor:
        """The threads that decode, which all images of the process share."""
        return pool("decode", self.workers or threads())


@dataclass(frozen=True)
class Shape:
    """Height and width in pixels of an upright image, and whether it is a JPEG that any reader decodes alike."""

    height: int
    width: int
    plain: bool


def crops(
    content: np.ndarray, shape: Shape, boxes: Sequence[Sequence[int]], sizes: Sequence[int], background: str
) -> list[np.ndarray]:
    """Crops of one image, decoded once, each uint8 (size, size, 3).

    Args:
        content: uint8 (bytes,), the encoded image.
        boxes: top, left, height and width of each crop in pixels; sizes: its side in the result.
    """
    factor = _reduction(min(min(box[2:]) / size for box, size in zip(boxes, sizes, strict=True))) if shape.plain else 1
    if factor > 1:
        image = _reduced(content, shape, factor)
        return [_resized_box(image, box, factor, size) for box, size in zip(boxes, sizes, strict=True)]
    part = _parts(content, shape, background)
    return [resized(part(*box), size, size) for box, size in zip(boxes, sizes, strict=True)]


def centre(content: np.ndarray, shape: Shape, decoding: Decoding) -> np.ndarray:
    """The unaugmented image, uint8 (size, size, 3): shorter side resized to `decoding.resize`, centre cropped."""
    size, resize = decoding.size, decoding.resize
    factor = _reduction(min(shape.height, shape.width) / resize) if shape.plain else 1
    if factor == 1:
        pixels = _parts(content, shape, decoding.background)(0, 0, shape.height, shape.width)
        return centre_square(pixels, size, resize)
    tall, wide, top, left = _centred(shape.height, shape.width, size, resize)
    down, across = shape.height / tall, shape.width / wide
    box = top * down, left * across, size * down, size * across
    return _resized_box(_reduced(content, shape, factor), box, factor, size)


def centre_square(pixels: np.ndarray, size: int, resize: int) -> np.ndarray:
    """Pixels uint8 (h, w, 3) with the shorter side resized, and the centre (size, size, 3) of that."""
    height, width = pixels.shape[:2]
    if max(height, width) > THIN * (shorter := min(height, width)):
        # The same up to rounding, at a cost that does not grow with the longer side.
        top, left = max(0, height - THIN * shorter) // 2, max(0, width - THIN * shorter) // 2
        pixels = pixels[top : height - top, left : width - left]
    tall, wide, top, left = _centred(pixels.shape[0], pixels.shape[1], size, resize)
    return resized(pixels, tall, wide)[top : top + size, left : left + size]


def _centred(height: int, width: int, size: int, resize: int) -> tuple[int, int, int, int]:
    """Height and width of an image once its shorter side is resized, and top and left of its centre."""
    shorter = min(height, width)
    tall, wide = (resize if side == shorter else int(resize * side / shorter) for side in (height, width))
    return tall, wide, round((tall - size) / 2), round((wide - size) / 2)


def resized(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pixels uint8 (h, w, 3) resized (bicubic, antialiased) to (height, width, 3)."""
    import torch

    if pixels.shape[:2] == (height, width):
        return pixels
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    smooth = torch.nn.functional.interpolate(image, (height, width), mode="bicubic", antialias=True)
    found: np.ndarray = smooth[0].permute(1, 2, 0).numpy()
    return found


def _reduction(ratio: float) -> int:
    """By how much an image may be decoded smaller if a pixel of the result has `ratio` pixels per side."""
    return next((factor for factor in REDUCTIONS if ratio >= KEPT * factor), 1)


def _reduced(content: np.ndarray, shape: Shape, factor: int) -> "Image.Image":
    """A JPEG as RGB image, decoded at 1 / factor of its size."""
    image = open_bounded(BytesIO(content.data))
    _check_size(*image.size, shape)
    image.draft(None, (shape.width // factor, shape.height // factor))
    return image.convert("RGB")


def _resized_box(image: "Image.Image", box: Sequence[float], factor: int, size: int) -> np.ndarray:
    from PIL import Image

    top, left, tall, wide = (side / factor for side in box)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + wide, top + tall)))


def _parts(content: np.ndarray, shape: Shape, background: str) -> Callable[[int, int, int, int], np.ndarray]:
    """A function of a box (top, left, height, width) that gives its pixels uint8 (height, width, 3), opaque."""
    if shape.plain and (pixels := _jpeg()(content)) is not None:
        _check_size(pixels.shape[1], pixels.shape[0], shape)
        return lambda top, left, tall, wide: pixels[top : top + tall, left : left + wide]
    with open_bounded(BytesIO(content.data)) as opened:
        image = upright(opened)
    _check_size(*image.size, shape)
    # Blended after the crop, as the whole image may be large.
    return lambda top, left, tall, wide: np.array(opaque(image.crop((left, top, left + wide, top + tall)), background))


def _check_size(width: int, height: int, shape: Shape) -> None:
    if (width, height) != (shape.width, shape.height):
        raise ValueError(f"it is {width} x {height} and was {shape.width} x {shape.height} pixels")


# Imported once, when first needed: it takes a second.
@lru_cache(maxsize=1)
def _jpeg() -> Callable[[np.ndarray], np.ndarray | None]:
    import torch

    try:
        from torchvision.io import ImageReadMode, decode_jpeg
    except ImportError:  # announced for a later version; Pillow gives the same pixels in twice the time
        return lambda content: None

    def decode(content: np.ndarray) -> np.ndarray | None:
        try:
            pixels: np.ndarray = decode_jpeg(torch.from_numpy(content), ImageReadMode.RGB).permute(1, 2, 0).numpy()
        except RuntimeError:
            return None  # Pillow may read it, or says why not
        return pixels

    return decode
