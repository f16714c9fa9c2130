"""Files of an entry in the cache: written once and made durable, then read, and checked at each reading."""

import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from kaizen.data.images import file_stamp
from kaizen.data.splits import Source
from kaizen.errors import ConfigError
from kaizen.run.durable import flush_directory

DAMAGED = (OSError, ValueError, KeyError, TypeError, EOFError)
"""Exceptions from reading an entry whose files are missing, truncated or overwritten."""
Read = Callable[[Path], Source | None]
"""Reads an entry, or finds that it is not what was asked for; raises one of DAMAGED, or Outdated."""


class Outdated(ValueError):
    """The files of an entry's images have changed since."""


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn errors of the file system into a ConfigError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError("data.cache_dir", f"cannot write {folder}: {reason}; name a directory with space") from error


def write_synced(path: Path, content: bytes) -> None:
    """Write a new file and flush it to disk."""
    with writing(path), path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def npy(array: np.ndarray) -> bytes:
    """An array as the content of an .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def moments(histogram: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and population std per channel in 0..1 units, from exact integer sums."""
    mean, std = [], []
    for counts in histogram:
        n, total, squares = (int(counts @ np.arange(256) ** power) for power in range(3))
        mean.append(total / n / 255)
        std.append(((n * squares - total * total) / (n * n)) ** 0.5 / 255)
    return mean, std


def write_numbers(entry: Path, role: str, labels: np.ndarray, domains: np.ndarray | None, rows: list[int]) -> None:
    """Write labels and domains of a split without these rows."""
    write_synced(entry / f"{role}.labels.npy", npy(np.delete(labels, rows)))
    if domains is not None:
        write_synced(entry / f"{role}.domains.npy", npy(np.delete(domains, rows)))


def read_numbers(entry: Path, role: str, meta: dict[str, Any]) -> tuple[np.ndarray, np.ndarray | None]:
    """Labels and domains of a split; a ValueError if they are out of range."""
    count = meta["splits"][role]["images"]
    # Small and used everywhere: plain arrays, which torch.from_numpy accepts without a warning.
    labels = np.array(read_array(entry / f"{role}.labels.npy", (count,), np.int64))
    if labels.min() < -1 or labels.max() >= len(meta["class_names"]):
        raise ValueError(f"{role}.labels.npy holds labels out of range")
    if not meta["splits"][role]["domains"]:
        return labels, None
    domains = np.array(read_array(entry / f"{role}.domains.npy", (count,), np.int64))
    if domains.min() < -1 or domains.max() >= len(meta["domain_names"]):
        raise ValueError(f"{role}.domains.npy holds domains out of range")
    return labels, domains


def check_stamps(stamps: Sequence[list[Any]]) -> None:
    """Raise Outdated if a file is no longer as it was stamped."""
    for stamp in stamps:
        if file_stamp(stamp[0]) != stamp:
            raise Outdated(f"{stamp[0]} has changed")


def publish(entry: Path, final: Path, read: Read) -> None:
    """Rename a finished entry to its place; an intact entry that another process put there first is kept."""
    for attempt in range(5):
        try:
            entry.rename(final)
            return flush_directory(final.parent)
        except OSError as error:
            reason = error.strerror or error
        try:
            read(final)
            return None
        except DAMAGED:
            with suppress(OSError):
                final.rename(entry.parent / f"damaged-{attempt}")
    raise ConfigError("data.cache_dir", f"cannot write {final}: {reason}; name a directory with space")


def read_entry(entry: Path, read: Read) -> Source | None:
    """The stored source; None if it is missing, not what was asked for, or damaged or outdated (which is reported)."""
    try:
        entry.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError("data.cache_dir", f"{entry.parent} cannot be read ({error.strerror})") from None
    try:
        return read(entry)
    except Outdated as error:
        reason = f"outdated ({error})"
    except DAMAGED as error:
        reason = " ".join(f"damaged ({type(error).__name__}: {error})".split())
    print(f"kaizen: images in {entry} are {reason}; building them again", file=sys.stderr)
    return None


def read_array(path: Path, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """An array of an .npy file, mapped read only; a ValueError if it is not of this shape and type."""
    array = np.lib.format.open_memmap(path, mode="r")
    if array.shape != shape or array.dtype != dtype or array.offset + array.nbytes != path.stat().st_size:
        raise ValueError(f"{path.name} is {array.dtype} {array.shape}, not {np.dtype(dtype)} {shape}")
    return array
