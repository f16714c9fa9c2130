"""Finds the files of a local source, stamps of them that change when a file does, and files that are not read."""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kaizen.config.data import DataConfig
from kaizen.errors import ConfigError

KINDS = {"hub": "hub:OWNER/NAME", "parquet": "parquet:DIR", "imagefolder": "imagefolder:DIR", "disk": "disk:DIR"}
STAMPED_BYTES = 1 << 16
SYSTEM = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "__macosx", ".ipynb_checkpoints"}
"""Files and directories (lower case) that systems leave among images, in addition to those that begin with a dot."""
MOST_NAMES = 20


class Request(DataConfig):
    """The requested source: kind is digits, hub, parquet, imagefolder or disk; place is a hub id or a directory."""

    kind: str = ""
    place: str = ""

    @property
    def splits(self) -> dict[str, str]:
        """Names of the training and the test split, by their keys."""
        return {"data.train_split": self.train_split, "data.test_split": self.test_split}

    @property
    def stamps_files(self) -> bool:
        """Whether to stamp the files that rows name, because the key of the data does not cover them."""
        return self.kind in ("parquet", "disk")


@dataclass(frozen=True)
class Files:
    """Files of each split in reading order, stamps that change when a file does, and names of files not read."""

    splits: dict[str, list[Path]]
    stamp: list[list[Any]]
    notes: tuple[str, ...]


def find_files(request: Request) -> Files:
    """All files of a local source (none of others); ConfigError if one is missing, misplaced or cannot be read."""
    if request.kind in ("digits", "hub"):
        return Files({}, [], ())
    try:
        return _found(request)
    except OSError as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError("data.source", f"{request.source} cannot be read: {reason}") from error


def _found(request: Request) -> Files:
    root = Path(request.place)
    if not root.is_dir():
        raise ConfigError("data.source", f"{request.source}: {root} is not a directory; allowed: {KINDS[request.kind]}")
    finder = {"parquet": _tables, "imagefolder": _class_files, "disk": _saved_files}[request.kind]
    files: dict[str, list[Path]] = {}
    notes: list[str] = []
    for key, split in request.splits.items():
        files[split], wanted, unread = finder(request, root, split)
        if not files[split]:
            there = listed(sorted(path.name for path in root.iterdir())) or "nothing"
            raise ConfigError(key, f"is {split!r}, but {request.source} has no {wanted}; found there: {there}")
        if request.kind == "disk" and not any(path.suffix == ".arrow" for path in files[split]):
            raise ConfigError(key, f"is {split!r}, which contains no images")
        notes += unread
    taken = {path.relative_to(root).as_posix() for paths in files.values() for path in paths}
    stamp = [_stamp(root, path) for split in request.splits.values() for path in files[split]]
    return Files(files, stamp, tuple(dict.fromkeys(note for note in notes if note not in taken)))


def listed(names: Sequence[str]) -> str:
    """Names separated by commas, shortened if there are many."""
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more


def _tables(request: Request, root: Path, split: str) -> tuple[list[Path], str, list[str]]:
    """SPLIT.parquet or SPLIT-*.parquet: SPLIT before a letter, digit or _ belongs to a different split."""
    ours = re.compile(rf"{re.escape(split)}(-.*)?\.parquet", re.DOTALL)
    every = sorted(path for path in root.glob("*.parquet") if path.is_file())
    unread = [path.name for path in every if path.name.startswith(split) and not ours.fullmatch(path.name)]
    found = [path for path in every if ours.fullmatch(path.name)]
    _check_parts(request, split, [path.name for path in found])
    return found, f"{split}.parquet or {split}-00000-of-00001.parquet", unread


def _check_parts(request: Request, split: str, names: list[str]) -> None:
    """Refuse parts of a split that are not all there, and files of different kinds: one may contain the other."""
    numbered = [re.search(r"-(\d+)-of-(\d+)", name.removeprefix(split)) for name in names]
    kinds = {
        part[2] if part else "whole" if name == f"{split}.parquet" else "part"
        for part, name in zip(numbered, names, strict=True)
    }
    numbers = {int(part[1]) for part in numbered if part}
    if len(kinds) > 1 or (numbers and not len(numbers) == len(names) == int(next(iter(kinds)))):
        allowed = f"{split}.parquet alone, {split}-*.parquet, or each of the parts {split}-00000-of-00002.parquet once"
        raise ConfigError("data.source", f"{request.source}: split {split!r} has {listed(names)}; allowed: {allowed}")


