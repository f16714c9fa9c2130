"""The index of a source whose images stay encoded: where each one is, its shape, its labels; complete or absent."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

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
from kaizen.data.measured import Measured, measured
from kaizen.data.rows import MOST_ROWS, Refusals, Undecoded, chunks, common_side
from kaizen.data.splits import Source, Split
from kaizen.data.tables import Part, Places
from kaizen.errors import ConfigError
from kaizen.run.durable import flush_directory

FORMAT = 1
"""Version of the format of indices; a new version changes the cache key."""
BELOW = "./"
"""Beginning of the names of files below the source's directory; a name without a directory is a file of the entry."""


class Look(NamedTuple):
    """A first look at the image of a row: its bytes uint8 (k,), the file that is nothing else, and what it is."""

    content: np.ndarray
    path: str | None
    found: Measured | Exception


class Indexer:
    """Looks at each image of a split, in row order, and records where it is and what it is.

    Attributes:
        files: names of files by number.
        blended: number of images that the background shows through.
    """

    def __init__(self, split: Undecoded, request: Request, entry: Path, role: str) -> None:
        self.split, self.request, self.entry, self.role = split, request, entry, role
        self.refusals, self.files, self.blended = Refusals(split, request), dict[str, int](), 0
        self._places, self._shapes = list[tuple[int, ...]](), list[tuple[int, ...]]()
        self._digest, self._histogram = hashlib.sha256(), np.zeros((3, 256), dtype=np.int64)
        self._known: tuple[Part | None, Places | None] = None, None

    def run(self, check: Callable[[], None]) -> None:
        """Look at all images.

        Bytes that lie in no file as they are, as in parquet, whose pages cannot be read at random, are copied.
        """
        pool = Decoding(1, 1, workers=self.request.workers).pool
        copies = self.entry / f"{self.role}.images"
        with writing(copies), copies.open("wb") as file:
            for part, before, start, rows in chunks(self.split, MOST_ROWS, "indexing", check):
                places = self._places_of(part)
                for number, look in enumerate(pool.map(partial(_look, self.request), rows), start):
                    if isinstance(look.found, Exception):
                        self.refusals.add(number, look.path, look.found)
                    else:
                        self._add(look, look.found, None if places is None else places.at(number - before), file)
            file.flush()
            os.fsync(file.fileno())
        if copies.name not in self.files:
            copies.unlink()

    def _places_of(self, part: Part) -> Places | None:
        if self._known[0] is not part:
            self._known = part, part.places(self.split.column)
        return self._known[1]

    def _add(self, look: Look, found: Measured, known: tuple[str, int, int] | None, copies: BinaryIO) -> None:
        file, offset = f"{self.role}.images", copies.tell()
        if look.path is not None:
            file, offset = look.path, WHOLE
        elif known is not None and known[2] == len(look.content):
            file, offset, _ = known
        else:
            copies.write(look.content.data)
        self._places.append((self.files.setdefault(self._name(file), len(self.files)), offset, len(look.content)))
        self._shapes.append(found.shape)
        self._digest.update(found.digest)
        self._histogram += np.stack([np.bincount(channel, minlength=256) for channel in found.levels.T])
        self.blended += found.is_blended

    def _name(self, file: str) -> str:
        """A file's name in the index, without the source's directory, which may move."""
        root = self.request.place + os.sep
        return BELOW + file.removeprefix(root) if file.startswith(root) else file

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

    def stamps(self) -> list[list[Any]]:
        """Stamps of the files that the key of the data does not cover."""
        covered = self.request.kind == "imagefolder"
        return [] if covered else [file_stamp(file) for file in self.files if Path(file).is_absolute()]


def _look(request: Request, row: Any) -> Look:
    content, path = np.empty(0, dtype=np.uint8), held(row)[1] if held(row)[0] is None else None
    try:
        if path is not None and is_elsewhere(path):
            Refusals.check_place(request, path)
            content, path = bytes_of(row), None
        else:
            content = bytes_of(row)
        return Look(content, path, measured(content, request.background))
    except Exception as error:  # PIL's readers raise many kinds of exceptions for broken files
        return Look(content, held(row)[1], error)


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
        meta["stamps"] += indexer.stamps()
        if role == "train":
            meta["mean"], meta["std"] = indexer.moments
    write_synced(entry / "meta.json", json.dumps(meta).encode())
    flush_directory(entry)


def read_index(request: Request, resize: int | None, entry: Path) -> Source:
    """The source of an index, whose images are read at each use; see `kaizen.data.entries.Read`.

    Args:
        resize: shorter side of unaugmented images; None: see `evaluation_side`.

    Raises:
        ConfigError: data.image_size is not set and the images are not squares of one size, or resize is smaller.
    """
    meta = json.loads((entry / "meta.json").read_bytes())
    check_stamps(meta["stamps"])
    shapes = {role: _table(entry, role, "shapes", meta, SHAPE, np.int32) for role in ("train", "test")}
    size = request.image_size or _common_side(shapes["train"], shapes["test"])
    if resize is not None and resize < size:
        problem = f"is {resize}; allowed: at least {size}, the side of the images (data.image_size)"
        raise ConfigError("eval.resize", problem)
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
