"""The index of a source whose images stay encoded: where each image is, its shape and its labels.

Like the store of pixels, an index is complete on disk or absent.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from kaizen.config.types import AUTO
from kaizen.data.decoding import Decoding, evaluation_side
from kaizen.data.encoded import PLACE, SHAPE, WHOLE, Encoded, InFiles
from kaizen.data.entries import (
    check_stamps,
    moments,
    npy,
    read_array,
    read_numbers,
    write_numbers,
    write_synced,
    writing,
)
from kaizen.data.files import Request
from kaizen.data.images import bytes_of, file_stamp, held, is_elsewhere
from kaizen.data.known import SMALL
from kaizen.data.measured import Measured, measured
from kaizen.data.pool import pool
from kaizen.data.rows import MOST_ROWS, Refusals, Undecoded, check_place, chunks, common_side
from kaizen.data.splits import Source, Split
from kaizen.data.tables import Part, Places
from kaizen.errors import ConfigError
from kaizen.parallel import neighbours, threads
from kaizen.run.durable import flush_directory

FORMAT = 1
"""Version of the format of indices; a new version changes the cache key."""
BELOW = "./"
"""Beginning of the names of files in the source's directory. Other names are absolute, or of files of the entry."""


class Look(NamedTuple):
    """A first look at the image of a row.

    found: what it is, or why it cannot be read. length: its bytes; content: these, if they are to be copied. path: the
    file that it is the whole of; stamp: that of this file before it was read.
    """

    found: Measured | Exception
    length: int
    content: bytes | None
    path: str | None
    stamp: list[Any] | None


class Indexer:
    """Looks at each image of a split, in row order, and records where it is and what it is.

    Attributes:
        files: names of files by number.
        blended: number of images that the background shows through.
        stamps: of the files that the key of the data does not cover.
    """

    def __init__(self, split: Undecoded, request: Request, entry: Path, role: str) -> None:
        self.split, self.request, self.entry, self.role = split, request, entry, role
        self.refusals, self.files, self.blended = Refusals(split, request), dict[str, int](), 0
        self.stamps = list[list[Any]]()
        self._places, self._shapes = list[tuple[int, ...]](), list[tuple[int, ...]]()
        self._digest, self._histogram = hashlib.sha256(), np.zeros((3, 256), dtype=np.int64)

    def run(self, check: Callable[[], None]) -> None:
        """Look at all images.

        Parquet cannot be read at random, so the bytes of its images are copied, and so are those of any other table
        that does not hold them as they are.
        """
        # Other processes of the node wait for this one.
        workers = pool("index", self.request.workers or threads() * neighbours())
        copies = self.entry / f"{self.role}.images"
        with copies.open("wb") as file:
            last, places = None, None
            for part, before, start, rows in chunks(self.split, MOST_ROWS, "indexing", check):
                if part is not last:
                    last, places = part, self._places_of(part)
                look = partial(_look, self.request, places is None)
                for number, found in enumerate(workers.map(look, rows), start):
                    self._add(number, found, None if places is None else places.at(number - before), file)
            with writing(copies):
                file.flush()
                os.fsync(file.fileno())
        if copies.name not in self.files:
            copies.unlink()

    def _places_of(self, part: Part) -> Places | None:
        places = part.places(self.split.column)
        if places is not None and self.request.kind == "hub":
            self.stamps += map(file_stamp, places.files)
        return places

    def _add(self, number: int, look: Look, known: tuple[str, int, int] | None, copies: BinaryIO) -> None:
        if look.stamp is not None:
            self.stamps.append(look.stamp)
        found = look.found
        if isinstance(found, Exception):
            self.refusals.add(number, look.path, found)
            return
        if look.path is not None:
            name, offset = self._covered(look.path, self.request.kind == "imagefolder"), WHOLE
        elif known is not None and look.content is None:
            name, offset = self._covered(known[0], self.request.kind == "disk"), known[1]
        else:
            name, offset = f"{self.role}.images", copies.tell()
            with writing(self.entry / name):
                copies.write(look.content or b"")
        self._places.append((self.files.setdefault(name, len(self.files)), offset, look.length))
        self._shapes.append(found.shape)
        self._digest.update(found.digest)
        self._histogram += np.stack([np.bincount(channel, minlength=256) for channel in found.levels.T])
        self.blended += found.is_blended

    def _covered(self, file: str, covered: bool) -> str:
        """The name of a file in the index: without the source's directory, which may move, if the key covers it."""
        root = os.path.join(self.request.place, "")
        return BELOW + file.removeprefix(root) if covered and file.startswith(root) else file

    def write(self) -> dict[str, Any]:
        """Write the tables of the split; returns what its entry in meta.json tells."""
        split, skipped = self.split, self.refusals.skipped
        if not self._places:
            first = next(iter(skipped.values()))
            raise ConfigError("data.source", f"no image of split {split.name!r} can be read; the first: {first}")
        rows = np.arange(len(split.labels)) if split.rows is None else split.rows
        rows = np.delete(rows, list(skipped))
        tables = {"places": np.array(self._places), "shapes": np.array(self._shapes, dtype=np.int32), "rows": rows}
        for name, table in tables.items():
            write_synced(self.entry / f"{self.role}.{name}.npy", npy(table))
        write_numbers(self.entry, self.role, split.labels, split.domains, list(skipped))
        about = {"images": len(rows), "domains": split.domains is not None, "sha256": self._digest.hexdigest()}
        return about | {"skipped": list(skipped.values()), "blended": self.blended, "files": list(self.files)}

    @property
    def moments(self) -> tuple[list[float], list[float]]:
        """Mean and std per channel, in 0..1, of the levels on a grid of each image."""
        return moments(self._histogram)


