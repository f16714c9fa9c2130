"""The image store: every image of a source decoded once into memory-mapped uint8 arrays, complete on disk or absent."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from kaizen.config.types import AUTO
from kaizen.data.entries import (
    check_stamps,
    moments,
    read_array,
    read_numbers,
    write_numbers,
    write_synced,
    writing,
)
from kaizen.data.files import Request
from kaizen.data.rows import Decoder, Undecoded
from kaizen.data.splits import Source, Split
from kaizen.errors import ConfigError
from kaizen.run.durable import flush_directory

FORMAT = 4
"""Version of the format of entries; a new version changes the cache key."""


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
        if decoder.refusals.skipped:
            file.seek(0)
            _write_header(file, decoder)
        file.flush()
        os.fsync(file.fileno())
    return histogram, digest.hexdigest()


def _write_header(file: BinaryIO, decoder: Decoder) -> None:
    """The header of an .npy file of the images that are kept; numpy gives it the same length for any number."""
    shape = (len(decoder.split.labels) - len(decoder.refusals.skipped), 3, decoder.size, decoder.size)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


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
    meta["is_small"] = True
    for name, split in splits.items():
        decoder = Decoder(split, size, request)
        histogram, digest = _write_images(entry / f"{name}.images.npy", decoder, check)
        count, skipped = len(split.labels) - len(decoder.refusals.skipped), list(decoder.refusals.skipped.values())
        if count == 0:
            raise ConfigError("data.source", f"no image of split {split.name!r} can be read; the first: {skipped[0]}")
        write_numbers(entry, name, split.labels, split.domains, list(decoder.refusals.skipped))
        meta["splits"][name] = {"images": count, "domains": split.domains is not None, "sha256": digest}
        meta["splits"][name] |= {"skipped": skipped, "blended": decoder.blended}
        meta["files"] += decoder.files
        meta["is_small"] &= decoder.is_small
        if name == "train":
            meta["mean"], meta["std"] = moments(histogram)
    write_synced(entry / "meta.json", json.dumps(meta, indent=1).encode())
    flush_directory(entry)


def read(request: Request, entry: Path) -> Source | None:
    """The source of an entry, mapped read only.

    None if the request leaves the store open and not all images were small (see `kaizen.data.rows.is_small`).
    """
    meta = json.loads((entry / "meta.json").read_bytes())
    check_stamps(meta["files"])
    if request.store == AUTO and not meta["is_small"]:
        return None
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
    about, size = meta["splits"][name], meta["image_size"]
    images = read_array(entry / f"{name}.images.npy", (about["images"], 3, size, size), np.uint8)
    numbers = read_numbers(entry, name, meta)
    return Split(images, *numbers, str(about["sha256"]), tuple(about["skipped"]), int(about["blended"]))
