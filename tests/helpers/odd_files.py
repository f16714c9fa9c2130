"""Files of images as they are found in large collections: odd ones and broken ones, each as bytes."""

from collections.abc import Callable
from functools import partial

import numpy as np
from photographs import jpeg
from PIL import Image
from small_sources import encoded, picture

WIDTH, HEIGHT = 40, 30
GREY_LEVELS = np.arange(WIDTH * HEIGHT, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 54
"""Of the 16-bit file: from 0 to almost 65535."""


def scene(size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    """Smooth, so that JPEG changes it little, and with four different corners, so that it shows how it lies."""
    across, down = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    levels = np.stack([across, down, 1 - across], -1) * 200 + 20
    return Image.fromarray(levels.astype(np.uint8))


def _png(image: Image.Image, **options: object) -> bytes:
    return encoded(image, **options)["bytes"]


# ------------------------------------------------------------------------------------------------------------- odd


def thin() -> bytes:
    """A JPEG of 1 x 2000 px."""
    return jpeg(scene((1, 2000)))


def wide() -> bytes:
    """A JPEG of 20,000 x 4 px."""
    return jpeg(scene((20_000, 4)))


def cmyk_jpeg() -> bytes:
    """Four inks, with Adobe's marker and, as Adobe writes them, inverted levels."""
    return jpeg(scene().convert("CMYK"))


def progressive_jpeg() -> bytes:
    return jpeg(scene(), progressive=True)


def turned_jpeg(orientation: int) -> bytes:
    """The scene once the orientation of EXIF (1 to 8) is applied; the file's sides are swapped from 5 on."""
    return jpeg(scene(), orientation)


def trailing_jpeg() -> bytes:
    """Bytes after the end of the image, some of them a second end."""
    return jpeg(scene()) + b"\0" * 100 + b"\xff\xd9 more"


def deep_png() -> bytes:
    """GREY_LEVELS in 16 bits."""
    return _png(Image.fromarray(GREY_LEVELS))


def palette_png() -> bytes:
    """A palette whose colour 0 is transparent: the left half of the image."""
    image = scene().quantize(16)
    levels = np.asarray(image).clip(1)
    levels[:, : WIDTH // 2] = 0
    clear = Image.fromarray(levels).convert("L")
    clear = Image.frombytes("P", clear.size, clear.tobytes())
    clear.putpalette(image.getpalette() or [])
    return _png(clear, transparency=0)


def rgba_png() -> bytes:
    """The left half is transparent."""
    image = scene()
    image.putalpha(Image.fromarray(np.repeat(np.uint8([[0, 255]]), WIDTH // 2, 1).repeat(HEIGHT, 0)))
    return _png(image)


def moving_gif() -> bytes:
    """Three frames; the first is the scene in 256 colours."""
    later = [picture(seed, (WIDTH, HEIGHT)) for seed in (1, 2)]
    return encoded(scene(), "GIF", save_all=True, append_images=later, duration=50)["bytes"]


def wrong_checksum_png() -> bytes:
    """A wrong CRC of the pixel data, which is sound; Pillow does not check that CRC, other readers do."""
    file = bytearray(_png(scene()))
    start = file.index(b"IDAT")
    length = int.from_bytes(file[start - 4 : start], "big")
    file[start + 4 + length] ^= 0xFF
    return bytes(file)


# ---------------------------------------------------------------------------------------------------------- broken


def cut_jpeg() -> bytes:
    """The first half of a file, as after an interrupted copy; the header is whole."""
    file = jpeg(picture(0, (WIDTH, HEIGHT)), quality=95)
    return file[: len(file) // 2]


def empty() -> bytes:
    return b""


def text() -> bytes:
    """What a server sends instead of an image, saved under the image's name."""
    return b"<!DOCTYPE html>\n<title>404 Not Found</title>\n"


def damaged_png() -> bytes:
    """A changed byte in the middle of the compressed pixels."""
    file = bytearray(_png(picture(0, (WIDTH, HEIGHT))))
    file[len(file) // 2] ^= 0xFF
    return bytes(file)


Kinds = dict[str, Callable[[], bytes]]
TURNED: Kinds = {f"turned_{number}.jpg": partial(turned_jpeg, number) for number in range(1, 9)}
READABLE: Kinds = TURNED | {
    "thin.jpg": thin,
    "wide.jpg": wide,
    "cmyk.jpg": cmyk_jpeg,
    "progressive.jpg": progressive_jpeg,
    "trailing.jpg": trailing_jpeg,
    "deep.png": deep_png,
    "palette.png": palette_png,
    "rgba.png": rgba_png,
    "moving.gif": moving_gif,
    "wrong_checksum.png": wrong_checksum_png,
}
"""Files that Pillow reads, by a name with their ending."""
BROKEN: Kinds = {"cut.jpg": cut_jpeg, "empty.jpg": empty, "text.jpg": text, "damaged.png": damaged_png}
"""Files that it does not; of `cut.jpg` and `damaged.png` it reads the header."""
SIZES = dict.fromkeys(READABLE, (WIDTH, HEIGHT)) | {"thin.jpg": (1, 2000), "wide.jpg": (20_000, 4)}
"""Width and height of the upright images of READABLE."""
