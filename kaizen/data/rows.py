"""The encoded images of a split, row by row: how they are read in chunks, and what becomes of broken ones."""

import errno
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from pydantic import ValidationError

from kaizen.config.data import DataConfig
from kaizen.data.files import Request
from kaizen.data.images import decode_image, file_stamp, held, is_elsewhere, opened, reason_of, square
from kaizen.data.known import SMALL
from kaizen.data.tables import Part
from kaizen.errors import ConfigError

CHUNK_BYTES = 1 << 22
MOST_ROWS = 256
"""Images read per chunk."""


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


class Chunk(NamedTuple):
    """Consecutive rows of a part: the number of rows before the part, and the number of the first of these."""

    part: Part
    before: int
    start: int
    rows: Sequence[Any]


def chunks(split: Undecoded, rows: int, doing: str, check: Callable[[], None]) -> Iterator[Chunk]:
    """Chunks of encoded images; `check` is called before each chunk."""
    from tqdm import tqdm

    start, count = 0, len(split.labels)
    with tqdm(total=count, desc=f"{doing} {split.name}", unit="img", disable=None, leave=False) as bar:
        for part in split.parts:
            before = start
            for chunk in part.read(split.column, rows):
                check()
                yield Chunk(part, before, start, chunk)
                start += len(chunk)
                bar.update(len(chunk))


def own_size(splits: Sequence[Undecoded], check: Callable[[], None] = lambda: None) -> int:
    """Side in pixels of square images of one size; ConfigError if they differ, or are too small or large."""
    sizes: Counter[tuple[int, int]] = Counter()
    for split in splits:
        for found in _sizes(split, check):
            sizes += found
            if len(sizes) > 1:
                break
    return common_side(sizes)


def common_side(sizes: "Counter[tuple[int, int]]") -> int:
    """The side of squares of one size, from counts of (width, height); see `own_size`."""
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


def are_small(splits: Sequence[Undecoded], check: Callable[[], None] = lambda: None) -> bool:
    """Whether all images that can be read are squares of at most SMALL pixels per side."""
    return all(is_small(*size) for split in splits for found in _sizes(split, check) for size in found)


def is_small(width: int, height: int) -> bool:
    """Whether an image is a square of at most SMALL pixels per side."""
    return width == height <= SMALL


def _sizes(split: Undecoded, check: Callable[[], None]) -> Iterator["Counter[tuple[int, int]]"]:
    """Counts of (width, height) in each chunk of images, from their headers."""
    for chunk in chunks(split, MOST_ROWS, "measuring", check):
        sizes: Counter[tuple[int, int]] = Counter()
        for row in chunk.rows:
            with suppress(Exception), opened(row) as image:
                sizes[image.size] += 1
        yield sizes


def check_place(request: Request, path: str) -> None:
    """Refuse a row whose image is elsewhere, where the files that rows name must be on this machine."""
    if request.stamps_files and is_elsewhere(path):
        raise ValueError("it is elsewhere; allowed: images in the table itself, or paths on this machine")


class Refusals:
    """Images that cannot be read: each ends the work, or is left out and recorded (data.broken).

    Attributes:
        skipped: reasons by row of images that are left out.
    """

    def __init__(self, split: Undecoded, request: Request) -> None:
        self.split, self.request = split, request
        self.skipped: dict[int, str] = {}

    def add(self, index: int, path: str | None, error: Exception) -> None:
        """Record that the image of a row cannot be read; `path`: the file that it names, if any.

        Raises:
            ConfigError: data.broken is error, or the file system refuses to read it.
        """
        if isinstance(error, MemoryError):
            raise error
        where = f", {path}" if path else ""
        row = index if self.split.rows is None else self.split.rows[index]
        problem = f"split {self.split.name!r}, row {row}{where}: image cannot be read ({reason_of(error)})"
        # A file that exists and is refused may be readable the next time.
        is_refused = isinstance(error, OSError) and error.errno not in (None, errno.ENOENT)
        if self.request.broken == "error" or is_refused:
            remedy = "" if is_refused else "; data.broken=skip leaves such images out of a new run"
            raise ConfigError("data.source", problem + remedy) from error
        self.skipped[index] = problem


class Decoder:
    """Decodes the images of a split, and records what it finds.

    Attributes:
        refusals: images that are left out.
        blended: number of images that the background shows through.
        is_small: whether all images were squares of at most SMALL pixels per side.
        files: stamps of the files that rows name, if they are stamped.
    """

    def __init__(self, split: Undecoded, size: int, request: Request) -> None:
        self.split, self.size, self.request = split, size, request
        self.refusals, self.blended, self.is_small = Refusals(split, request), 0, True
        self.files: list[list[Any]] = []

    def chunks(self, check: Callable[[], None] = lambda: None) -> Iterator[np.ndarray]:
        """Chunks uint8 (k, 3, size, size) of a few megabytes, in row order; `check` is called before each."""
        rows = min(max(CHUNK_BYTES // (3 * self.size * self.size), 1), MOST_ROWS)
        for chunk in chunks(self.split, rows, "decoding", check):
            pixels = [self.decode(number, row) for number, row in enumerate(chunk.rows, chunk.start)]
            if kept := [square for square in pixels if square is not None]:
                yield np.stack(kept)

    def decode(self, index: int, row: Any) -> np.ndarray | None:
        """One image as uint8 (3, size, size); None if it is broken and left out.

        Raises:
            ConfigError: see `Refusals.add`.
        """
        content, path = held(row)
        try:
            if content is None and path is not None:
                check_place(self.request, path)
                if self.request.stamps_files:
                    self.files.append(file_stamp(path))
            image, is_blended = decode_image(row, self.request.background)
            self.blended += is_blended
            self.is_small = self.is_small and is_small(*image.size)
            return square(image, self.size)
        except Exception as error:  # PIL's readers raise many kinds of exceptions for broken files
            self.refusals.add(index, path, error)
            return None
