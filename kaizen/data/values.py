"""Values of a column of any scalar type as numbers in their order: text, numbers, dates and times."""

from collections.abc import Sequence
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import numpy as np

from kaizen.data.tables import Part, Table
from kaizen.errors import ConfigError

KINDS: dict[str, type | tuple[type, ...]] = {
    "text": str,
    "numbers": (bool, int, float, Decimal),
    "times": (datetime, time),
    "dates": date,
}
"""Kinds of values that can be ordered among themselves; a datetime is a date for Python, so times come first."""
READ_ROWS = 1 << 16


def encode_values(tables: Sequence[Table], column: str, key: str) -> tuple[list[np.ndarray], list[str]]:
    """Values of a column as int64 of each split, ascending with the value, and their names; null and NaN count as -1.

    Names that a data set declares keep their order if all files declare the same; text that is all digits is ordered
    by value.

    Raises:
        ConfigError: the values cannot be ordered, as lists or values of several kinds.
    """
    held = [[_values(part, column, key) for part in table.parts] for table in tables]
    every = {value for table in held for values in table for value in values} - {None}
    if len(kinds := sorted(set(map(_kind, every)))) > 1:
        raise ConfigError(key, f"{column!r} has {' and '.join(kinds)}; allowed: values of one kind")
    declared = [_declared(part, column) for table in tables for part in table.parts]
    if declared[0] and all(names == declared[0] for names in declared):
        merged = [name for name in declared[0] if name in every]
    else:
        merged = sorted(every)
        if all(isinstance(value, str) and value.isdecimal() for value in merged):
            merged.sort(key=int)
    index = {value: number for number, value in enumerate(merged)} | {None: -1}
    numbered = [np.array([index[value] for values in table for value in values], dtype=np.int64) for table in held]
    return numbered, [str(value) for value in merged]


def _values(part: Part, column: str, key: str) -> list[Any]:
    """The values of a part: names for numbers that a ClassLabel declares, and None for what is missing."""
    found = [value for chunk in part.read(column, READ_ROWS) for value in chunk]
    if names := _declared(part, column):
        return [None if value is None or value < 0 else names[value] for value in found]
    for row, value in enumerate(found):
        if value is not None and not _kind(value):
            problem = f"{column!r}, {part.where}, row {row}: found a {type(value).__name__}"
            raise ConfigError(key, f"{problem}; allowed: {', '.join(KINDS)}")
    # NaN is the only value that differs from itself.
    return [value if value == value else None for value in found]


def _declared(part: Part, column: str) -> list[str]:
    """The names that a ClassLabel declares, else none."""
    return list(getattr(part.features[column], "names", None) or [])


def _kind(value: Any) -> str:
    return next((kind for kind, types in KINDS.items() if isinstance(value, types)), "")
