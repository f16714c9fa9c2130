"""Strict YAML: YAML 1.2 scalars, no tags, no duplicate keys; written values are read back unchanged."""

import re
from typing import Any

import yaml


class YamlError(ValueError):
    """A text is not valid YAML of this kind; the message is one line."""


class _Loader(yaml.SafeLoader):
    """1e-5 is a number, 010 is ten, `off` and dates are strings."""


class _Dumper(yaml.SafeDumper):
    """Quotes strings that the loader would read as a different type."""


_Loader.yaml_implicit_resolvers = {}
_Dumper.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|false|True|False", "tfTF"),
    ("null", r"null|~|", "n~\0"),
    ("int", r"[-+]?\d+", "-+0123456789"),
    ("float", r"[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?", "-+.0123456789"),
):
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$", re.ASCII), [*_first, ""]
        )


def _construct_mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [str(loader.construct_object(key)) for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:
            raise YamlError(f"key {key!r} occurs twice")
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))
_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)


def parse_yaml(text: str) -> Any:
    """YAML text as plain Python values.

    Raises:
        YamlError: it is not YAML, or contains a tag, a duplicate key or a reference to itself.
    """
    try:
        for event in yaml.parse(text, Loader=_Loader):
            if (tag := getattr(event, "tag", None)) is not None:
                raise YamlError(f"tags such as {tag} are not allowed")
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise YamlError(" ".join(str(error).split())) from None


def dump_yaml(tree: Any) -> str:
    """YAML text of plain Python values, in the given order."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, default_flow_style=None)
