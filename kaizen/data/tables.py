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
    values, at most so many rows at a time.
    """

    where: str
    features: dict[str, Any]
    rows: int
    read: Callable[[str, int], Iterator[list[Any]]]

    def only(self, mask: np.ndarray) -> "Part":
        """The part with only the rows of a mask, bool (rows,); the others are read and dropped."""

        def read(column: str, rows: int) -> Iterator[list[Any]]:
            start = 0
            for chunk in self.read(column, rows):
                kept = mask[start : start + len(chunk)].tolist()
                start += len(chunk)
                if any(kept):
                    yield list(compress(chunk, kept))

        return replace(self, rows=int(mask.sum()), read=read)


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

    part = Part(f"split {name!r}", dict(dataset.features), len(dataset), read)
    return Table(name, (part,) if len(dataset) else ())


def summed(name: str, tables: Iterable[Table]) -> Table:
    """Tables one after the other as one split."""
    return Table(name, tuple(part for table in tables for part in table.parts))


def parquet_table(name: str, files: Sequence[Path]) -> Table:
    """A split of parquet files, of which only used columns are read."""
    from pyarrow import parquet  # type: ignore[import-untyped]

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
