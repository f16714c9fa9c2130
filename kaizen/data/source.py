"""Finds a named source of images and labels: stored as pixels, or indexed where its encoded images are."""

import difflib
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kaizen.config.types import AUTO
from kaizen.data import cache as caches
from kaizen.data import entries, origins, store
from kaizen.data.columns import read_columns
from kaizen.data.files import KINDS, Request, find_files
from kaizen.data.index import FORMAT, check_resize, read_index, write_index
from kaizen.data.known import KNOWN_SOURCES
from kaizen.data.rows import are_small, own_size
from kaizen.data.splits import Source, undecoded
from kaizen.errors import ConfigError
from kaizen.run.places import user_path

CONTENT = {"image_size", "image_column", "label_column", "domain_column", "train_split", "test_split"}
"""Keys of what is read, and not of the location of the data."""
LATER_CONTENT = ("task_column", "test_fraction", "nested")
"""Further ones, which are part of an entry's name only where they are given, so that older entries keep theirs."""


def load_source(
    source: str,
    *,
    check: Callable[[], None] = lambda: None,
    decode: bool = True,
    resize: int | str | None = AUTO,
    **keys: Any,
) -> Source:
    """Both splits, decoded once into cache_dir, or indexed there and read at each use (data.store).

    `keys` are those of section `data`; `resize` is eval.resize. `check` is called regularly while images are decoded,
    and may raise. Without `decode`, images that are not in the cache are black, and the cache stays as it is.

    Raises:
        ConfigError: the source cannot be used.
    """
    try:
        request = _resolved(Request(source=source, **keys))
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            ".".join(map(str, ("data", *first["loc"]))), f"is {first['input']!r}: {first['msg']}"
        ) from None
    _check_store(request.store, resize)
    found = _found(request, None if resize == AUTO else resize, check, decode)
    _check_store(found.store, resize)
    return found


def _check_store(kind: str, resize: int | str | None) -> None:
    """Refuse an eval.resize that does not fit a store, which may still be open."""
    if kind == "pixels" and resize not in (AUTO, None):
        raise ConfigError("eval.resize", f"is {resize}; allowed with data.store pixels, whose images are squares: null")
    if kind == "files" and resize is None:
        problem = "is null; allowed with data.store files: auto, or the shorter side of test images, as 256"
        raise ConfigError("eval.resize", problem)


def _found(request: Request, resize: Any, check: Callable[[], None], decode: bool) -> Source:
    """The source from the cache, where it is put first if it is not there."""
    cache = caches.cache_folder(request.cache_dir)
    # Stamps come from the files and not from the library, whose fingerprints miss some changes in place. So a run with
    # images in the cache never opens the data set at all.
    files = find_files(request)
    opened: Any = () if files.splits else origins.open_library(request)
    places = _places(request, cache, files.stamp or [part._fingerprint for part in opened])
    read_files, read_pixels = partial(read_index, request, resize), partial(store.read, request)
    kind, found = request.store, None
    if kind != "pixels":
        found = entries.read_entry(places["files"], read_files)
    if kind != "files" and found is None:
        found = entries.read_entry(places["pixels"], read_pixels)
    if found is None:
        with caches.workplace(cache, places["files"].name) as work:
            with origins.guarded(request):
                splits, names = read_columns(origins.open_tables(request, files, opened, work), request)
            if kind == AUTO:
                kind = "pixels" if are_small(list(splits.values()), check) else "files"
            size = request.image_size or own_size(list(splits.values()), check)
            if not decode:
                return replace(undecoded(splits, size, names, kind, resize), test_fraction=request.test_fraction)
            if kind == "files":
                check_resize(resize, size)
                write_index(work / "entry", splits, request, names, check)
            else:
                store.write_entry(work / "entry", splits, size, request, names, check)
            read = read_files if kind == "files" else read_pixels
            entries.publish(work / "entry", places[kind], read)
        found = entries.read_entry(places[kind], read)
    if found is None:
        raise ConfigError("data.cache_dir", f"{places[kind]} cannot be read back; name another directory")
    return replace(found, notes=files.notes, test_fraction=request.test_fraction)


def _places(request: Request, cache: Path, content: list[Any]) -> dict[str, Path]:
    """The directories in the cache of a source's pixels and of its index, by a hash of all that they depend on."""
    # The location is left out, so that a moved directory keeps its images.
    later = {key: value for key in LATER_CONTENT if (value := getattr(request, key))}
    kept = {"kind": request.kind, **request.model_dump(include=CONTENT), **later}
    decoding = {"background": request.background, "broken": request.broken, "stamps_files": request.stamps_files}
    index = {key: value for key, value in kept.items() if key != "image_size"}
    keys = {
        "pixels": [store.FORMAT, content, decoding, kept],
        "files": [FORMAT, "files", content, decoding, index],
    }
    return {kind: cache / hashlib.sha256(json.dumps(key).encode()).hexdigest() for kind, key in keys.items()}


def _resolved(request: Request) -> Request:
    """The request with kind and place, and with the size and columns of a known source."""
    source = request.source
    kind, colon, place = source.partition(":")
    if known := KNOWN_SOURCES.get(source):
        kind, place = "hub" if known.hub else "digits", known.hub or ""
        for key in ("image_size", "image_column", "label_column"):
            request = request.model_copy(update={key: getattr(request, key) or getattr(known, key)})
        request = request.model_copy(update={"store": known.stored(request.store)})
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
    if request.nested and kind != "imagefolder":
        raise ConfigError("data.nested", f"is true; allowed for {source}: false, as only imagefolder:DIR has folders")
    return request.model_copy(update={"kind": kind, "place": place})
