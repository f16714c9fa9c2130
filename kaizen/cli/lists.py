"""Lists as users write them: `a,b` and `[a,b]` are the same, and one value is a list of one."""

import types
import typing
from typing import Any

from pydantic import BaseModel

from kaizen.config.yaml import YamlError, parse_yaml


def make_lists(tree: dict[str, Any], kind: type[BaseModel]) -> None:
    """Turn values of list keys into lists, in place.

    Args:
        tree: a configuration before it is checked; values that cannot be turned into lists are left unchanged.
        kind: the class that will check it.
    """
    for name, field in kind.model_fields.items():
        held = tree.get(name)
        members = held if isinstance(held, list) else [held]
        for model in sections(field.annotation):
            for member in members:
                if isinstance(member, dict):
                    member.update(_listed(member, model))


def example(value: Any) -> str:
    """A value in the syntax of the command line: numbers, words, lists with commas."""
    if isinstance(value, list | tuple):
        return ",".join(map(example, value)) if len(value) else "[]"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def is_list(kind: Any) -> bool:
    """Whether a type is a list type, or a union that contains one."""
    if typing.get_origin(kind) is tuple:
        return True
    return _is_several(kind) and any(map(is_list, typing.get_args(kind)))


def sections(kind: Any) -> list[type[BaseModel]]:
    """Section classes that a type contains."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    return [model for part in typing.get_args(kind) for model in sections(part)]


def _listed(section: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    return {
        key: _as_list(section[key], field.annotation)
        for key, field in model.model_fields.items()
        if key in section and is_list(field.annotation)
    }


def _as_list(value: Any, kind: Any) -> Any:
    if value is None or value == "" or isinstance(value, list | dict | bool) or value in _words(kind):
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


def _words(kind: Any) -> tuple[Any, ...]:
    """Words that replace the whole list, such as dataset."""
    parts = typing.get_args(kind) if _is_several(kind) else ()
    return tuple(word for part in parts if typing.get_origin(part) is typing.Literal for word in typing.get_args(part))


def _of_words(kind: Any) -> bool:
    """Whether the members of a list are words (which may look like numbers)."""
    if kind is str or typing.get_origin(kind) is typing.Literal:
        return True
    return any(map(_of_words, typing.get_args(kind)))


def _is_several(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType, typing.Annotated)
