"""The cache of pixels and of indices as a directory: its location, its entries, and how they are deleted."""

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from kaizen.data.entries import writing
from kaizen.errors import ConfigError
from kaizen.run.places import user_path

STALE_SECONDS = 24 * 3600
UNFINISHED = ".building-"
"""Prefixes of the directories in which an entry is built or deleted."""


@dataclass(frozen=True)
class Entry:
    """One data set in the cache: its source as first given ("" if unknown), bytes, and seconds since it was written."""

    path: Path
    source: str
    bytes: int
    age: float

    @property
    def is_in_work(self) -> bool:
        """Whether a builder may be working on it."""
        return self.path.name.startswith(UNFINISHED) and self.age <= STALE_SECONDS


def cache_folder(given: str | None) -> Path:
    """Where pixels and indices are kept: the directory given, else one in the user's home."""
    if given is not None:
        return user_path("data.cache_dir", given).absolute()
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kaizen"
    except RuntimeError:
        problem = "is not set, and this user has no home directory; allowed: the path of a directory, as /tmp/kaizen"
        raise ConfigError("data.cache_dir", problem) from None


@contextmanager
def workplace(cache: Path, fingerprint: str) -> Iterator[Path]:
    """A new directory in the cache for building an entry, deleted afterwards; deletes those of killed builders."""
    with writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
        for left in cache.glob(f"{UNFINISHED}*"):
            if _age(left, time.time()) > STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=f"{UNFINISHED}{fingerprint[:16]}-", dir=cache))
    try:
        yield work
    finally:
        # On NFS a file that is still mapped cannot be deleted; a build a day later deletes such remains.
        shutil.rmtree(work, ignore_errors=True)


def _age(folder: Path, now: float) -> float:
    """Seconds since anything in a directory was written; 0 if it changes during this call."""
    try:
        return max(0.0, now - max(path.lstat().st_mtime for path in (folder, *folder.rglob("*"))))
    except OSError:
        return 0.0


def entries(cache: Path) -> list[Entry]:
    """The data sets in a cache and remains of killed builders, oldest first, and no other files."""
    try:
        paths = list(cache.iterdir()) if cache.exists() else []
    except OSError as error:
        raise ConfigError("data.cache_dir", f"{cache} cannot be read ({error.strerror})") from None
    now = time.time()  # one for all, so that their order is that of their times
    found = [
        _entry(path, now) for path in paths if re.fullmatch(rf"[0-9a-f]{{64}}|{re.escape(UNFINISHED)}.*", path.name)
    ]
    return sorted(found, key=lambda entry: -entry.age)


def _entry(path: Path, now: float) -> Entry:
    source, size = "unfinished" if path.name.startswith(UNFINISHED) else "", 0
    # Another process may be clearing the same cache.
    with suppress(OSError):
        size = sum(file.lstat().st_size for file in path.rglob("*"))
    with suppress(OSError, ValueError, AttributeError):
        source = str(json.loads((path / "meta.json").read_bytes()).get("source", ""))
    return Entry(path, source, size, _age(path, now))


def clear(entry: Entry) -> None:
    """Delete a data set from the cache; runs that use it keep their mapped files."""
    with writing(entry.path.parent):
        # Renamed first, so that a half-deleted entry is not taken for a damaged one.
        work = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=entry.path.parent))
        entry.path.rename(work / "entry")
    shutil.rmtree(work, ignore_errors=True)
