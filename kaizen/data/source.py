"""Images and labels of a named source: Hugging Face datasets in, a memory-mapped uint8 store out.

Nothing heavy is imported at the top: the configuration check reads KNOWN_SOURCES before any data is touched.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kaizen.data import cache as caches
from kaizen.data import origins, store
from kaizen.data.columns import Pair, read_columns
from kaizen.data.images import Decoding, own_size
from kaizen.data.origins import KINDS, Request
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
    background: str = "white",
    broken: str = "error",
    check: Callable[[], None] = lambda: None,
) -> Source:
    """Both splits as uint8 (n, 3, image_size, image_size), decoded once into cache_dir; ConfigError if unusable.

    `check` is called again and again while images are decoded, and may raise.
    """
    columns = (image_column, label_column, domain_column)
    request = _parse(Request(source, "", "", image_size, *columns, train_split, test_split))
    decoding = Decoding(background, broken, stamps_files=request.kind in ("parquet", "disk"))
    cache = caches.cache_folder(cache_dir)
    pair: Pair | None = None
    stamp: list[Any]
    if request.kind in ("digits", "hub"):
        pair = origins.open_pair(request, cache)
        stamp = origins.digits_content(pair) if request.kind == "digits" else [part._fingerprint for part in pair]
    else:
        # Stamped by the files and not by the library, whose fingerprints do not follow every change in place;
        # so a run that finds its images decoded never opens the data set at all.
        stamp = origins.stamp(request)
    # Where the data lie is left out: a directory that is moved keeps its decoded images.
    kept = {key: value for key, value in asdict(request).items() if key not in ("source", "place")}
    key = json.dumps([store.FORMAT, stamp, asdict(decoding), kept])
    fingerprint = hashlib.sha256(key.encode()).hexdigest()
    found = store.read_entry(cache / fingerprint)
    if found is None:
        with caches.workplace(cache, fingerprint) as work:
            _build(request, pair or origins.open_pair(request, work), decoding, work / "entry", check)
            store.publish(work / "entry", cache / fingerprint)
        found = store.read_entry(cache / fingerprint)
    if found is None:
        raise ConfigError("data.cache_dir", f"{cache / fingerprint} cannot be read back; name another directory")
    return found


def _parse(request: Request) -> Request:
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


def _build(request: Request, pair: Pair, decoding: Decoding, entry: Path, check: Callable[[], None]) -> None:
    names = (request.train_split, request.test_split)
    for role, name, part in zip(("train", "test"), names, pair, strict=True):
        if len(part) == 0:
            raise ConfigError(f"data.{role}_split", f"is {name!r}, which holds no images")
    columns = (request.image_column, request.label_column, request.domain_column)
    splits, class_names, domain_names = read_columns(pair, names, *columns)
    size = request.image_size or own_size(list(splits.values()), check)
    about = {"source": request.source, "class_names": class_names, "domain_names": domain_names}
    store.write_entry(entry, splits, size, decoding, about | {"is_size_found": request.image_size is None}, check)
