"""Opens images from the hub, a local directory or scikit-learn, as tables that keep what each file declares."""

import errno
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from kaizen.config.data import parts_of
from kaizen.data.files import Files, Request, check_images
from kaizen.data.tables import Table, declared_features, parquet_table, summed, whole_table
from kaizen.errors import ConfigError


def open_library(request: Request) -> list[Any]:
    """Training and test split from the hub or from scikit-learn: a datasets.Dataset for each name in their sums."""
    import datasets

    with guarded(request):
        if request.kind == "digits":
            return _chosen(request, _digits())
        return _chosen(request, datasets.load_dataset(request.place, **_chosen_on_hub(request)))


def open_tables(request: Request, files: Files, opened: Any, work: Path) -> list[Table]:
    """The splits of a source: files, or what `open_library` returned; `work` is a folder for temporary files.

    Without a test split to read, the training split is the only one.
    """
    names = list(request.splits.values())
    if request.kind == "parquet":
        return [parquet_table(name, files.splits[name]) for name in names]
    if request.kind == "imagefolder":
        return [whole_table(name, _pictures(request, files.splits[name], files.classes[name])) for name in names]
    if request.kind == "disk":
        opened = _chosen(request, _saved(request, work))
    elif request.kind == "hub":
        _check_names(request)
    rest = iter(opened)
    return [summed(name, [whole_table(part, next(rest)) for part in parts_of(name)]) for name in names]


def _chosen(request: Request, opened: Any) -> list[Any]:
    """Each split that is named, in order."""
    for key, split in request.splits.items():
        if any(name not in opened for name in parts_of(split)):
            allowed = f"allowed, the splits of {request.source}: {', '.join(opened)}"
            if key == "data.test_split" and set(opened) <= set(parts_of(request.train_split)):
                allowed += "; data.test_fraction=0.2 needs no test split"
            raise ConfigError(key, f"is {split!r}; {allowed}")
    return [opened[name] for split in request.splits.values() for name in parts_of(split)]


@contextmanager
def guarded(request: Request) -> Iterator[None]:
    """A context for opening a data set: libraries print nothing, and errors become one line for the user."""
    from datasets.exceptions import DatasetsError

    try:
        with quiet_datasets():
            yield
    except ConnectionError as error:
        problem = (
            f"cannot reach the Hugging Face hub for {request.place!r} ({_line(error)}); set HF_HUB_OFFLINE=1 to use a "
            "copy in the cache (HF_HOME), or give a local copy as disk:DIR, parquet:DIR or imagefolder:DIR"
        )
        raise ConfigError("data.source", problem) from error
    except FileNotFoundError as error:
        _refuse_gated(request, error)
        key = "data.revision" if request.revision and "revision" in str(error).lower() else "data.source"
        raise ConfigError(key, f"{request.source} was not found: {_line(error)}") from error
    except (DatasetsError, OSError, ValueError, TypeError, RuntimeError) as error:
        _refuse_gated(request, error)
        # The library wraps errors of its conversion in an error that does not name the cause.
        cause = error.__cause__ if isinstance(error, DatasetsError) and error.__cause__ else error
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ConfigError("data.cache_dir", f"has no space ({cause.strerror}); name another directory") from error
        if request.kind == "hub" and (configurations := _configurations(str(cause))):
            found = "null" if request.config is None else repr(request.config)
            allowed = f"{', '.join(configurations)}, as in --data.config {configurations[0]}"
            raise ConfigError("data.config", f"is {found}; allowed, of {request.source}: {allowed}") from error
        raise ConfigError("data.source", f"{request.source} cannot be read: {_line(cause)}") from error


