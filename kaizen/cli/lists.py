"""Lists as users write them: `a,b` and `[a,b]` are the same, and one value is a list of one."""

import types
import typing
from typing import Any

from pydantic import BaseModel

from kaizen.config.yaml import YamlError, parse_yaml


def make_lists(tree: dict[str, Any], kind: type[BaseModel]) -> None:
    """Turn values of list keys into lists, in place; values that cannot be turned into lists are left unchanged."""
    for name, field in kind.model_fields.items():
        held = tree.get(name)
        members = [member for member in (held if isinstance(held, list) else [held]) if isinstance(member, dict)]
        for model in sections(field.annotation):
            for member in members:
                for key in member.keys() & model.model_fields.keys():
                    member[key] = _as_list(member[key], model.model_fields[key].annotation)


def example(value: Any) -> str:
    """A value in the syntax of the command line: numbers, words, lists with commas."""
    if isinstance(value, list | tuple):
        return ",".join(map(example, value)) if len(value) else "[]"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def alternatives(kind: Any) -> list[Any]:
    """The types that a type allows: the members of a union, without their limits."""
    if typing.get_origin(kind) is typing.Annotated:
        return alternatives(typing.get_args(kind)[0])
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return [found for part in typing.get_args(kind) for found in alternatives(part)]
    return [kind]


def sections(kind: Any) -> list[type[BaseModel]]:
    """Section classes that a type contains."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    return [model for part in typing.get_args(kind) for model in sections(part)]


def _as_list(value: Any, kind: Any) -> Any:
    origins = {typing.get_origin(part): part for part in alternatives(kind)}
    # Words that replace the whole list, such as dataset.
    words = typing.get_args(origins.get(typing.Literal))
    if tuple not in origins or value in (None, "", *words) or isinstance(value, list | dict | bool):
        return value
    if not isinstance(value, str):
        return [value]
    try:
        if value.lstrip().startswith("["):
            return parse_yaml(value)
        parts = [part.strip() for part in value.split(",")]
        return parts if _of_words(kind) else [parse_yaml(part) if part else part for part in parts]
    except YamlError:
        return value


def _of_words(kind: Any) -> bool:
    """Whether the members of a list are words (which may look like numbers)."""
    if kind is str or typing.get_origin(kind) is typing.Literal:
        return True
    return any(map(_of_words, typing.get_args(kind)))