def _saved_files(request: Request, root: Path, split: str) -> tuple[list[Path], str, list[str]]:
    return [path for _, paths in _walk(root / split) for path in paths], f"split {split!r}", []


def _class_files(request: Request, root: Path, split: str) -> tuple[list[Path], str, list[str]]:
    """Every file of SPLIT/CLASS/; images at other places are refused; different files and empty classes are noted."""
    found: list[Path] = []
    unread: list[str] = []
    known = image_suffixes()
    tools: set[str] = set()
    for place, paths in _walk(root / split):
        parts = place.relative_to(root / split).parts
        level = len(parts)
        if parts and parts[0] in tools:
            continue
        if level == 1:
            if place.name.startswith(".") and not any(path.suffix.lower() in known for path in paths):
                tools.add(place.name)  # such as .git and .cache, with all below
                continue
            found += paths
            unread += [] if paths else [f"{split}/{place.name}/ (no image)"]
            continue
        for path in paths:
            if level > 1 or path.suffix.lower() in known:
                allowed = f"is not in {split}/CLASS/; allowed: images only there, and nothing else below it"
                raise ConfigError("data.source", f"{request.source}: {path} {allowed}")
            path.stat()  # a broken link may be intended as a class
            unread.append(f"{split}/{path.name}")
    return found, f"images in {split}/CLASS/", unread


def image_suffixes() -> set[str]:
    """File endings (lower case) of the formats that the installed Pillow reads."""
    from PIL import Image

    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def check_images(request: Request, paths: list[Path]) -> None:
    """Refuse the first file that is not an image, by its ending or, if that is unknown, by its content."""
    from PIL import Image, UnidentifiedImageError

    known = image_suffixes()
    for path in paths:
        try:
            str(path).encode()
            if path.suffix.lower() not in known:
                Image.open(path).close()
        except UnicodeEncodeError:
            problem = f"{os.fsencode(path)!r} has a name that is not UTF-8; allowed: a name in UTF-8"
            raise ConfigError("data.source", f"{request.source}: {problem}") from None
        except (UnidentifiedImageError, Image.DecompressionBombError, ValueError, SyntaxError) as error:
            problem = f"{path} is not an image that Pillow can read; allowed in a class directory: only images"
            raise ConfigError("data.source", f"{request.source}: {problem}") from error


def _walk(folder: Path) -> Iterator[tuple[Path, list[Path]]]:
    """A directory and all below it, each with its files, sorted, except files that systems leave."""

    def fail(error: OSError) -> None:
        raise error

    # Links are followed: subsets of large sets are often directories of links to classes. An unreadable directory is
    # an error, as images would be missing otherwise.
    for place, folders, names in os.walk(folder, onerror=fail if folder.exists() else None, followlinks=True):
        below = Path(place) != folder
        folders[:] = sorted(name for name in folders if name.lower() not in SYSTEM and not (below and name[0] == "."))
        kept = sorted(name for name in names if name[0] != "." and name.lower() not in SYSTEM)
        yield Path(place), [Path(place, name) for name in kept]


def _stamp(root: Path, path: Path) -> list[Any]:
    """Name, size and time of a file, and for tables the start and end of the content."""
    status = path.stat()
    ends = hashlib.sha256()
    if path.suffix in (".parquet", ".arrow", ".json"):
        # Tables are few, so their start and end are read as well: times alone can be coarse, or set by an archive.
        with path.open("rb") as file:
            ends.update(file.read(STAMPED_BYTES))
            file.seek(max(status.st_size - STAMPED_BYTES, 0))
            ends.update(file.read(STAMPED_BYTES))
    return [path.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns, ends.hexdigest()]
