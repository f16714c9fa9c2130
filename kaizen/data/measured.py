"""A first look at each encoded image: whether it can be read, its shape, its hash, and levels for mean and std."""

import hashlib
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from kaizen.data.decoding import Shape
from kaizen.data.images import open_bounded, upright_rgb

if TYPE_CHECKING:
    from PIL import Image

GRID = 32
"""Pixels per side that the levels of an image are taken from, evenly spaced."""
ENOUGH = 128
"""Pixels of the shorter side that are left where a JPEG is decoded at reduced size."""
TURNED = (5, 6, 7, 8)
"""EXIF orientations that swap height and width."""


@dataclass(frozen=True)
class Measured:
    """What one image is.

    shape: height, width (upright, in pixels) and whether it is plain (see `kaizen.data.decoding.Shape`); digest:
    SHA-256 of its bytes; levels: uint8 (GRID * GRID, 3); is_blended: whether the background shows.
    """

    shape: tuple[int, int, bool]
    digest: bytes
    levels: np.ndarray
    is_blended: bool


def shape_of(content: np.ndarray) -> Shape:
    """The shape of an encoded image uint8 (bytes,), from its header."""
    with open_bounded(BytesIO(content.data)) as image:
        return _shape(image)


def _shape(image: "Image.Image") -> Shape:
    from PIL import ExifTags

    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    plain = image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L") and orientation == 1
    # Pillow has turned the size of a TIFF already.
    turns = orientation in TURNED and image.format != "TIFF"
    width, height = image.size[::-1] if turns else image.size
    return Shape(height, width, plain)


def measured(content: np.ndarray, background: str) -> Measured:
    """Decode one image uint8 (bytes,) as a whole, at reduced size where that is enough; raises if it is broken."""
    with open_bounded(BytesIO(content.data)) as image:
        shape = _shape(image)
        if shape.plain:
            factor = max(1, min(image.size) // ENOUGH)
            image.draft(None, (image.width // factor, image.height // factor))
        pixels, is_blended = upright_rgb(image, background)
    return Measured(
        (shape.height, shape.width, shape.plain), hashlib.sha256(content.data).digest(), _levels(pixels), is_blended
    )


def _levels(image: "Image.Image") -> np.ndarray:
    pixels = np.asarray(image)
    rows, columns = ((np.arange(GRID) * 2 + 1) * side // (2 * GRID) for side in pixels.shape[:2])
    return pixels[rows][:, columns].reshape(-1, 3)
