"""The image store: every image of a source decoded once into memory-mapped uint8 arrays, complete on disk or absent."""

import hashlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from kaizen.data.files import Request
from kaizen.data.images import Decoder, Undecoded, file_stamp
from kaizen.errors import ConfigError
from kaizen.run.durable import flush_directory

FORMAT = 3
"""Version of the format of entries; a new version changes the cache key."""
DAMAGED = (OSError, ValueError, KeyError, TypeError, EOFError)
"""Exceptions from reading an entry whose files are missing, truncated or overwritten."""


class Outdated(ValueError):
    """The files of an entry's images have changed since."""


@dataclass(frozen=True)
class Split:
    """One split: images uint8 (n, 3, s, s), read only; labels int64 (n,), -1 = none; domains int64 (n,) or None.

    domains: of each image, the number of its domain or of its value in data.task_column (-1 = none) in domain_names.
    sha256: of the decoded images' bytes. skipped: reasons for images that were left out, one text each. blended: number
    of images with transparent pixels.
    """

    images: np.ndarray
    labels: np.ndarray
    domains: np.ndarray | None
    sha256: str
    skipped: tuple[str, ...] = ()
    blended: int = 0


@dataclass(frozen=True)
class Source:
    """Both splits with their names; mean and std per channel of the training images in 0..1 (std 0 if constant).

    notes: files and directories among the images that were not read. background: colour behind transparent
    images. is_size_found: whether the images' side was found in the data. test_fraction: of each class, where the test
    images were held out of the training split.
    """

    train: Split
    test: Split
    class_names: tuple[str, ...]
    domain_names: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fingerprint: str
    notes: tuple[str, ...] = ()
    background: str = "white"
    is_size_found: bool = False
    test_fraction: float | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes in both splits."""
        return len(self.class_names)

    @property
    def image_size(self) -> int:
        """Side of the square images in pixels."""
        return int(self.train.images.shape[-1])

    def describe(self) -> list[str]:
        """Lines for the user on what decoding found."""
        lines = [f"image size          {self.image_size} x {self.image_size}"]
        lines[0] += " (found in the data)" if self.is_size_found else ""
        if self.test_fraction is not None:
            held = f"{len(self.test.labels)} images of the training split"
            lines.append(f"held out            {held}, for evaluation (data.test_fraction {self.test_fraction:g})")
        if count := self.train.blended + self.test.blended:
            lines.append(f"transparent         {count} of the images, blended on {self.background} (data.background)")
        if skipped := self.train.skipped + self.test.skipped:
            lines.append(
                f"left out            {len(skipped)} of the images (data.broken=skip), the first: {skipped[0]}"
            )
        return lines

    def digest(self) -> str:
        """SHA-256 of names, labels, domains and images, regardless of their location."""
        found = hashlib.sha256(json.dumps([self.class_names, self.domain_names]).encode())
        for split in (self.train, self.test):
            found.update(f"{split.images.shape} {split.sha256}".encode() + np.ascontiguousarray(split.labels).tobytes())
            if split.domains is not None:
                found.update(np.ascontiguousarray(split.domains).tobytes())
            if split.skipped:
                found.update(f"{len(split.skipped)} left out".encode())
        return found.hexdigest()


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn errors of the file system into a ConfigError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError("data.cache_dir", f"cannot write {folder}: {reason}; name a directory with space") from error


def _write_synced(path: Path, content: bytes) -> None:
    with writing(path), path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _write_images(path: Path, decoder: Decoder, check: Callable[[], None]) -> tuple[np.ndarray, str]:
    """Decode a split into one .npy file; returns the histogram int64 (3, 256) of its levels, and their SHA-256."""
    histogram, digest = np.zeros((3, 256), dtype=np.int64), hashlib.sha256()
    # Written in sequence and not through a memory map, where a full disk would be a bus error.
    with writing(path), path.open("wb") as file:
        _write_header(file, decoder)
        for chunk in decoder.chunks(check):
            histogram += np.stack([np.bincount(chunk[:, c].ravel(), minlength=256) for c in range(3)])
            content = chunk.tobytes()
            digest.update(content)
            file.write(content)
        if decoder.skipped:
            file.seek(0)
            _write_header(file, decoder)
        file.flush()
        os.fsync(file.fileno())
    return histogram, digest.hexdigest()


def _write_header(file: BinaryIO, decoder: Decoder) -> None:
    """The header of an .npy file of the images that are kept; numpy gives it the same length for any number."""
    shape = (len(decoder.split.labels) - len(decoder.skipped), 3, decoder.size, decoder.size)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _moments(histogram: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and population std per channel in 0..1 units, from exact integer sums."""
    mean, std = [], []
    for counts in histogram:
        n, total, squares = (int(counts @ np.arange(256) ** power) for power in range(3))
        mean.append(total / n / 255)
        std.append(((n * squares - total * total) / (n * n)) ** 0.5 / 255)
    return mean, std


