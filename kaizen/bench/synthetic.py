"""Random images instead of a data set: uint8 noise with the recipe's size and classes."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange

from kaizen.config.schema import Config
from kaizen.config.types import AUTO
from kaizen.data.known import KNOWN_SOURCES
from kaizen.data.load import Stream, load_stream, make_stream
from kaizen.data.origins import quiet_datasets
from kaizen.data.splits import Source, Split
from kaizen.errors import ConfigError

MOST_BYTES = 256 * 2**20
UNKNOWN_CLASSES, UNKNOWN_SIZE = 100, 32
PUBLISHED_BATCH = 256
"""Images per step if optim.batch is auto: the data would decide, and random images are made to fit this."""
BATCHES = 2
"""Minimum number of batches per task."""


def choose_stream(config: Config, synthetic: bool, *, most_bytes: int = MOST_BYTES) -> tuple[Stream, str]:
    """The recipe's data if they are on this machine, else random images (see `make_source`); and a line about them.

    Raises:
        ConfigError: the data exist and cannot be used, or random images cannot be cut into the recipe's tasks.
    """
    if not synthetic:
        # A benchmark downloads nothing.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        try:
            return load_stream(config), config.data.source
        except ConfigError as error:
            known = KNOWN_SOURCES.get(config.data.source)
            if error.key != "data.source" or known is None or known.hub is None:
                raise
    source = make_source(config, most_bytes)
    why = "as asked" if synthetic else f"as {config.data.source} is not on this machine"
    images = f"{len(source.train.labels)} random images of {source.image_size} px in {source.num_classes} classes"
    return make_stream(config, source), f"{images}, {why}"


def make_source(config: Config, most_bytes: int) -> Source:
    """Random images, as many as the known source has: at most `most_bytes`, at least BATCHES batches per task."""
    known = KNOWN_SOURCES.get(config.data.source)
    stream, images = config.stream, 0
    listed = list(map(len, stream.classes or ())) or [config.stream.tasks]
    if stream.sizes is not None:
        listed, images = (list(stream.sizes), 0) if stream.kind == "class" else (listed, sum(stream.sizes))
    classes = known.classes if known else max(UNKNOWN_CLASSES, sum(listed))
    size = config.data.image_size or (known.image_size if known else UNKNOWN_SIZE)
    batch = PUBLISHED_BATCH if config.optim.batch == AUTO else config.optim.batch
    least = max(BATCHES * batch * stream.tasks, classes, images)
    count = max(least, min(known.train_images if known else least, most_bytes // (3 * size * size)))
    domains = config.stream.domains or tuple(map(str, range(config.stream.tasks)))
    generator = np.random.default_rng(config.run.seed)

    def split(images: int) -> Split:
        pixels = generator.integers(256, size=(images, 3, size, size), dtype=np.uint8)
        # Every class occurs in every domain.
        labels, digest = np.arange(images) % classes, hashlib.sha256(pixels.tobytes()).hexdigest()
        return Split(pixels, labels, np.arange(images) // classes % len(domains), digest)

    train, test = split(count), split(max(least // 5, classes * len(domains)))
    names = [f"class {number}" for number in range(classes)]
    if config.stream.classes is not None:
        # The recipe's names, so that its tasks can be cut; numbers mean the classes in their order.
        chosen = [name for task in config.stream.classes for name in task if not name.isdecimal()]
        names[: len(chosen)] = chosen
    # Moments of uniform levels, so the data need not be read.
    moments = (0.5, 0.5, 0.5), (0.29, 0.29, 0.29)
    return Source(train, test, tuple(names), tuple(domains), *moments, fingerprint="synthetic")


def save_source(source: Source, folder: Path) -> None:
    """Write a source as a data set that `disk:FOLDER` names, with columns image, label and domain."""
    import datasets

    columns = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=list(source.class_names)),
        "domain": datasets.ClassLabel(names=list(source.domain_names)),
    }
    parts = {}
    with quiet_datasets():
        for name, split in (("train", source.train), ("test", source.test)):
            assert split.domains is not None
            pictures = list(rearrange(split.images[np.arange(len(split.labels))], "n c h w -> n h w c"))
            rows = {"image": pictures, "label": split.labels, "domain": split.domains}
            parts[name] = datasets.Dataset.from_dict(rows, features=datasets.Features(columns))
        datasets.DatasetDict(parts).save_to_disk(str(folder))


def saved_keys(source: Source, folder: Path) -> dict[str, Any]:
    """The keys of section `data` that name what `save_source` wrote, with a cache next to it."""
    columns = {"image_column": "image", "label_column": "label", "domain_column": "domain", "task_column": "domain"}
    place = {"source": f"disk:{folder}", "image_size": source.image_size, "cache_dir": str(folder / "cache")}
    return {
        **place,
        **columns,
        "train_split": "train",
        "test_split": "test",
        "test_fraction": "null",
        "nested": "false",
    }
