"""Finds the files of a local source, stamps of them that change when a file does, and files that are not read."""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kaizen.config.data import DataConfig, parts_of
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
    def stamps_files(self) -> bool:
        """Whether to stamp the files that rows name, because the key of the data does not cover them."""
        return self.kind in ("parquet", "disk")


@dataclass(frozen=True)
class Files:
    """Files of each split in reading order, stamps that change when a file does, and names of files not read.

    classes: the class of each file, where directories tell it.
    """

    splits: dict[str, list[Path]]
    stamp: list[list[Any]]
    notes: tuple[str, ...]
    classes: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class Found:
    """Files of one split, what was looked for, names of files not read, and the class of each file if known."""

    wanted: str
    paths: list[Path] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)


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
    classes: dict[str, list[str]] = {}
    notes: list[str] = []
    for key, split in request.splits.items():
        parts = [finder(request, root, part) for part in parts_of(split)]
        for part, found in zip(parts_of(split), parts, strict=True):
            if not found.paths:
                there = f"{listed(sorted(path.name for path in root.iterdir())) or 'nothing'}{_remedy(request, key)}"
                raise ConfigError(
                    key, f"is {split!r}, but {request.source} has no {found.wanted}; found there: {there}"
                )
            if request.kind == "disk" and not any(path.suffix == ".arrow" for path in found.paths):
                raise ConfigError(key, f"is {part!r}, which contains no images")
            notes += found.unread
        files[split] = [path for found in parts for path in found.paths]
        classes[split] = [name for found in parts for name in found.classes]
    stamp = [_stamp(root, path) for split in request.splits.values() for path in files[split]]
    taken = {name for name, *_ in stamp}
    return Files(files, stamp, tuple(dict.fromkeys(note for note in notes if note not in taken)), classes)


def _remedy(request: Request, key: str) -> str:
    """End of a message on a split that is missing: how data without a test split are read."""
    if request.test_fraction is not None or (key == "data.train_split" and request.kind != "imagefolder"):
        return ""
    where = ", also where DIR contains the classes themselves" if request.kind == "imagefolder" else ""
    return f"; data.test_fraction=0.2 needs no test split{where}"


def listed(names: Sequence[str]) -> str:
    """Names separated by commas, shortened if there are many."""
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more


def _tables(request: Request, root: Path, split: str) -> Found:
    """SPLIT.parquet or SPLIT-*.parquet: SPLIT before a letter, digit or _ belongs to a different split."""
    ours = re.compile(rf"{re.escape(split)}(-.*)?\.parquet", re.DOTALL)
    every = sorted(path for path in root.glob("*.parquet") if path.is_file())
    unread = [path.name for path in every if path.name.startswith(split) and not ours.fullmatch(path.name)]
    found = [path for path in every if ours.fullmatch(path.name)]
    _check_parts(request, split, [path.name for path in found])
    return Found(f"{split}.parquet or {split}-00000-of-00001.parquet", found, unread)


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


def _saved_files(request: Request, root: Path, split: str) -> Found:
    return Found(f"split {split!r}", [path for _, paths in _walk(root / split) for path in paths])


def _class_files(request: Request, root: Path, split: str) -> Found:
    """Every file of SPLIT/CLASS/ and, if nested, below; images at other places are refused, other files are noted.

    Where a part of the training images becomes the test split, classes may be in the root itself.
    """
    folder, shown = root / split, f"{split}/"
    # Only for the default name: a misspelt one must not make classes of the names of splits.
    if request.test_fraction is not None and split == request.train_split == "train" and not folder.is_dir():
        folder, shown = root, ""
    found, known = Found(f"images in {shown}CLASS/"), image_suffixes()
    tools: set[str] = set()
    counts: dict[str, int] = {}
    for place, paths in _walk(folder):
        name, *below = (*place.relative_to(folder).parts, "")
        if name in tools:
            continue
        if not name:
            for path in paths:
                if path.suffix.lower() in known:
                    raise _misplaced(request, path, shown, "")
                path.stat()  # a broken link may be intended as a class
                found.unread.append(f"{shown}{path.name}")
            continue
        if len(below) == 1 and name.startswith(".") and not any(path.suffix.lower() in known for path in paths):
            tools.add(name)  # such as .git and .cache, with all below
            continue
        if len(below) > 1 and paths and not request.nested:
            raise _misplaced(request, paths[0], shown, "; data.nested=true takes images at any depth below CLASS")
        if place.is_symlink() and place.parent.resolve().is_relative_to(place.resolve()):
            raise OSError(f"{place} is a link to a directory that contains it")
        counts[name] = counts.get(name, 0) + len(paths)
        found.paths += paths
        found.classes += [name] * len(paths)
    found.unread += [f"{shown}{name}/ (no image)" for name, count in counts.items() if not count]
    return found


def _misplaced(request: Request, path: Path, shown: str, remedy: str) -> ConfigError:
    problem = f"is not in {shown}CLASS/; allowed: images only there, and nothing else below it"
    return ConfigError("data.source", f"{request.source}: {path} {problem}{remedy}")


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
    for name, folders, names in os.walk(folder, onerror=fail if folder.exists() else None, followlinks=True):
        place = Path(name)
        below = place != folder
        folders[:] = sorted(name for name in folders if name.lower() not in SYSTEM and not (below and name[0] == "."))
        kept = sorted(name for name in names if name[0] != "." and name.lower() not in SYSTEM)
        yield place, [place / name for name in kept]


def _stamp(root: Path, path: Path) -> list[Any]:
    """Name, size and time of a file, and for tables the start and end of the content."""
    # On text, as there may be a million files.
    file_name, status = os.fspath(path), os.stat(path)
    ends = hashlib.sha256()
    if file_name.endswith((".parquet", ".arrow", ".json")):
        # Tables are few, so their start and end are read as well: times alone can be coarse, or set by an archive.
        with path.open("rb") as file:
            ends.update(file.read(STAMPED_BYTES))
            file.seek(max(status.st_size - STAMPED_BYTES, 0))
            ends.update(file.read(STAMPED_BYTES))
    name = file_name.removeprefix(os.path.join(root, "")).replace(os.sep, "/")
    return [name, status.st_size, status.st_mtime_ns, ends.hexdigest()]
