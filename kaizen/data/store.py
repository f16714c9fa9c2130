"""The image store: every image of a source decoded once into memory-mapped uint8 arrays, complete on disk or absent."""

import hashlib
import io
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kaizen.data.images import Undecoded, decoded
from kaizen.errors import ConfigError
from kaizen.run.durable import flush_directory

FORMAT = 2
"""Version of what lies in an entry; another number is another cache key."""
STALE_SECONDS = 24 * 3600
DAMAGED = (OSError, ValueError, KeyError, TypeError, EOFError)
"""What reading an entry raises when files are missing, cut short or overwritten."""


@dataclass(frozen=True)
class Split:
    """One split: images uint8 (n, 3, s, s), read only; labels int64 (n,), -1 = none; domains int64 (n,) or None.

    sha256: of the images' bytes, as they were decoded.
    """

    images: np.ndarray
    labels: np.ndarray
    domains: np.ndarray | None
    sha256: str


@dataclass(frozen=True)
class Source:
    """Both splits with their names; mean and std a channel of the training images in 0..1 (std 0 if constant)."""

    train: Split
    test: Split
    class_names: tuple[str, ...]
    domain_names: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fingerprint: str

    @property
    def num_classes(self) -> int:
        """Number of classes over both splits."""
        return len(self.class_names)

    @property
    def image_size(self) -> int:
        """Side of the square images in pixels."""
        return int(self.train.images.shape[-1])

    def digest(self) -> str:
        """SHA-256 of names, labels, domains and images, wherever they lie."""
        found = hashlib.sha256(json.dumps([self.class_names, self.domain_names]).encode())
        for split in (self.train, self.test):
            found.update(f"{split.images.shape} {split.sha256}".encode() + np.ascontiguousarray(split.labels).tobytes())
            if split.domains is not None:
                found.update(np.ascontiguousarray(split.domains).tobytes())
        return found.hexdigest()


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError("data.cache_dir", f"cannot write {folder}: {reason}; name a directory with room") from error


@contextmanager
def workplace(cache: Path, fingerprint: str) -> Iterator[Path]:
    """A fresh directory beside the entry to build in, gone afterwards; old ones of killed builders go first."""
    prefix = f".building-{fingerprint[:16]}-"
    with _writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
        for left in cache.glob(prefix + "*"):
            if _age(left) > STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=prefix, dir=cache))
    try:
        yield work
    finally:
        # On NFS a file that is still mapped cannot go; the next build takes such rests away.
        shutil.rmtree(work, ignore_errors=True)


def _age(folder: Path) -> float:
    """Seconds since anything in a directory was written; 0 while it changes under our eyes."""
    try:
        return time.time() - max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
    except OSError:
        return 0.0


def _write_synced(path: Path, content: bytes) -> None:
    with _writing(path), path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _write_images(path: Path, split: Undecoded, size: int, check: Callable[[], None]) -> tuple[np.ndarray, str]:
    """Decode a split into one .npy file; returns the histogram int64 (3, 256) of its levels, and their SHA-256."""
    histogram, digest = np.zeros((3, 256), dtype=np.int64), hashlib.sha256()
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(split.labels), 3, size, size)}
    # Written in sequence, not through a map: a full disk is then an error here and not a bus error.
    with _writing(path), path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in decoded(split, size, check):
            histogram += np.stack([np.bincount(chunk[:, c].ravel(), minlength=256) for c in range(3)])
            content = chunk.tobytes()
            digest.update(content)
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return histogram, digest.hexdigest()


