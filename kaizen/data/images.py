"""Encoded images to uint8 squares: any mode, depth, size and orientation that PIL reads."""

import os
import warnings
from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

THIN = 16
"""Images whose longer side exceeds this multiple of the shorter are cropped before resizing, the rest afterwards."""
DEEP_FORMATS = ("PNG", "PPM", "TIFF", "JPEG2000")
"""Formats whose grey levels of more than 8 bits have a known range; as PIL reads them, 0..65535 (TIFF: as it says)."""
BITS_PER_SAMPLE, SAMPLE_FORMAT = 258, 339
"""Tags of TIFF files; a sample may be of format 1, unsigned integers, or 4, unknown."""


def file_stamp(path: str) -> list[Any]:
    """Path, size and modification time in nanoseconds of a file; both None if it cannot be accessed."""
    try:
        status = os.stat(path)
    except OSError:
        return [path, None, None]
    return [path, status.st_size, status.st_mtime_ns]


def held(row: Any) -> tuple[bytes | None, str | None]:
    """The encoded image of a row, and the file that it names."""
    if isinstance(row, dict):
        return row.get("bytes"), row.get("path")
    return (None, row) if isinstance(row, str) else (row, None)


def bytes_of(row: Any) -> np.ndarray:
    """The encoded image of a row, uint8 (bytes,)."""
    content, path = held(row)
    if content is None and path is not None and not is_elsewhere(path):
        return np.fromfile(path, dtype=np.uint8)
    return np.frombuffer(_given(row), dtype=np.uint8)


def opened(row: Any) -> "Image.Image":
    """An encoded image with only its header read."""
    content, path = held(row)
    if content is None and path is not None and not is_elsewhere(path):
        return open_bounded(path)
    return open_bounded(BytesIO(_given(row)))


def _given(row: Any) -> bytes:
    """The bytes of a row that holds them, or names an address."""
    content, path = held(row)
    if content is None and path is None:
        raise ValueError("no image in this row")
    if content is None:
        import fsspec  # type: ignore[import-untyped]

        with fsspec.open(path, "rb") as file:
            content = file.read()
    return bytes(content)


def reason_of(error: Exception) -> str:
    """Why an image cannot be read, on one line, without the file's name."""
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:200] or type(error).__name__


def open_bounded(file: BytesIO | str) -> "Image.Image":
    """An encoded image with only its header read; a ValueError if it has too many pixels, or is none."""
    from PIL import Image, UnidentifiedImageError

    _accept_large()
    try:
        return Image.open(file)
    except UnidentifiedImageError:
        size = os.path.getsize(file) if isinstance(file, str) else file.getbuffer().nbytes
        raise ValueError(
            f"none of the image formats that Pillow reads, {size:,} bytes" if size else "no bytes"
        ) from None
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise ValueError(f"more than {most // 10**6} million pixels; allowed: fewer, so make it smaller") from None


# Once, as Pillow warns of each image from half of what it refuses on.
@lru_cache(maxsize=1)
def _accept_large() -> None:
    from PIL import Image

    warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def is_elsewhere(path: str | None) -> bool:
    """Whether a row's path is an address and not a file of this machine."""
    return "://" in str(path) and not os.path.exists(str(path))


def _check_range(image: "Image.Image") -> None:
    """Refuse pixels without a fixed range, as the level of white would be a guess."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(BITS_PER_SAMPLE, (16,))[0] if image.format in DEEP_FORMATS else 8
    kind = ""
    if image.mode == "F":
        kind = "floating-point"
    elif image.mode.startswith("I") and bits not in (12, 16):
        kind = "32-bit" if image.mode == "I" else "signed"
    elif tags.get(SAMPLE_FORMAT, (1,))[0] not in (1, 4):
        kind = "signed"
    if kind:
        raise ValueError(f"{kind} pixels have no fixed range; allowed: 8-bit and unsigned 16-bit images")


def _eight_bits(image: "Image.Image", white: int) -> "Image.Image":
    """Grey levels 0..white scaled to 0..255; PIL's conversion would clip them."""
    from PIL import Image

    levels = np.asarray(image).astype(np.int64)
    grey = Image.fromarray(((levels * 510 + white) // (2 * white)).clip(0, 255).astype(np.uint8))
    if isinstance(clear := image.info.get("transparency"), int):
        grey.putalpha(Image.fromarray(np.where(levels == clear, 0, 255).astype(np.uint8)))
    return grey


def decode_image(row: Any, background: str = "white") -> tuple["Image.Image", bool]:
    """One encoded image, {"bytes", "path"} or bytes, as `upright_rgb` gives it."""
    with opened(row) as image:
        return upright_rgb(image, background)


def upright_rgb(image: "Image.Image", background: str = "white") -> tuple["Image.Image", bool]:
    """A PIL image of any mode as a new, upright RGB image, and whether the background shows; see `upright`."""
    image = upright(image)
    return opaque(image, background), image.mode == "RGBA"


def upright(image: "Image.Image") -> "Image.Image":
    """A PIL image of any mode as a new, upright RGB image, or RGBA if some pixel is not opaque.

    Raises:
        ValueError: its pixels have no fixed range.
    """
    from PIL import ExifTags, ImageOps

    _check_range(image)
    image.load()
    bits = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (16,))[0]
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)  # a copy, as the image may be the caller's
    if image.mode.startswith("I"):
        image = _eight_bits(image, 2**bits - 1)
    if image.mode.endswith("A") or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema()[0] != 255:
            return image
    return image.convert("RGB")


def opaque(image: "Image.Image", background: str) -> "Image.Image":
    """An RGB image as it is, an RGBA image blended on the background."""
    from PIL import Image

    if image.mode != "RGBA":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, background), image).convert("RGB")


def square(image: "Image.Image", size: int) -> np.ndarray:
    """An RGB image as uint8 (3, size, size): shorter side resized (antialiased bicubic), centre cropped."""
    from PIL import Image

    if image.size != (size, size):
        scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        left, top = (width - size) // 2, (height - size) // 2
        if max(width, height) > THIN * size:
            # The same up to rounding, at a cost that does not grow with the longer side.
            across, down = image.width / width, image.height / height
            box = (left * across, top * down, (left + size) * across, (top + size) * down)
            image = image.resize((size, size), Image.Resampling.BICUBIC, box)
        else:
            image = image.resize((width, height), Image.Resampling.BICUBIC)
            image = image.crop((left, top, left + size, top + size))
    return np.asarray(image).transpose(2, 0, 1)