def _look(request: Request, is_copied: bool, row: Any) -> Look:
    given, path = held(row)
    whole = os.path.abspath(path) if given is None and path is not None else None
    length, content, stamp = 0, None, None
    try:
        if whole is not None and is_elsewhere(path):
            check_place(request, str(path))
            whole, is_copied = None, True
        if whole is not None and request.kind != "imagefolder":
            stamp = file_stamp(whole)
        encoded = bytes_of(row)
        length, content = len(encoded), encoded.tobytes() if is_copied and whole is None else None
        return Look(measured(encoded, request.background), length, content, whole, stamp)
    except Exception as error:  # PIL's readers raise many kinds of exceptions for broken files
        return Look(error, length, None, path, stamp)


def write_index(
    entry: Path,
    splits: dict[str, Undecoded],
    request: Request,
    names: dict[str, list[str]],
    check: Callable[[], None],
) -> None:
    """Look at all images of splits "train" and "test" and write a new directory; see `kaizen.data.store.write_entry`.

    Raises:
        ConfigError: an image is broken and data.broken is error.
    """
    with writing(entry):
        entry.mkdir()
    meta: dict[str, Any] = {"format": FORMAT, "source": request.source, **names, "background": request.background}
    meta |= {"splits": {}, "stamps": []}
    for role, split in splits.items():
        indexer = Indexer(split, request, entry, role)
        indexer.run(check)
        meta["splits"][role] = indexer.write()
        meta["stamps"] += indexer.stamps
        if role == "train":
            meta["mean"], meta["std"] = indexer.moments
    write_synced(entry / "meta.json", json.dumps(meta).encode())
    flush_directory(entry)


def read_index(request: Request, resize: int | None, entry: Path) -> Source | None:
    """The source of an index, whose images are read at each use; see `kaizen.data.entries.Read`.

    None if all images are small and the request does not ask for files.

    Args:
        resize: shorter side of unaugmented images; None: see `evaluation_side`.

    Raises:
        ConfigError: data.image_size is not set and the images are not squares of one size, or resize is smaller.
    """
    meta = json.loads((entry / "meta.json").read_bytes())
    check_stamps(meta["stamps"])
    shapes = {role: _table(entry, role, "shapes", meta, SHAPE, np.int32) for role in ("train", "test")}
    if request.store == AUTO and all(_are_small(found) for found in shapes.values()):
        return None
    size = request.image_size or _common_side(shapes["train"], shapes["test"])
    check_resize(resize, size)
    decoding = Decoding(size, resize or evaluation_side(size), str(meta["background"]), request.workers)
    train, test = (_read_split(entry, role, meta, shapes[role], decoding, request) for role in ("train", "test"))
    mean, std = ((float(red), float(green), float(blue)) for red, green, blue in (meta["mean"], meta["std"]))
    return Source(
        train,
        test,
        tuple(map(str, meta["class_names"])),
        tuple(map(str, meta["domain_names"])),
        mean,
        std,
        entry.name,
        background=decoding.background,
        is_size_found=request.image_size is None,
        resize=decoding.resize,
    )


def check_resize(resize: int | None, size: int) -> None:
    """Refuse a shorter side that is below the side of the images."""
    if resize is not None and resize < size:
        problem = f"is {resize}; allowed: at least {size}, the side of the images (data.image_size)"
        raise ConfigError("eval.resize", problem)


def _are_small(shapes: np.ndarray) -> bool:
    heights, widths = shapes[:, 0], shapes[:, 1]
    return bool((heights == widths).all()) and int(heights.max()) <= SMALL


def _common_side(*shapes: np.ndarray) -> int:
    sizes, counts = np.unique(np.concatenate(shapes)[:, 1::-1], axis=0, return_counts=True)
    return common_side(Counter({(w, h): n for (w, h), n in zip(sizes.tolist(), counts.tolist(), strict=True)}))


def _table(
    entry: Path, role: str, name: str, meta: dict[str, Any], columns: tuple[str, ...], dtype: type
) -> np.ndarray:
    return np.array(read_array(entry / f"{role}.{name}.npy", (meta["splits"][role]["images"], len(columns)), dtype))


def _read_split(
    entry: Path, role: str, meta: dict[str, Any], shapes: np.ndarray, decoding: Decoding, request: Request
) -> Split:
    about, places = meta["splits"][role], _table(entry, role, "places", meta, PLACE, np.int64)
    rows = np.array(read_array(entry / f"{role}.rows.npy", (about["images"],), np.int64))
    files = [_path(name, str(entry), request.place) for name in map(str, about["files"])]
    if places.min(initial=0) < WHOLE or places[:, 0].max(initial=0) >= len(files) or shapes[:, :2].min(initial=1) < 1:
        raise ValueError(f"{role}.places.npy or {role}.shapes.npy holds numbers out of range")
    images = Encoded(InFiles(files, places, rows), shapes, decoding)
    numbers = read_numbers(entry, role, meta)
    return Split(images, *numbers, str(about["sha256"]), tuple(about["skipped"]), int(about["blended"]))


def _path(name: str, entry: str, place: str) -> str:
    if name.startswith(BELOW):
        return os.path.join(place, name[len(BELOW) :])
    return name if os.path.isabs(name) else os.path.join(entry, name)
