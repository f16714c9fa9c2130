"""Explains a wrong configuration in one line: the key, what was found and what is allowed."""

import difflib
import typing
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from kaizen.cli.lists import example, sections
from kaizen.cli.shipped import brief
from kaizen.config.schema import Config
from kaizen.config.types import AUTO
from kaizen.errors import ConfigError
from kaizen.model.methods import REGISTRY, method_class

WORDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
}
"""Plain names of the types that pydantic reports (integer, array and so on)."""


def explained(error: ValidationError, tree: dict[str, Any], kind: type[BaseModel]) -> ConfigError:
    """The first problem as one line; alternatives of one key are joined by `or`."""
    found: dict[str, list[ErrorDetails]] = {}
    for detail in error.errors():
        found.setdefault(_key_of(detail["loc"], tree), []).append(detail)
    key, details = next(iter(found.items()))
    first, more = details[0], f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    section, _, name = key.rpartition(".")
    if first["type"] == "extra_forbidden":
        return ConfigError(key, f"is not a key; {suggestion(name, section, _siblings(first['loc'], kind))}{more}")
    field = _field(key, kind)
    problems = " or ".join(dict.fromkeys(_problem(detail, field) for detail in details))
    if first["type"] == "value_error":
        return ConfigError(key, problems.removeprefix("Value error, ") + more)
    return ConfigError(key, f"is {brief(first['input'])}; allowed: {problems}{_example(field, key)}{more}")


def similar(word: str, allowed: Iterable[str]) -> str:
    """End of a message: the allowed word that is closest, or all allowed words."""
    close = difflib.get_close_matches(word, list(allowed), n=1)
    return f"; did you mean {close[0]}?" if close else f"; allowed: {', '.join(allowed)}"


def suggestion(word: str, section: str = "", siblings: Sequence[str] = ()) -> str:
    """End of a message: the key that an unknown name may mean, with or without its section."""
    if near := difflib.get_close_matches(word, siblings, n=1):
        return f"did you mean {section}.{near[0]}?"
    keys = _keys_by_name()
    near = [word] if word in keys else difflib.get_close_matches(word, keys, n=1)
    if near:
        return f"did you mean {' or '.join(f'--{key}' for key in keys[near[0]])}?"
    return f"allowed: {', '.join(siblings)}" if siblings else "keys are written --section.key VALUE (see --help)"


def _keys_by_name() -> dict[str, list[str]]:
    """Dotted keys by their part after the section."""
    keys: dict[str, dict[str, None]] = {}
    for section, field in Config.model_fields.items():
        kinds = (
            [method_class(name).Settings for name in REGISTRY] if section == "method" else sections(field.annotation)
        )
        for name in (name for kind in kinds for name in kind.model_fields):
            keys.setdefault(name, {})[f"{section}.{name}"] = None
    return {name: list(found) for name, found in keys.items()}


def _problem(detail: ErrorDetails, field: FieldInfo | None) -> str:
    """The allowed values in plain words."""
    context = detail.get("ctx", {})
    if detail["type"] == "missing" and field is not None:
        return f"{len(typing.get_args(field.annotation))} values"
    if detail["type"] in ("too_short", "too_long"):
        bound = context["min_length"] if detail["type"] == "too_short" else context["max_length"]
        return f"at {'least' if detail['type'] == 'too_short' else 'most'} {bound} value{'s' * (bound > 1)}"
    return WORDS.get(detail["type"]) or detail["msg"].removeprefix("Input should be ")


def _example(field: FieldInfo | None, key: str) -> str:
    """End of a message: an allowed value of the key, its first example or else its default."""
    if field is None:
        return ""
    value = field.examples[0] if field.examples else field.get_default()
    if isinstance(value, tuple) and key.rpartition(".")[2].isdecimal():
        value = value[min(int(key.rpartition(".")[2]), len(value) - 1)] if value else None
    return "" if value is None or value == AUTO else f", as {example(value)}"


def _field(key: str, kind: Any) -> FieldInfo | None:
    """The field of a dotted key; None if the key does not name a single value."""
    section, *path = key.split(".")
    names = [name for name in path if not name.isdecimal()]
    found = kind.model_fields.get(section)
    kinds = sections(found.annotation) if found is not None and names else []
    return kinds[0].model_fields.get(names[0]) if kinds else None


def _key_of(location: Sequence[str | int], tree: Any) -> str:
    """The dotted key of a location, without the names of union members that pydantic adds."""
    parts: list[str] = []
    for part in location:
        in_list = isinstance(tree, list) and isinstance(part, int) and part < len(tree)
        inside = in_list or (isinstance(tree, dict) and part in tree)
        if parts and not inside:
            break
        parts.append(str(part))
        tree = tree[part] if inside else None
    return ".".join(parts)


def _siblings(location: Sequence[str | int], kind: Any) -> list[str]:
    """Keys at the same level as the location in the configuration."""
    model = sections(kind.model_fields[location[0]].annotation)[0] if len(location) > 1 else kind
    return list(model.model_fields)
