"""Which columns of a data set hold images, labels and domains, and their values as checked integers."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kaizen.data.images import Undecoded
from kaizen.errors import ConfigError

LABEL_COLUMNS = ("label", "labels", "fine_label")
MOST_CLASSES = 1_000_000
"""An integer without class names that is larger is taken for a mistake: a table of names would not fit."""
Pair = tuple[Any, Any]
"""Training and test split, each a datasets.Dataset."""


def read_columns(
    pair: Pair,
    split_names: tuple[str, str],
    image_column: str | None,
    label_column: str | None,
    domain_column: str | None,
) -> tuple[dict[str, Undecoded], list[str], list[str]]:
    """Splits ready to decode, class names and domain names; ConfigError names the column, row and value at fault."""
    image = image_column or _guess(pair[0], "data.image_column", "image", _images(pair[0]))
    label = label_column or _guess(pair[0], "data.label_column", "label", _labels(pair[0]))
    wanted = {"data.image_column": image, "data.label_column": label, "data.domain_column": domain_column}
    for name, part in zip(split_names, pair, strict=True):
        for key, column in wanted.items():
            if column is not None and column not in part.column_names:
                raise ConfigError(key, f"is {column!r}; allowed, in split {name!r}: {_listed(part)}")
        if not _is_image(part.features[image]):
            raise ConfigError("data.image_column", f"is {image!r}, which holds no images; found: {_listed(part)}")
    labels, class_names = _encode(pair, split_names, label, "data.label_column", lowest=-1)
    domains: tuple[Any, Any] = (None, None)
    domain_names: list[str] = []
    if domain_column is not None:
        domains, domain_names = _encode(pair, split_names, domain_column, "data.domain_column", lowest=0)
    splits = {
        role: Undecoded(name, _encoded_images(part, image), image, labels[i], domains[i])
        for i, (role, name, part) in enumerate(zip(("train", "test"), split_names, pair, strict=True))
    }
    return splits, class_names, domain_names


def _listed(part: Any) -> str:
    return ", ".join(f"{name} ({_type_name(feature)})" for name, feature in part.features.items())


def _type_name(feature: Any) -> str:
    return str(getattr(feature, "dtype", None) or type(feature).__name__) if not _is_label(feature) else "ClassLabel"


def _guess(part: Any, key: str, what: str, candidates: list[str]) -> str:
    if len(candidates) == 1:
        return candidates[0]
    found = f"{len(candidates)} columns could be it" if candidates else "no column is known to be it"
    raise ConfigError(key, f"name the {what} column with this key: {found}; found: {_listed(part)}")


def _images(part: Any) -> list[str]:
    import datasets

    typed = [name for name, feature in part.features.items() if isinstance(feature, datasets.Image)]
    return typed or [name for name, feature in part.features.items() if _is_image(feature)]


def _labels(part: Any) -> list[str]:
    usual = [name for name in LABEL_COLUMNS if name in part.features]
    return usual[:1] or [name for name, feature in part.features.items() if _is_label(feature)]


def _is_label(feature: Any) -> bool:
    import datasets

    return isinstance(feature, datasets.ClassLabel)


def _is_image(feature: Any) -> bool:
    """Whether a column holds encoded images: an Image feature, a struct with bytes, or plain bytes."""
    import datasets

    if isinstance(feature, dict):
        return "bytes" in feature and "path" in feature
    return isinstance(feature, datasets.Image) or getattr(feature, "dtype", None) in ("binary", "large_binary")


def _encoded_images(part: Any, column: str) -> Any:
    import datasets

    only = part.with_format(None).select_columns([column])
    is_typed = isinstance(only.features[column], datasets.Image)
    return only.cast_column(column, datasets.Image(decode=False)) if is_typed else only


def _encode(
    pair: Pair, split_names: tuple[str, str], column: str, key: str, lowest: int
) -> tuple[tuple[np.ndarray, np.ndarray], list[str]]:
    """Values of a column as int64 of both splits and the names they stand for; null counts as -1."""
    features = [part.features[column] for part in pair]
    values = [part.with_format("arrow").select_columns([column])[:].column(0).to_pylist() for part in pair]
    names: list[str] | None = None
    if any(_is_label(feature) for feature in features):
        listed = [getattr(feature, "names", None) for feature in features]
        if listed[0] != listed[1]:
            raise ConfigError(key, f"{column!r} has other class names in split {split_names[1]!r} than in the other")
        names = list(listed[0] or ())
    elif all(_holds(feature, "string") for feature in features):
        names = sorted({value for part in values for value in part if value is not None})
        index = {name: i for i, name in enumerate(names)}
        values = [[None if value is None else index[value] for value in part] for part in values]
    elif not all(_holds(feature, "int", "uint", "bool") for feature in features):
        kinds = " and ".join(sorted({_type_name(feature) for feature in features}))
        raise ConfigError(key, f"{column!r} holds {kinds}; allowed: ClassLabel, integers or strings")
    highest = (MOST_CLASSES if names is None else len(names)) - 1
    train, test = (
        _integers(part, f"{column!r}, split {name!r}", key, lowest, highest)
        for part, name in zip(values, split_names, strict=True)
    )
    if names is None:
        # Numbers without names: those that occur are the classes, so that a gap makes no class without an image.
        present = np.unique(np.concatenate([train, test]))
        present = present[present >= 0]
        names = [str(number) for number in present]
        train, test = (np.where(part < 0, -1, np.searchsorted(present, part)) for part in (train, test))
    if not names or max(train.max(), test.max()) < 0:
        raise ConfigError(key, f"{column!r} holds no value but -1; allowed: at least one known label")
    return (train, test), names


def _holds(feature: Any, *kinds: str) -> bool:
    return str(getattr(feature, "dtype", "")).removeprefix("large_").startswith(kinds)


def _integers(values: Sequence[int | None], where: str, key: str, lowest: int, highest: int) -> np.ndarray:
    numbers = [-1 if value is None else int(value) for value in values]
    for row, number in enumerate(numbers):
        if not lowest <= number <= highest:
            raise ConfigError(key, f"{where}, row {row}: found {number}; allowed: {lowest} to {highest}")
    return np.array(numbers, dtype=np.int64)