def _moments(histogram: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and population std in 0..1 units of each channel, from exact integer sums."""
    levels = range(256)
    mean, std = [], []
    for counts in histogram.tolist():
        n = sum(counts)
        total = sum(c * v for c, v in zip(counts, levels, strict=True))
        squares = sum(c * v * v for c, v in zip(counts, levels, strict=True))
        mean.append(total / n / 255)
        std.append(((n * squares - total * total) / (n * n)) ** 0.5 / 255)
    return mean, std


def write_entry(
    entry: Path,
    splits: dict[str, Undecoded],
    size: int,
    class_names: Sequence[str],
    domain_names: Sequence[str],
    check: Callable[[], None] = lambda: None,
) -> None:
    """Decode splits "train" and "test" into a new directory and make it durable; ConfigError if an image is broken.

    `check` is called every few megabytes, and may raise.
    """
    with _writing(entry):
        entry.mkdir()
    meta: dict[str, Any] = {"format": FORMAT, "image_size": size, "splits": {}}
    meta |= {"class_names": list(class_names), "domain_names": list(domain_names)}
    for name, split in splits.items():
        histogram, digest = _write_images(entry / f"{name}.images.npy", split, size, check)
        _write_synced(entry / f"{name}.labels.npy", _npy(split.labels))
        if split.domains is not None:
            _write_synced(entry / f"{name}.domains.npy", _npy(split.domains))
        meta["splits"][name] = {"images": len(split.labels), "domains": split.domains is not None, "sha256": digest}
        if name == "train":
            meta["mean"], meta["std"] = _moments(histogram)
    _write_synced(entry / "meta.json", json.dumps(meta, indent=1).encode())
    flush_directory(entry)


def publish(entry: Path, final: Path) -> None:
    """Rename a finished entry to its place; a sound entry that another process put there first stays."""
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
    raise ConfigError("data.cache_dir", f"cannot write {final}: {reason}; name a directory with room")


def read_entry(entry: Path) -> Source | None:
    """The stored source, mapped read only; None if there is none or if it is damaged, which is said in one line."""
    try:
        if not entry.exists():
            return None
    except OSError as error:
        raise ConfigError("data.cache_dir", f"{entry.parent} cannot be read ({error.strerror})") from None
    try:
        return _read(entry)
    except DAMAGED as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"kaizen: decoded images in {entry} are damaged ({reason}); building them again", file=sys.stderr)
        return None


def _read(entry: Path) -> Source:
    meta = json.loads((entry / "meta.json").read_bytes())
    mean, std = ((float(red), float(green), float(blue)) for red, green, blue in (meta["mean"], meta["std"]))
    return Source(
        train=_read_split(entry, "train", meta),
        test=_read_split(entry, "test", meta),
        class_names=tuple(map(str, meta["class_names"])),
        domain_names=tuple(map(str, meta["domain_names"])),
        mean=mean,
        std=std,
        fingerprint=entry.name,
    )


def _read_split(entry: Path, name: str, meta: dict[str, Any]) -> Split:
    count, size = meta["splits"][name]["images"], meta["image_size"]
    images = _read_array(entry / f"{name}.images.npy", (count, 3, size, size), np.uint8)
    # Labels are small and used everywhere: plain arrays, so that torch.from_numpy takes them without a warning.
    labels = np.array(_read_array(entry / f"{name}.labels.npy", (count,), np.int64))
    if labels.min() < -1 or labels.max() >= len(meta["class_names"]):
        raise ValueError(f"{name}.labels.npy holds labels out of range")
    domains = None
    if meta["splits"][name]["domains"]:
        domains = np.array(_read_array(entry / f"{name}.domains.npy", (count,), np.int64))
        if domains.min() < 0 or domains.max() >= len(meta["domain_names"]):
            raise ValueError(f"{name}.domains.npy holds domains out of range")
    return Split(images, labels, domains, str(meta["splits"][name]["sha256"]))


def _read_array(path: Path, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    array = np.lib.format.open_memmap(path, mode="r")
    if array.shape != shape or array.dtype != dtype or array.offset + array.nbytes != path.stat().st_size:
        raise ValueError(f"{path.name} is {array.dtype} {array.shape}, not {np.dtype(dtype)} {shape}")
    return array
