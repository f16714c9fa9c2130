"""The text behind --help: every key with its meaning and default."""

import json
import typing

from pydantic import BaseModel

from kaizen.cli.shipped import description, shipped_presets, shipped_recipes
from kaizen.config.schema import Config
from kaizen.model.methods import REGISTRY, method_class

SIGNS = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
CLOSING = """Ctrl-C, SIGTERM or a file `stop` in the run directory end a run with a checkpoint; start again to go on.
Exit codes: 0 done, 2 configuration or data, 3 training failed, 75 stopped; RUN/status.json tells them under a launcher.
KAIZEN_THREADS in the environment sets the CPU threads of a process (default: its share of the cores)."""


def help_text(usage: str, about: str) -> str:
    """Every key with its meaning and default, by section."""
    lines = [f"usage: {usage}", "", about, "", f"RECIPE is a shipped recipe ({', '.join(shipped_recipes())})"]
    lines += ["or the path of a YAML file; default: digits. Its values stand before the defaults in brackets below;"]
    lines += ["`python -m kaizen show RECIPE ...` prints what a run will use.", ""]
    lines += ["--preset NAME lays a baseline over the recipe, below the keys of the command line:"]
    lines += [f"  {name:15} {description(text)}" for name, text in shipped_presets().items()] + [""]
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
    return "\n".join([*lines, CLOSING])


def _keys(section: str, model: type[BaseModel]) -> list[str]:
    lines = []
    for key, field in model.model_fields.items():
        if key == "name" and section == "method":
            continue
        marks = [(sign, getattr(mark, name, None)) for mark in field.metadata for name, sign in SIGNS]
        limits = [f"{sign} {bound}" for sign, bound in marks if bound is not None]
        choices = _choices(field.annotation)
        allowed = "; ".join(["|".join(choices)] * bool(choices) + limits)
        default = json.dumps(field.get_default(), default=str)
        about = f"{field.description} ({allowed})" if allowed else field.description
        lines.append(f"  {f'--{section}.{key}':30} {about} [{default}]")
    return [*lines, ""]


def _choices(kind: object) -> list[str]:
    """The words that a type allows: those of a Literal, also as members of a tuple or a union."""
    if typing.get_origin(kind) is typing.Literal:
        return [str(word) for word in typing.get_args(kind)]
    return [word for part in typing.get_args(kind) for word in _choices(part)]