def _refuse_gated(request: Request, error: BaseException) -> None:
    """Say how to get access, if the hub refused it: its terms are accepted in a browser, once per account."""
    from huggingface_hub.errors import GatedRepoError

    cause: BaseException | None = error
    while cause is not None:
        # The datasets library tells a gated set from one that does not exist by its message alone.
        if isinstance(cause, GatedRepoError) or "is a gated dataset" in str(cause):
            problem = (
                f"{request.source} is gated ({_line(cause)}); accept its terms at "
                f"https://huggingface.co/datasets/{request.place} and log in with `hf auth login`, or give a local "
                "copy as imagefolder:DIR, parquet:DIR or disk:DIR"
            )
            raise ConfigError("data.source", problem) from error
        cause = cause.__cause__


def _configurations(said: str) -> list[str]:
    """Names of a hub set's configurations from an error that lists them, for a missing or an unknown name."""
    listed = re.search(r"available[^\[]*\[(.*?)\]", said, re.IGNORECASE | re.DOTALL)
    cached = re.search(r"configurations in the cache: (.*)", said)
    return re.findall(r"'([^']+)'", listed[1]) if listed else cached[1].split(", ") if cached else []


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """No progress bars and no warnings of the datasets library inside; the previous settings are restored."""
    import datasets
    from datasets.utils import logging

    bars_off, level = datasets.are_progress_bars_disabled(), logging.get_verbosity()
    datasets.disable_progress_bars()
    # Nothing is lost: everything important is raised as an exception.
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if not bars_off:
            datasets.enable_progress_bars()


@contextmanager
def offline() -> Iterator[None]:
    """A context in which the hub is not asked for anything, and only copies on this machine are opened."""
    import datasets
    from huggingface_hub import constants

    held = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = held


def _chosen_on_hub(request: Request) -> dict[str, str]:
    chosen = {"name": request.config, "revision": request.revision}
    return {key: value for key, value in chosen.items() if value is not None}


def _check_names(request: Request) -> None:
    """Refuse parquet files with different class names: the library takes all numbers for those of the first file."""
    import datasets
    import fsspec  # type: ignore[import-untyped]
    from pyarrow import parquet  # type: ignore[import-untyped]

    builder = datasets.load_dataset_builder(request.place, **_chosen_on_hub(request))
    files = (getattr(builder.config, "data_files", None) or {}) if builder.name == "parquet" else {}
    held: dict[str, Any] = {}
    read = {name for split in request.splits.values() for name in parts_of(split)}
    for file in (file for split, found in files.items() if str(split) in read for file in found):
        with fsspec.open(file, "rb") as opened:
            features = declared_features(parquet.ParquetFile(opened).schema_arrow)
        for column, names in ((column, getattr(feature, "names", None)) for column, feature in features.items()):
            if names is not None and held.setdefault(column, names) != names:
                problem = f"{request.source}: {file} numbers the classes of {column!r} differently"
                raise ConfigError(
                    "data.source", f"{problem}; allowed: one list of names, or a local copy as parquet:DIR"
                )


def _digits() -> Any:
    """scikit-learn's digits, grey levels 0..16 as 0..255; every fifth image of each class is a test image."""
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
        # The same on every machine and with every version of the libraries.
        held = b"".join(image["bytes"] + bytes([label]) for image, label in zip(images, labels[rows], strict=True))
        splits[name]._fingerprint = hashlib.sha256(held).hexdigest()
    return datasets.DatasetDict(splits)


def _saved(request: Request, work: Path) -> Any:
    import datasets

    # A link, because the library interprets names with "::".
    link = work / "saved"
    link.symlink_to(request.place)
    opened = datasets.load_from_disk(str(link))
    if not isinstance(opened, datasets.DatasetDict):
        raise ValueError("it is one Dataset without splits; allowed: a saved DatasetDict")
    return opened


def _pictures(request: Request, paths: list[Path], classes: list[str]) -> Any:
    """Files of class directories as a Dataset: only these files, with their classes as labels."""
    import datasets

    check_images(request, paths)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    held = {"image": [str(path) for path in paths], "label": classes}
    return datasets.Dataset.from_dict(held, features=features)
