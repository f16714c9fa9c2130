"""Where images come from: the hub, a local directory or scikit-learn, always as Hugging Face datasets."""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np

from kaizen.data.columns import Pair
from kaizen.errors import ConfigError

KINDS = {"hub": "hub:OWNER/NAME", "parquet": "parquet:DIR", "imagefolder": "imagefolder:DIR", "disk": "disk:DIR"}
STAMPED_BYTES = 1 << 16


@dataclass(frozen=True)
class Request:
    """What was asked for: kind is digits, hub, parquet, imagefolder or disk; place is a hub id or a directory."""

    source: str
    kind: str
    place: str
    image_size: int | None
    image_column: str | None
    label_column: str | None
    domain_column: str | None
    train_split: str
    test_split: str


def open_pair(request: Request, work: Path) -> Pair:
    """Training and test split as datasets.Dataset, converted files in work; ConfigError where they cannot be had."""
    openers = {"digits": lambda: _digits(), "hub": lambda: _hub(request)}
    opened = _guarded(request, openers.get(request.kind, lambda: _local(request, work)))
    for key, name in (("data.train_split", request.train_split), ("data.test_split", request.test_split)):
        if name not in opened:
            raise ConfigError(key, f"is {name!r}; allowed, the splits of {request.source}: {', '.join(opened)}")
    return opened[request.train_split], opened[request.test_split]


def _guarded(request: Request, opener: Callable[[], Any]) -> Any:
    """Run what opens a data set, quietly, with its many errors turned into one line for the user."""
    from datasets.exceptions import DatasetsError

    try:
        with quiet_datasets():
            return opener()
    except ConnectionError as error:
        problem = (
            f"cannot reach the Hugging Face hub for {request.place!r} ({_line(error)}); set HF_HUB_OFFLINE=1 to use a "
            "copy in the cache (HF_HOME), or give a local copy as disk:DIR, parquet:DIR or imagefolder:DIR"
        )
        raise ConfigError("data.source", problem) from error
    except FileNotFoundError as error:
        raise ConfigError("data.source", f"{request.source} was not found: {_line(error)}") from error
    except (DatasetsError, OSError, ValueError, TypeError, RuntimeError) as error:
        # The library wraps what went wrong while it converts files in an error that does not say what.
        cause = error.__cause__ if isinstance(error, DatasetsError) and error.__cause__ else error
        raise ConfigError("data.source", f"{request.source} cannot be read: {_line(cause)}") from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """No progress bars and no warnings of the datasets library inside; the settings from before afterwards."""
    import datasets
    from datasets.utils import logging

    bars_off, level = datasets.are_progress_bars_disabled(), logging.get_verbosity()
    datasets.disable_progress_bars()
    # Nothing is lost: whatever matters comes as an exception.
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if not bars_off:
            datasets.enable_progress_bars()


def _hub(request: Request) -> Any:
    import datasets

    return datasets.load_dataset(request.place)


def _digits() -> Any:
    """scikit-learn's digits, grey levels 0..16 as 0..255; of each class every fifth image is for the test."""
    import datasets
    from sklearn.datasets import load_digits

    levels, labels = load_digits(return_X_y=True)
    pixels = np.round(levels * (255 / 16)).astype(np.uint8)
    rank = np.empty(len(labels), dtype=np.int64)
    for digit in range(10):
        rows = np.flatnonzero(labels == digit)
        rank[rows] = np.arange(len(rows))
    names = datasets.ClassLabel(names=[str(i) for i in range(10)])
    features = datasets.Features({"image": datasets.Image(), "label": names})
    splits = {}
    for name, rows in (("train", rank % 5 != 2), ("test", rank % 5 == 2)):
        # Portable grey maps, as PNG bytes differ between versions of zlib and would change the key.
        images = [{"bytes": b"P5 8 8 255\n" + image.tobytes(), "path": None} for image in pixels[rows]]
        splits[name] = datasets.Dataset.from_dict({"image": images, "label": labels[rows]}, features=features)
    return datasets.DatasetDict(splits)


def digits_content(pair: Pair) -> list[str]:
    """The digits' pixels and labels, hashed: the same on every machine and with every version of the libraries."""
    digests = []
    for part in pair:
        rows = part.with_format("arrow")[:].to_pylist()
        held = b"".join(row["image"]["bytes"] + bytes([row["label"]]) for row in rows)
        digests.append(hashlib.sha256(held).hexdigest())
    return digests


