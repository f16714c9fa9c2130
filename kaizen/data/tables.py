"""Tables as they are in their files: declarations of different files are compared before a library unifies them.

Nothing heavy is imported at the top, as the configuration check imports this module.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

BATCH_ROWS = 256
"""Rows of encoded images in memory at a time while a table is read."""


@dataclass(frozen=True)
class Part:
    """One file of a split, or a split that is opened as a whole.

    where: its name in messages. features: declared type of each column. read: returns a column's values.
    """

    where: str
    features: dict[str, Any]
    read: Callable[[str], list[Any]]


@dataclass(frozen=True)
class Table:
    """A split: its name, its parts with at least one row each, and a function that opens an image column as Dataset."""

    name: str
    parts: tuple[Part, ...]
    images: Callable[[str], Any]


def whole_table(name: str, dataset: Any) -> Table:
    """A split that a library has opened as one datasets.Dataset."""

    def read(column: str) -> list[Any]:
        return dataset.with_format("arrow").select_columns([column])[:].column(0).to_pylist()

    parts = (Part(f"split {name!r}", dict(dataset.features), read),) if len(dataset) else ()
    return Table(name, parts, partial(_encoded_images, dataset))


def _encoded_images(dataset: Any, column: str) -> Any:
    import datasets

    only = dataset.with_format(None).select_columns([column])
    is_typed = isinstance(only.features[column], datasets.Image)
    return only.cast_column(column, datasets.Image(decode=False)) if is_typed else only


def parquet_table(name: str, files: Sequence[Path], work: Path) -> Table:
    """A split of parquet files, of which only used columns are read; its images are copied into the folder `work`."""
    from pyarrow import parquet  # type: ignore[import-untyped]

    parts, filled = [], []
    for file in files:
        with file.open("rb") as opened:
            found = parquet.ParquetFile(opened)
            schema, rows = found.schema_arrow, found.metadata.num_rows
        if rows:
            where = f"split {name!r}" + (f", {file.name}" if len(files) > 1 else "")
            parts.append(Part(where, declared_features(schema), partial(_read_column, file)))
            filled.append(file)
    return Table(name, tuple(parts), partial(_copied_images, filled, work))


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


def _read_column(file: Path, column: str) -> list[Any]:
    from pyarrow import parquet

    with file.open("rb") as opened:
        return parquet.ParquetFile(opened).read(columns=[column]).column(column).to_pylist()


def _copied_images(files: Sequence[Path], work: Path, column: str) -> Any:
    """A column of encoded images of several files as one Dataset, whatever their types of images are."""
    import datasets
    import pyarrow as pa
    from datasets.arrow_writer import ArrowWriter
    from pyarrow import parquet

    features = datasets.Features({column: datasets.Image(decode=False)})
    # Opened here as streams, because the libraries interpret names with "::" or "*".
    with NamedTemporaryFile(dir=work, delete=False) as sink, ArrowWriter(features=features, stream=sink) as writer:
        for file in files:
            with file.open("rb") as opened:
                for batch in parquet.ParquetFile(opened).iter_batches(BATCH_ROWS, columns=[column]):
                    images = batch.column(column)
                    if pa.types.is_dictionary(images.type):
                        images = images.dictionary_decode()
                    if pa.types.is_large_binary(images.type) or pa.types.is_binary_view(images.type):
                        images = images.cast(pa.binary())
                    writer.write_table(pa.table({column: images}))
        writer.finalize()
    return datasets.Dataset.from_file(sink.name)
