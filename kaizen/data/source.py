"""Reads a named source of images and labels with Hugging Face datasets into a memory-mapped uint8 store.

Nothing heavy is imported at the top: the configuration check reads KNOWN_SOURCES before any data is touched.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from kaizen.data import cache as caches
from kaizen.data import origins, store
from kaizen.data.columns import read_columns
from kaizen.data.files import KINDS, Request, find_files
from kaizen.data.images import Decoding, own_size
from kaizen.data.store import Source, Split
from kaizen.errors import ConfigError
from kaizen.run.places import user_path

__all__ = ["KNOWN_SOURCES", "KnownSource", "Source", "Split", "load_source"]


@dataclass(frozen=True)
class KnownSource:
    """A source known by name: classes, training images, image side in pixels, hub id (None: built in), columns."""

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
    "domainnet": KnownSource(345, 409832, 224, "wltjr1007/DomainNet", "image", "label"),
    "fashion_mnist": KnownSource(10, 60000, 28, "zalando-datasets/fashion_mnist", "image", "label"),
}


PLACE = ("source", "place", "config", "revision")
"""Parts of a request that name the location of the data and not their content."""


def load_source(
    source: str,
    *,
    image_size: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    domain_column: str | None = None,
    train_split: str = "train",
    test_split: str = "test",
    cache_dir: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    background: str = "white",
    broken: str = "error",
    check: Callable[[], None] = lambda: None,
) -> Source:
    """Both splits as uint8 (n, 3, image_size, image_size), decoded once into cache_dir; ConfigError if unusable.

    `config` and `revision` belong to a hub source. `check` is called regularly while images are decoded, and may raise.
    """
    named = (image_size, image_column, label_column, domain_column, train_split, test_split)
    request = _parse(Request(source, "", "", config, revision, *named))
    decoding = Decoding(background, broken, stamps_files=request.kind in ("parquet", "disk"))
    cache = caches.cache_folder(cache_dir)
    library = request.kind in ("digits", "hub")
    # Stamps come from the files and not from the library, whose fingerprints miss some changes in place. So a run with
    # decoded images never opens the data set at all.
    files = None if library else find_files(request)
    opened: Any = origins.open_library(request) if library else None
    content = files.stamp if files else origins.content(request, opened)
    # The location is left out, so that a moved directory keeps its decoded images.
    kept = {key: value for key, value in asdict(request).items() if key not in PLACE}
    key = json.dumps([store.FORMAT, content, asdict(decoding), kept])
    fingerprint = hashlib.sha256(key.encode()).hexdigest()
    found = store.read_entry(cache / fingerprint)
    if found is None:
        with caches.workplace(cache, fingerprint) as work:
            with origins.guarded(request):
                tables = origins.open_local(request, files, work) if files else origins.as_tables(request, opened)
                columns = (request.image_column, request.label_column, request.domain_column)
                splits, class_names, domain_names = read_columns(tables, *columns)
            size = request.image_size or own_size(list(splits.values()), check)
            about: dict[str, Any] = {"source": request.source, "class_names": class_names, "domain_names": domain_names}
            about["is_size_found"] = request.image_size is None
            store.write_entry(work / "entry", splits, size, decoding, about, check)
            store.publish(work / "entry", cache / fingerprint)
        found = store.read_entry(cache / fingerprint)
    if found is None:
        raise ConfigError("data.cache_dir", f"{cache / fingerprint} cannot be read back; name another directory")
    return replace(found, notes=files.notes if files else ())


def _parse(request: Request) -> Request:
    found = _resolved(request)
    for key in ("config", "revision"):
        if getattr(request, key) is not None and found.kind != "hub":
            raise ConfigError(f"data.{key}", f"is {getattr(request, key)!r}; allowed for {request.source}: null")
    return found


def _resolved(request: Request) -> Request:
    source = request.source
    known = KNOWN_SOURCES.get(source)
    if known is not None:
        return replace(
            request,
            kind="digits" if known.hub is None else "hub",
            place=known.hub or "",
            image_size=request.image_size or known.image_size,
            image_column=request.image_column or known.image_column,
            label_column=request.label_column or known.label_column,
        )
    kind, colon, place = source.partition(":")
    if kind in KINDS and colon:
        allowed = r"[\w.-]+/[\w.-]+" if kind == "hub" else r".+"
        if not re.fullmatch(allowed, place):
            raise ConfigError("data.source", f"is {source!r}; allowed: {KINDS[kind]}")
        return replace(
            request, kind=kind, place=place if kind == "hub" else str(user_path("data.source", place).absolute())
        )
    near = difflib.get_close_matches(source, [*KNOWN_SOURCES, *KINDS], n=1)
    hint = f" (did you mean {KINDS.get(near[0], near[0])!r}?)" if near else ""
    names = ", ".join([*KNOWN_SOURCES, *KINDS.values()])
    raise ConfigError("data.source", f"is {source!r}{hint}; allowed: {names}")
