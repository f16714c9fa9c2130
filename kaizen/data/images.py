"""Encoded images to uint8 squares: any mode, depth, size and orientation that PIL reads."""

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from kaizen.config.data import DataConfig
from kaizen.data.files import Request
from kaizen.data.tables import Part
from kaizen.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image

CHUNK_BYTES = 1 << 22
MOST_ROWS = 256
"""Images read per chunk."""
THIN = 16
"""Images whose longer side exceeds this multiple of the shorter are cropped before resizing, the rest afterwards."""
DEEP_FORMATS = ("PNG", "PPM", "TIFF", "JPEG2000")
"""Formats whose grey levels of more than 8 bits have a known range; as PIL reads them, 0..65535 (TIFF: as it says)."""
BITS_PER_SAMPLE, SAMPLE_FORMAT = 258, 339
"""Tags of TIFF files; a sample may be of format 1, unsigned integers, or 4, unknown."""


@dataclass(frozen=True)
class Undecoded:
    """One split before decoding: a column of images, each {"bytes", "path"} or bytes, and its checked labels.

    rows: int64 (n,), the images' rows in the table `name` where they are only some of it, for messages.
    """

    name: str
    parts: Sequence[Part]
    column: str
    labels: np.ndarray
    domains: np.ndarray | None
    rows: np.ndarray | None = None


def file_stamp(path: str) -> list[Any]:
    """Path, size and modification time in nanoseconds of a file; both None if it cannot be accessed."""
    try:
        status = os.stat(path)
    except OSError:
        return [path, None, None]
    return [path, status.st_size, status.st_mtime_ns]


def _held(row: Any) -> tuple[bytes | None, str | None]:
    """The encoded image of a row, and the file that it names."""
    if isinstance(row, dict):
        return row.get("bytes"), row.get("path")
    return (None, row) if isinstance(row, str) else (row, None)


def _open(row: Any) -> "Image.Image":
    """An encoded image with only its header read."""
    from PIL import Image

    content, path = _held(row)
    if content is None and path is None:
        raise ValueError("no image in this row")
    if content is None and "://" in str(path) and not os.path.exists(str(path)):
        import fsspec  # type: ignore[import-untyped]

        with fsspec.open(path, "rb") as file:
            content = file.read()
    try:
        return Image.open(BytesIO(content) if content is not None else str(path))
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise ValueError(f"more than {most // 10**6} million pixels; allowed: fewer, so make it smaller") from None


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
    with _open(row) as image:
        return upright_rgb(image, background)


def upright_rgb(image: "Image.Image", background: str = "white") -> tuple["Image.Image", bool]:
    """A PIL image of any mode as a new, upright RGB image, and whether the background shows.

    Opaque images keep their pixels; others are blended on the background.

    Raises:
        ValueError: its pixels have no fixed range.
    """
    from PIL import ExifTags, Image, ImageOps

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
            ground = Image.new("RGBA", image.size, background)
            return Image.alpha_composite(ground, image).convert("RGB"), True
    return image.convert("RGB"), False


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


def _chunks(split: Undecoded, rows: int, doing: str, check: Callable[[], None]) -> Iterator[tuple[int, Sequence[Any]]]:
    """Chunks of encoded images, each with the number of its first; `check` is called before each chunk."""
    from tqdm import tqdm

    start, count = 0, len(split.labels)
    with tqdm(total=count, desc=f"{doing} {split.name}", unit="img", disable=None, leave=False) as bar:
        for chunk in (chunk for part in split.parts for chunk in part.read(split.column, rows)):
            check()
            yield start, chunk
            start += len(chunk)
            bar.update(len(chunk))


def own_size(splits: Sequence[Undecoded], check: Callable[[], None] = lambda: None) -> int:
    """Side in pixels of square images of one size; ConfigError if they differ, or are too small or large."""
    sizes: Counter[tuple[int, int]] = Counter()
    for split in splits:
        for _, rows in _chunks(split, MOST_ROWS, "measuring", check):
            for row in rows:
                with suppress(Exception), _open(row) as image:
                    sizes[image.size] += 1
            if len(sizes) > 1:
                break
    if not sizes:
        return 4  # not used: no image can be read, and decoding reports it
    found = ", ".join(f"{count} of {width} x {height}" for (width, height), count in sizes.most_common(5))
    width, height = next(iter(sizes))
    if len(sizes) > 1 or width != height:
        problem = f"is not set, and the images are {found}{' and more' if len(sizes) > 5 else ''}"
        raise ConfigError("data.image_size", f"{problem}; allowed without it: squares of one size; give it, as 64")
    try:
        DataConfig(image_size=width)
    except ValidationError as error:
        allowed = error.errors()[0]["msg"].removeprefix("Input should be ")
        raise ConfigError("data.image_size", f"is not set, and the images are {found}; allowed: {allowed}") from None
    return width


class Decoder:
    """Decodes the images of a split, and records what it finds.

    Attributes:
        skipped: reasons by row of images that are left out.
        blended: number of images that the background shows through.
        files: stamps of the files that rows name, if they are stamped.
    """

    def __init__(self, split: Undecoded, size: int, request: Request) -> None:
        self.split, self.size, self.request = split, size, request
        self.skipped: dict[int, str] = {}
        self.blended = 0
        self.files: list[list[Any]] = []

    def chunks(self, check: Callable[[], None] = lambda: None) -> Iterator[np.ndarray]:
        """Chunks uint8 (k, 3, size, size) of a few megabytes, in row order; `check` is called before each."""
        rows = min(max(CHUNK_BYTES // (3 * self.size * self.size), 1), MOST_ROWS)
        for start, chunk in _chunks(self.split, rows, "decoding", check):
            pixels = [self.decode(start + i, row) for i, row in enumerate(chunk)]
            if kept := [square for square in pixels if square is not None]:
                yield np.stack(kept)

    def decode(self, index: int, row: Any) -> np.ndarray | None:
        """One image as uint8 (3, size, size); None if it is broken and left out.

        Raises:
            ConfigError: it is broken and data.broken is error, or the file system refuses to read it.
        """
        content, path = _held(row)
        try:
            if self.request.stamps_files and content is None and path is not None:
                if "://" in path and not os.path.exists(path):
                    raise ValueError("it is elsewhere; allowed: images in the table itself, or paths on this machine")
                self.files.append(file_stamp(path))
            image, is_blended = decode_image(row, self.request.background)
            self.blended += is_blended
            return square(image, self.size)
        except MemoryError:
            raise
        except Exception as error:  # PIL's readers raise many kinds of exceptions for broken files
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            where = f", {path}" if path else ""
            row = index if self.split.rows is None else self.split.rows[index]
            problem = f"split {self.split.name!r}, row {row}{where}: image cannot be read ({reason})"
            # A file that exists and is refused may be readable the next time.
            is_refused = isinstance(error, OSError) and error.errno not in (None, errno.ENOENT)
            if self.request.broken == "error" or is_refused:
                remedy = "" if is_refused else "; data.broken=skip leaves such images out"
                raise ConfigError("data.source", problem + remedy) from error
            self.skipped[index] = problem
            return None
