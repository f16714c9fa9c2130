"""Tables as they are in their files: declarations of different files are compared before a library unifies them.

Nothing heavy is imported at the top, as the configuration check imports this module.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from kaizen.errors import ConfigError


@dataclass(frozen=True)
class Part:
    """One file of a split, or a split that is opened as a whole.

    where: its name in messages. features: declared type of each column. rows: their number. read: gives a column's
    values, at most so many rows at a time. places: see `Places`; None where the bytes of a column lie in no file.
    """

    where: str
    features: dict[str, Any]
    rows: int
    read: Callable[[str, int], Iterator[list[Any]]]
    places: Callable[[str], "Places | None"] = lambda column: None

    def only(self, mask: np.ndarray) -> "Part":
        """The part with only the rows of a mask, bool (rows,); the others are read and dropped."""

        def read(column: str, rows: int) -> Iterator[list[Any]]:
            start = 0
            for chunk in self.read(column, rows):
                kept = mask[start : start + len(chunk)].tolist()
                start += len(chunk)
                if any(kept):
                    yield list(compress(chunk, kept))

        def places(column: str) -> Places | None:
            found = self.places(column)
            return None if found is None else Places(found.files, found.rows[mask])

        return replace(self, rows=int(mask.sum()), read=read, places=places)


@dataclass(frozen=True)
class Places:
    """Where the encoded images of a column are: paths of files, and for each row int64 (n, 3): number of the file,
    offset in it and number of bytes (0: none, the row names a file)."""

    files: tuple[str, ...]
    rows: np.ndarray

    def at(self, row: int) -> tuple[str, int, int]:
        """File, offset and bytes of a row."""
        file, offset, length = self.rows[row].tolist()
        return self.files[file], offset, length


@dataclass(frozen=True)
class Table:
    """A split: its name, and its parts with at least one row each."""

    name: str
    parts: tuple[Part, ...]

    def only(self, mask: np.ndarray) -> "Table":
        """The table with only the rows of a mask, bool (n,)."""
        ends = np.cumsum([part.rows for part in self.parts])
        cut = zip(self.parts, np.split(mask, ends[:-1]), strict=True)
        return Table(self.name, tuple(part.only(mask) for part, mask in cut if mask.any()))


def whole_table(name: str, dataset: Any) -> Table:
    """A split that a library has opened as one datasets.Dataset."""

    def read(column: str, rows: int) -> Iterator[list[Any]]:
        for batch in dataset.with_format("arrow").select_columns([column]).iter(rows):
            yield batch.column(0).to_pylist()

    part = Part(f"split {name!r}", dict(dataset.features), len(dataset), read, partial(_arrow_places, dataset))
    return Table(name, (part,) if len(dataset) else ())


def _arrow_places(dataset: Any, column: str) -> Places | None:
    """Places of the images of a Dataset in its Arrow files; None if it is not made of whole, uncompressed files."""
    import pyarrow as pa  # type: ignore[import-untyped]

    files = tuple(str(Path(held["filename"]).resolve()) for held in dataset.cache_files)
    if not files or dataset._indices is not None:
        return None
    found = []
    for number, file in enumerate(files):
        with pa.memory_map(file) as mapped:
            whole = mapped.read_buffer()
            mapped.seek(0)
            table = pa.ipc.open_stream(mapped).read_all()
            if column not in table.column_names:
                return None
            for chunk in table.column(column).chunks:
                rows = _buffer_places(chunk, number, whole.address, whole.size)
                if rows is None:
                    return None
                found.append(rows)
    rows = np.concatenate(found) if found else np.empty((0, 3), dtype=np.int64)
    return Places(files, rows) if len(rows) == len(dataset) else None


def _buffer_places(chunk: Any, number: int, address: int, size: int) -> np.ndarray | None:
    """Places int64 (n, 3) of the binary values of an Arrow array in the file that is mapped there."""
    import pyarrow as pa

    values = chunk.field("bytes") if pa.types.is_struct(chunk.type) else chunk
    kinds = {pa.binary(): np.int32, pa.large_binary(): np.int64}
    if values.type not in kinds or chunk.offset or values.offset:
        return None
    _, ends, content = values.buffers()
    if content is None:
        return np.tile(np.array([number, 0, 0]), (len(values), 1))  # every row names a file
    first = content.address - address
    if not 0 <= first <= first + content.size <= size:
        return None  # the buffer was decompressed
    bounds = np.frombuffer(ends, dtype=kinds[values.type], count=len(values) + 1).astype(np.int64)
    return np.stack([np.full(len(values), number), first + bounds[:-1], np.diff(bounds)], axis=1)


def summed(name: str, tables: Iterable[Table]) -> Table:
    """Tables one after the other as one split."""
    return Table(name, tuple(part for table in tables for part in table.parts))


def parquet_table(name: str, files: Sequence[Path]) -> Table:
    """A split of parquet files, of which only used columns are read."""
    from pyarrow import parquet

    parts = []
    for file in files:
        with file.open("rb") as opened:
            found = parquet.ParquetFile(opened)
            schema, rows = found.schema_arrow, found.metadata.num_rows
        if rows:
            where = f"split {name!r}" + (f", {file.name}" if len(files) > 1 else "")
            parts.append(Part(where, declared_features(schema), rows, partial(_read_file, file)))
    return Table(name, tuple(parts))


def declared_features(schema: Any) -> dict[str, Any]:
    """Type of each column: as the datasets library declared it in the file, else from the column's type."""
    declared: dict[str, Any] = {}
    with suppress(ValueError, AttributeError):  # metadata of another program
        held = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        declared = (held.get("info") or {}).get("features") or {}
    return {field.name: _feature(field, declared.get(field.name)) for field in schema}


def _feature(field: Any, declared: Any) -> Any:
    import datasets
    import pyarrow as pa

    named = declared.get("_type") if isinstance(declared, dict) else None
    try:
        if named == "Image" or (named == "ClassLabel" and pa.types.is_integer(field.type)):
            return datasets.Features.from_dict({field.name: declared})[field.name]
        if pa.types.is_dictionary(field.type):
            field = field.with_type(field.type.value_type)
        return datasets.Features.from_arrow_schema(pa.schema([field]))[field.name]
    except (ValueError, TypeError, KeyError, pa.ArrowException):
        return field.type  # a column type that the library does not support; the column may be unused


def _read_file(file: Path, column: str, rows: int) -> Iterator[list[Any]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        # As a stream, because the library interprets names with "::" or "*".
        with file.open("rb") as opened:
            for batch in parquet.ParquetFile(opened).iter_batches(rows, columns=[column]):
                yield batch.column(column).to_pylist()
    except MemoryError:  # Arrow's is an ArrowException too
        raise
    except (OSError, pa.ArrowException) as error:
        raise ConfigError("data.source", f"{file} cannot be read: {' '.join(str(error).split())[:300]}") from error