def _local_files(request: Request) -> list[Path]:
    """Every file that a local source is read from, sorted; ConfigError where a directory or a split is missing."""
    root = Path(request.place)
    if not root.is_dir():
        raise ConfigError("data.source", f"{request.source}: {root} is not a directory; allowed: {KINDS[request.kind]}")
    names = sorted(path.name for path in root.iterdir())
    files: list[Path] = []
    for key, split in (("data.train_split", request.train_split), ("data.test_split", request.test_split)):
        if request.kind == "parquet":
            found = sorted(root.glob(f"{escape(split)}*.parquet"))
            wanted = f"{split}*.parquet"
        elif request.kind == "imagefolder":
            found = _walk(root / split, depth=1)
            wanted = f"images in {split}/CLASS/"
            if misplaced := _misplaced(root / split):
                raise ConfigError(
                    "data.source", f"{request.source}: {misplaced} is not in {split}/CLASS/; allowed: images only there"
                )
        else:
            found = _walk(root / split)
            wanted = f"split {split!r}"
        if not found:
            listed = ", ".join(names[:20]) or "nothing"
            raise ConfigError(key, f"is {split!r}, but {request.source} has no {wanted}; found there: {listed}")
        if request.kind == "disk" and not any(path.suffix == ".arrow" for path in found):
            raise ConfigError(key, f"is {split!r}, which holds no images")
        files += found
    return files


def _misplaced(folder: Path) -> Path | None:
    """An image of a folder that is not just one directory down, where its class would be, or None."""
    from PIL import Image

    kinds = Image.registered_extensions()
    return next((p for p in _walk(folder) if p.suffix.lower() in kinds and p.parent.parent != folder), None)


def _walk(folder: Path, depth: int | None = None) -> list[Path]:
    """Files below a directory, sorted, hidden ones left out; with a depth only those that many directories down."""
    found = []

    def fail(error: OSError) -> None:
        raise error

    # Links are followed: subsets of large sets are often directories of links to classes. What cannot be read is no
    # reason to go on with less.
    for place, folders, names in os.walk(folder, onerror=fail if folder.exists() else None, followlinks=True):
        level = len(Path(place).relative_to(folder).parts)
        if level == depth:
            folders.clear()
        if depth in (None, level):
            found += [Path(place, name) for name in names if not name.startswith(".")]
    return sorted(found)


def stamp(request: Request) -> list[list[Any]]:
    """Name, size and time of each file of a local source; ConfigError where one is missing or cannot be read."""
    root = Path(request.place)
    try:
        return [_stamp_file(root, path) for path in _local_files(request)]
    except OSError as error:
        raise ConfigError("data.source", f"{request.source} cannot be read: {_line(error)}") from error


def _stamp_file(root: Path, path: Path) -> list[Any]:
    status = path.stat()
    ends = hashlib.sha256()
    if path.suffix in (".parquet", ".arrow", ".json"):
        # Tables are few, so their two ends are read as well: times alone can be coarse, or set by an archive.
        with path.open("rb") as file:
            ends.update(file.read(STAMPED_BYTES))
            file.seek(max(status.st_size - STAMPED_BYTES, 0))
            ends.update(file.read(STAMPED_BYTES))
    return [path.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns, ends.hexdigest()]


def _local(request: Request, work: Path) -> Any:
    """Open a directory; what the datasets library converts on the way goes to work, and goes away with it."""
    import datasets

    root = Path(request.place)
    if request.kind == "disk":
        opened = datasets.load_from_disk(str(root))
        if not isinstance(opened, datasets.DatasetDict):
            raise ValueError("it is one Dataset without splits; allowed: a DatasetDict that was saved")
        return opened
    kept = str(work / "datasets")
    splits = {"data.train_split": request.train_split, "data.test_split": request.test_split}
    if request.kind == "parquet":
        tables = {split: _filled_tables(root, split, key) for key, split in splits.items()}
        return datasets.load_dataset("parquet", data_files=tables, cache_dir=kept)
    # A pattern a class, as the library's own do not follow links.
    classes = {split: sorted({path.parent for path in _walk(root / split, depth=1)}) for split in splits.values()}
    files = {split: [f"{escape(str(path))}/*" for path in paths] for split, paths in classes.items()}
    return datasets.load_dataset("imagefolder", data_files=files, drop_labels=False, cache_dir=kept)


def _filled_tables(root: Path, split: str, key: str) -> list[str]:
    """The parquet files of a split that hold rows, as patterns; the datasets library fails on those without."""
    from pyarrow import parquet  # type: ignore[import-untyped]

    paths = sorted(root.glob(f"{escape(split)}*.parquet"))
    filled = [escape(str(path)) for path in paths if parquet.read_metadata(path).num_rows]
    if not filled:
        raise ConfigError(key, f"is {split!r}, which holds no images")
    return filled
