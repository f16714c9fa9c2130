"""The text behind --help: every key with its meaning and default."""

import typing

from pydantic import BaseModel

from kaizen.cli import shipped_recipes
from kaizen.config import Config
from kaizen.methods import REGISTRY, method_class


def help_text(usage: str, about: str) -> str:
    """Every key with its meaning and default, by section."""
    lines = [f"usage: {usage}", "", about, "", f"RECIPE is a shipped recipe ({', '.join(shipped_recipes())})"]
    lines += ["or the path of a YAML file; default: digits. A recipe's values stand before the defaults below.", ""]
    for section, field in Config.model_fields.items():
        if section == "method":
            lines += [f"  --method.name {'|'.join(REGISTRY)}"]
            for name in REGISTRY:
                lines += [f"  method keys of {name}:", *_keys("method", method_class(name).Settings)]
            continue
        model = typing.get_args(field.annotation)[0] if section == "views" else field.annotation
        if section == "views":
            lines += ["  view keys: --views.KEY for all views, --views.0.KEY or --views.1.KEY for one"]
        lines += _keys(section, model)  # type: ignore[arg-type]
    return "\n".join(lines)


def _keys(section: str, model: type[BaseModel]) -> list[str]:
    lines = []
    for key, field in model.model_fields.items():
        if key == "name" and section == "method":
            continue
        default = field.get_default()
        shown = "null" if default is None else str(default).lower() if isinstance(default, bool) else default
        shown = list(shown) if isinstance(shown, tuple) else shown
        choices = typing.get_args(field.annotation) if typing.get_origin(field.annotation) is typing.Literal else ()
        about = field.description or ""
        about += f" ({'|'.join(map(str, choices))})" if choices else ""
        lines.append(f"  {f'--{section}.{key}':30} {about} [{shown}]")
    return [*lines, ""]
