"""Reads a named source of images and labels with Hugging Face datasets into a memory-mapped uint8 store.

Nothing heavy is imported at the top: the configuration check reads KNOWN_SOURCES before any data is touched.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from kaizen.data import cache as caches
from kaizen.data import origins, store
from kaizen.data.columns import read_columns
from kaizen.data.files import KINDS, Request, find_files
from kaizen.data.images import own_size
from kaizen.data.store import Source
from kaizen.errors import ConfigError
from kaizen.run.places import user_path


@dataclass(frozen=True)
class KnownSource:
    """A known source: classes, images of split `train`, image side in pixels, hub id (None: built in), columns."""

    classes: int
    train_images: int
    image_size: int
    hub: str | None
    image_column: str
    label_column: str


KNOWN_SOURCES: dict[str, KnownSource] = {
    "digits": KnownSource(10, 1438, 8, None, "image", "label"),
    "cifar10": KnownSource(10, 50000, 32, "uoft-cs/cifar10", "img", "label"),
    "cifar100": KnownSource(100, 50000, 32, "uoft-cs/cifar100", "img", "fine_label"),
    "imagenet100": KnownSource(100, 126689, 224, "clane9/imagenet-100", "image", "label"),
    "imagenet1k": KnownSource(1000, 1281167, 224, "ILSVRC/imagenet-1k", "image", "label"),
    "tinyimagenet": KnownSource(200, 100000, 64, "zh-plus/tiny-imagenet", "image", "label"),
    "stl10": KnownSource(10, 5000, 96, "jxie/stl10", "image", "label"),
    "domainnet": KnownSource(345, 409832, 224, "wltjr1007/DomainNet", "image", "label"),
    "fashion_mnist": KnownSource(10, 60000, 28, "zalando-datasets/fashion_mnist", "image", "label"),
}


CONTENT = {"image_size", "image_column", "label_column", "domain_column", "train_split", "test_split"}
"""Keys of what is read, and not of the location of the data; `task_column` too, where it is given."""


def load_source(source: str, *, check: Callable[[], None] = lambda: None, decode: bool = True, **keys: Any) -> Source:
    """Both splits as uint8 (n, 3, image_size, image_size), decoded once into cache_dir; ConfigError if unusable.

    `keys` are those of section `data`. `check` is called regularly while images are decoded, and may raise. Without
    `decode`, images that are not in the cache are black, and the cache stays as it is.
    """
    try:
        request = _resolved(Request(source=source, **keys))
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            ".".join(map(str, ("data", *first["loc"]))), f"is {first['input']!r}: {first['msg']}"
        ) from None
    cache = caches.cache_folder(request.cache_dir)
    # Stamps come from the files and not from the library, whose fingerprints miss some changes in place. So a run with
    # decoded images never opens the data set at all.
    files = find_files(request)
    opened: Any = () if files.splits else origins.open_library(request)
    content = files.stamp or [part._fingerprint for part in opened]
    # The location is left out, so that a moved directory keeps its decoded images.
    tasks = {} if request.task_column is None else {"task_column": request.task_column}
    kept = {"kind": request.kind, **request.model_dump(include=CONTENT), **tasks}
    decoding = {"background": request.background, "broken": request.broken, "stamps_files": request.stamps_files}
    key = json.dumps([store.FORMAT, content, decoding, kept])
    fingerprint = hashlib.sha256(key.encode()).hexdigest()
    found = store.read_entry(cache / fingerprint)
    if found is None:
        with caches.workplace(cache, fingerprint) as work:
            with origins.guarded(request):
                splits, names = read_columns(origins.open_tables(request, files, opened, work), request)
            size = request.image_size or own_size(list(splits.values()), check)
            if not decode:
                return store.undecoded(splits, size, names)
            store.write_entry(work / "entry", splits, size, request, names, check)
            store.publish(work / "entry", cache / fingerprint)
        found = store.read_entry(cache / fingerprint)
    if found is None:
        raise ConfigError("data.cache_dir", f"{cache / fingerprint} cannot be read back; name another directory")
    return replace(found, notes=files.notes)


def _resolved(request: Request) -> Request:
    """The request with kind and place, and with the size and columns of a known source."""
    source = request.source
    kind, colon, place = source.partition(":")
    if known := KNOWN_SOURCES.get(source):
        kind, place = "hub" if known.hub else "digits", known.hub or ""
        for key in ("image_size", "image_column", "label_column"):
            request = request.model_copy(update={key: getattr(request, key) or getattr(known, key)})
    elif kind not in KINDS or not colon:
        near = difflib.get_close_matches(source, [*KNOWN_SOURCES, *KINDS], n=1)
        hint = f" (did you mean {KINDS.get(near[0], near[0])!r}?)" if near else ""
        names = ", ".join([*KNOWN_SOURCES, *KINDS.values()])
        raise ConfigError("data.source", f"is {source!r}{hint}; allowed: {names}")
    elif not re.fullmatch(r"[\w.-]+/[\w.-]+" if kind == "hub" else r".+", place):
        raise ConfigError("data.source", f"is {source!r}; allowed: {KINDS[kind]}")
    elif kind != "hub":
        place = str(user_path("data.source", place).absolute())
    for key in ("config", "revision"):
        if getattr(request, key) is not None and kind != "hub":
            raise ConfigError(f"data.{key}", f"is {getattr(request, key)!r}; allowed for {source}: null")
    return request.model_copy(update={"kind": kind, "place": place})
