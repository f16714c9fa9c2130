"""Finds the columns of images, labels and domains in a data set, and reads their values as checked integers."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from kaizen.data.files import Request
from kaizen.data.rows import Undecoded
from kaizen.data.tables import Part, Table
from kaizen.data.values import encode_values
from kaizen.errors import ConfigError

ROLES = ("train", "test")
LABEL_COLUMNS = ("label", "labels", "fine_label")
MOST_CLASSES = 1_000_000
"""Larger integers without class names are taken for mistakes: a table of names would not fit in memory."""


def read_columns(tables: Sequence[Table], request: Request) -> tuple[dict[str, Undecoded], dict[str, list[str]]]:
    """Splits ready to decode, class_names and domain_names; ConfigError names the column, row and value at fault.

    One table is cut into both splits as data.test_fraction says.
    """
    for role, table in zip(ROLES, tables, strict=False):
        if not table.parts:
            raise ConfigError(f"data.{role}_split", f"is {table.name!r}, which contains no images")
    first = tables[0].parts[0]
    image = request.image_column or _guess(first, "data.image_column", "image", _images(first))
    label = request.label_column or _guess(first, "data.label_column", "label", _labels(first))
    domain_column, task_column = request.domain_column, request.task_column
    given = (request.image_column, request.label_column, domain_column, task_column)
    wanted = {"data.image_column": image, "data.label_column": label, "data.domain_column": domain_column}
    wanted["data.task_column"] = task_column
    for part in (part for table in tables for part in table.parts):
        for key, column in wanted.items():
            if column is not None and column not in part.features:
                found = f"is {column!r}" if column in given else f"is null, which finds {column!r} in {first.where}"
                if column == task_column and column in first.features:
                    found += f", which {part.where} lacks, so that the tasks of its images are unknown"
                raise ConfigError(key, f"{found}; allowed, in {part.where}: {_listed(part)}")
        if not _is_image(part.features[image]):
            problem = f"is {image!r}, which contains no images in {part.where}; found: {_listed(part)}"
            raise ConfigError("data.image_column", problem)
    labels, class_names = _encode(tables, label, "data.label_column", lowest=-1)
    if len(tables) > 1 and labels[1].max() < 0:
        problem = f"is {tables[1].name!r}, where {label!r} contains only -1 or null; allowed: a split with labels"
        raise ConfigError("data.test_split", problem)
    domains: list[Any] = [None] * len(tables)
    domain_names: list[str] = []
    if task_column is not None:
        domains, domain_names = encode_values(tables, task_column, "data.task_column")
    elif domain_column is not None:
        domains, domain_names = _encode(tables, domain_column, "data.domain_column", lowest=0)
    splits = [Undecoded(table.name, table.parts, image, labels[i], domains[i]) for i, table in enumerate(tables)]
    if request.test_fraction is not None:
        splits = _cut(tables[0], splits[0], request.test_fraction)
    return dict(zip(ROLES, splits, strict=True)), {"class_names": class_names, "domain_names": domain_names}


def _cut(table: Table, split: Undecoded, fraction: float) -> list[Undecoded]:
    """A split without the images that are held out, and those; ConfigError if there are none."""
    from kaizen.data.holdout import held_out  # loads torch, which the configuration check does without

    held = held_out(split.labels, fraction)
    if not held.any():
        problem = f"is {fraction:g}, but no class of split {table.name!r} has two images, to hold one of them out"
        raise ConfigError("data.test_fraction", f"{problem}; allowed: a split with labels, or null and a test split")
    return [
        replace(
            split,
            parts=table.only(mask).parts,
            labels=split.labels[mask],
            domains=None if split.domains is None else split.domains[mask],
            rows=np.flatnonzero(mask),
        )
        for mask in (~held, held)
    ]


def sort_names(names: Iterable[str]) -> list[str]:
    """Distinct names in order: by value if all are numbers, otherwise alphabetical."""
    names = set(names)
    return sorted(names, key=lambda name: (int(name), name)) if all(map(str.isdecimal, names)) else sorted(names)


def _listed(part: Part) -> str:
    return ", ".join(f"{name} ({_type_name(feature)})" for name, feature in part.features.items())


def _type_name(feature: Any) -> str:
    return str(getattr(feature, "dtype", None) or type(feature).__name__) if not _is_label(feature) else "ClassLabel"


def _guess(part: Part, key: str, what: str, candidates: list[str]) -> str:
    if len(candidates) == 1:
        return candidates[0]
    found = f"{len(candidates)} columns qualify" if candidates else "no column qualifies"
    raise ConfigError(key, f"name the {what} column with this key: {found}; found: {_listed(part)}")


def _images(part: Part) -> list[str]:
    import datasets

    typed = [name for name, feature in part.features.items() if isinstance(feature, datasets.Image)]
    return typed or [name for name, feature in part.features.items() if _is_image(feature)]


def _labels(part: Part) -> list[str]:
    usual = [name for name in LABEL_COLUMNS if name in part.features]
    return usual[:1] or [name for name, feature in part.features.items() if _is_label(feature)]


def _is_label(feature: Any) -> bool:
    import datasets

    return isinstance(feature, datasets.ClassLabel)


def _is_image(feature: Any) -> bool:
    """Whether a column contains encoded images: an Image feature, a struct with bytes, or plain bytes."""
    import datasets

    if isinstance(feature, dict):
        return "bytes" in feature and "path" in feature
    binary = ("binary", "large_binary", "binary_view")
    return isinstance(feature, datasets.Image) or getattr(feature, "dtype", None) in binary


def _encode(tables: Sequence[Table], column: str, key: str, lowest: int) -> tuple[list[np.ndarray], list[str]]:
    """Values of a column as int64 of each split and their names; null counts as -1.

    Names belong to each part, so a number may mean one name in one file and a different name in the next.
    """
    parts = [part for table in tables for part in table.parts]
    kinds = [_kind(part.features[column]) for part in parts]
    if "names" in kinds:
        kinds = [
            "nothing" if kind == "numbers" and _names_nothing(part, column) else kind
            for kind, part in zip(kinds, parts, strict=True)
        ]
    used = {kind: part for kind, part in zip(kinds, parts, strict=True) if kind != "nothing"}
    for kind, part in used.items():
        if kind not in ("names", "numbers"):
            raise ConfigError(key, f"{column!r} has {kind} in {part.where}; allowed: ClassLabel, integers or strings")
    if len(used) > 1:
        found = " and ".join(f"{kind} in {part.where}" for kind, part in used.items())
        raise ConfigError(key, f"{column!r} has {found}; allowed: names in every file, or numbers in every file")
    read = {"names": _read_names, "numbers": _read_numbers, "nothing": _read_nothing}
    held = [read[kind](part, column, key, lowest) for kind, part in zip(kinds, parts, strict=True)]
    every = [names for _, names in held if names]
    declared = all(_is_label(part.features[column]) for kind, part in zip(kinds, parts, strict=True) if kind in used)
    alike = declared and all(names == every[0] for names in every)
    merged = every[0] if alike and every else sort_names(name for names in every for name in names)
    index = {name: number for number, name in enumerate(merged)}
    # -1 is unchanged.
    numbered = iter([np.array([*(index[name] for name in names), -1])[numbers] for numbers, names in held])
    return [np.concatenate([next(numbered) for _ in table.parts]) for table in tables], merged


def _kind(feature: Any) -> str:
    kind = str(getattr(feature, "dtype", "")).removeprefix("large_")
    if _is_label(feature) or kind.startswith("string"):
        return "names"
    if kind.startswith("null"):
        return "nothing"
    return "numbers" if kind.startswith(("int", "uint", "bool")) else _type_name(feature)


def _names_nothing(part: Part, column: str) -> bool:
    """Whether numbers are all -1 or null, as those of an unlabelled split may be where others have names."""
    return all(value is None or value == -1 for value in _values(part, column))


def _read_nothing(part: Part, column: str, key: str, lowest: int) -> tuple[np.ndarray, list[str]]:
    """-1 for each row, and no names."""
    return _integers([None] * part.rows, f"{column!r}, {part.where}", key, lowest, 0), []


def _read_names(part: Part, column: str, key: str, lowest: int) -> tuple[np.ndarray, list[str]]:
    """A part's values as positions in a list of names, and that list: a ClassLabel's, or the strings that occur."""
    values, feature = _values(part, column), part.features[column]
    if _is_label(feature):
        names = list(feature.names)
    else:
        names = sorted({value for value in values if value is not None})
        index = {name: number for number, name in enumerate(names)}
        values = [None if value is None else index[value] for value in values]
    return _integers(values, f"{column!r}, {part.where}", key, lowest, len(names) - 1), names


def _read_numbers(part: Part, column: str, key: str, lowest: int) -> tuple[np.ndarray, list[str]]:
    """The same for numbers without names: only numbers that occur become classes, so that no class lacks images."""
    numbers = _integers(_values(part, column), f"{column!r}, {part.where}", key, lowest, MOST_CLASSES - 1)
    present = np.unique(numbers[numbers >= 0])
    positions = np.where(numbers < 0, -1, np.searchsorted(present, numbers))
    return positions, [str(number) for number in present]


def _values(part: Part, column: str) -> list[Any]:
    return [value for chunk in part.read(column, 1 << 16) for value in chunk]


def _integers(values: Sequence[int | None], where: str, key: str, lowest: int, highest: int) -> np.ndarray:
    numbers = [-1 if value is None else int(value) for value in values]
    for row, number in enumerate(numbers):
        if not lowest <= number <= highest:
            raise ConfigError(key, f"{where}, row {row}: found {number}; allowed: {lowest} to {highest}")
    return np.array(numbers, dtype=np.int64)