def write_entry(
    entry: Path,
    splits: dict[str, Undecoded],
    size: int,
    request: Request,
    names: dict[str, list[str]],
    check: Callable[[], None],
) -> None:
    """Decode splits "train" and "test" into a new directory and make it durable; ConfigError if an image is broken.

    `names`: class_names and domain_names. `check` is called every few megabytes, and may raise.
    """
    with writing(entry):
        entry.mkdir()
    meta: dict[str, Any] = {"format": FORMAT, "source": request.source, **names, "image_size": size}
    meta |= {"is_size_found": request.image_size is None, "background": request.background, "splits": {}, "files": []}
    for name, split in splits.items():
        decoder = Decoder(split, size, request)
        histogram, digest = _write_images(entry / f"{name}.images.npy", decoder, check)
        count, skipped = len(split.labels) - len(decoder.skipped), list(decoder.skipped.values())
        if count == 0:
            raise ConfigError("data.source", f"no image of split {split.name!r} can be read; the first: {skipped[0]}")
        rows = list(decoder.skipped)
        _write_synced(entry / f"{name}.labels.npy", _npy(np.delete(split.labels, rows)))
        if split.domains is not None:
            _write_synced(entry / f"{name}.domains.npy", _npy(np.delete(split.domains, rows)))
        meta["splits"][name] = {"images": count, "domains": split.domains is not None, "sha256": digest}
        meta["splits"][name] |= {"skipped": skipped, "blended": decoder.blended}
        meta["files"] += decoder.files
        if name == "train":
            meta["mean"], meta["std"] = _moments(histogram)
    _write_synced(entry / "meta.json", json.dumps(meta, indent=1).encode())
    flush_directory(entry)


def undecoded(splits: dict[str, Undecoded], size: int, names: dict[str, list[str]]) -> Source:
    """A source with everything but its images, which are black, of this side, and take no memory."""
    train, test = (
        Split(np.broadcast_to(np.uint8(0), (len(split.labels), 3, size, size)), split.labels, split.domains, sha256="")
        for split in (splits["train"], splits["test"])
    )
    half = (0.5, 0.5, 0.5)
    return Source(train, test, tuple(names["class_names"]), tuple(names["domain_names"]), half, half, fingerprint="")


def publish(entry: Path, final: Path) -> None:
    """Rename a finished entry to its place; an intact entry that another process put there first is kept."""
    for attempt in range(5):
        try:
            entry.rename(final)
            return flush_directory(final.parent)
        except OSError as error:
            reason = error.strerror or error
        try:
            _read(final)
            return None
        except DAMAGED:
            with suppress(OSError):
                final.rename(entry.parent / f"damaged-{attempt}")
    raise ConfigError("data.cache_dir", f"cannot write {final}: {reason}; name a directory with space")


def read_entry(entry: Path) -> Source | None:
    """The stored source, mapped read only; None if it is missing, or damaged or outdated (reported in one line)."""
    try:
        entry.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError("data.cache_dir", f"{entry.parent} cannot be read ({error.strerror})") from None
    try:
        return _read(entry)
    except Outdated as error:
        reason = f"outdated ({error})"
    except DAMAGED as error:
        reason = " ".join(f"damaged ({type(error).__name__}: {error})".split())
    print(f"kaizen: decoded images in {entry} are {reason}; building them again", file=sys.stderr)
    return None


def _read(entry: Path) -> Source:
    meta = json.loads((entry / "meta.json").read_bytes())
    for stamp in meta["files"]:
        if file_stamp(stamp[0]) != stamp:
            raise Outdated(f"{stamp[0]} has changed")
    mean, std = ((float(red), float(green), float(blue)) for red, green, blue in (meta["mean"], meta["std"]))
    return Source(
        train=_read_split(entry, "train", meta),
        test=_read_split(entry, "test", meta),
        class_names=tuple(map(str, meta["class_names"])),
        domain_names=tuple(map(str, meta["domain_names"])),
        mean=mean,
        std=std,
        fingerprint=entry.name,
        background=str(meta["background"]),
        is_size_found=bool(meta["is_size_found"]),
    )


def _read_split(entry: Path, name: str, meta: dict[str, Any]) -> Split:
    about = meta["splits"][name]
    count, size = about["images"], meta["image_size"]
    images = _read_array(entry / f"{name}.images.npy", (count, 3, size, size), np.uint8)
    # Labels are small and used everywhere: plain arrays, which torch.from_numpy accepts without a warning.
    labels = np.array(_read_array(entry / f"{name}.labels.npy", (count,), np.int64))
    if labels.min() < -1 or labels.max() >= len(meta["class_names"]):
        raise ValueError(f"{name}.labels.npy holds labels out of range")
    domains = None
    if about["domains"]:
        domains = np.array(_read_array(entry / f"{name}.domains.npy", (count,), np.int64))
        if domains.min() < -1 or domains.max() >= len(meta["domain_names"]):
            raise ValueError(f"{name}.domains.npy holds domains out of range")
    return Split(images, labels, domains, str(about["sha256"]), tuple(about["skipped"]), int(about["blended"]))


def _read_array(path: Path, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    array = np.lib.format.open_memmap(path, mode="r")
    if array.shape != shape or array.dtype != dtype or array.offset + array.nbytes != path.stat().st_size:
        raise ValueError(f"{path.name} is {array.dtype} {array.shape}, not {np.dtype(dtype)} {shape}")
    return array
