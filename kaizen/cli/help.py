"""The text of --help: every key with its meaning and default."""

import textwrap
import typing

from pydantic.fields import FieldInfo

from kaizen.cli.lists import alternatives, example, sections
from kaizen.cli.shipped import description, shipped_presets
from kaizen.config.schema import Config, MethodSettings
from kaizen.config.types import OneOf
from kaizen.model.methods import REGISTRY, method_class

SIGNS = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
WIDTH, INDENT = 118, 33
OPENING = """examples:
  python train.py                                            the default recipe, digits
  python train.py digits --optim.epochs 5 --eval.readers classifier,knn
  python train.py my.yaml --data.source parquet:DIR          your own recipe file
  accelerate launch -q --config_file accelerate_configs/multi_gpu.yaml --num_processes 4 train.py cifar100-simclr

RECIPE is the name of a shipped recipe (`python -m kaizen recipes` lists them) or the path of a YAML file; by default it
is digits. The recipe's values replace the defaults, which are shown in brackets below; `python -m kaizen show RECIPE`
prints the values that a run will use. Lists are written a,b; null means none.

Methods, distillers, readers, encoders, replay policies and view operations may be your own: where FILE.py:NAME is
allowed below, name a class in a file (my/method.py:MyMethod), in a module (package.module:MyMethod), or an installed
plug-in. The configuration of a run directory that names such code is only used with --trust-code."""
CLOSING = """Ctrl-C, SIGTERM or a file `stop` in the run directory end a run with a checkpoint; the same command resumes
it. Exit codes: 0 done, 2 configuration or data, 3 training failed, 75 stopped. Launchers return different codes, so
scripts should read RUN/status.json. The environment variable KAIZEN_THREADS sets the CPU threads per process (default:
its share of the cores)."""


def help_text(usage: str, about: str) -> str:
    """Every key with its meaning and default, by section."""
    lines = [f"usage: {usage}", "", about, "", OPENING, ""]
    lines += [
        "--preset NAME replaces keys of the recipe by those of a baseline or of Kaizen, below keys of the command line:"
    ]
    lines += [_entry(name, description(text)) for name, text in shipped_presets().items()] + [""]
    for section, field in Config.model_fields.items():
        if section == "extensions":
            continue
        if section == "method":
            lines += _method_lines()
            continue
        if section == "views":
            lines += ["  --views.KEY sets all views, --views.0.KEY and --views.1.KEY one view:"]
        keys = sections(field.annotation)[0].model_fields
        lines += [*(_line(section, key, held) for key, held in keys.items()), ""]
    return "\n".join([*lines, CLOSING])


def _method_lines() -> list[str]:
    """Keys that all methods share, then the keys that each method adds or whose default it changes."""
    common = {name: field for name, field in MethodSettings.model_fields.items() if name != "name"}
    lines = [_entry("--method.name", f"SSL method ({' | '.join([*REGISTRY, 'FILE.py:NAME'])}) [simclr]")]
    lines += [_line("method", name, field) for name, field in common.items()]
    for method in REGISTRY:
        fields = method_class(method).Settings.model_fields
        own = {
            name: field
            for name, field in fields.items()
            if name != "name" and (name not in common or field.get_default() != common[name].get_default())
        }
        lines += ([f"  {method}:"] if own else []) + [_line("method", name, field) for name, field in own.items()]
    return [*lines, ""]


def _line(section: str, key: str, field: FieldInfo) -> str:
    marks = [(sign, getattr(mark, name, None)) for mark in field.metadata for name, sign in SIGNS]
    limits = [f"{sign} {bound}" for sign, bound in marks if bound is not None and bound < 2**31]
    takes_numbers = any(part in (int, float) for part in alternatives(field.annotation))
    choices = ["NUMBER"] * takes_numbers + _choices(field.annotation)
    choices += [word for mark in field.metadata for word in _choices(mark)]
    allowed = "; ".join([" | ".join(choices)] * (choices not in ([], ["NUMBER"])) + limits)
    default = "null" if (value := field.get_default()) is None else example(value)
    about = f"{field.description} ({allowed})" if allowed else f"{field.description}"
    return _entry(f"--{section}.{key}", f"{about} [{default}]")


def _entry(name: str, about: str) -> str:
    """A name and its description, in lines that fit a terminal."""
    first = f"  {name}".ljust(INDENT - 1) + " "
    return textwrap.fill(about, WIDTH, initial_indent=first, subsequent_indent=" " * INDENT, break_on_hyphens=False)


def _choices(kind: object) -> list[str]:
    """The words that a type allows: those of a Literal or of OneOf, also as members of a tuple or a union."""
    if isinstance(kind, OneOf):
        return [*kind.words, "FILE.py:NAME"]
    if typing.get_origin(kind) is typing.Literal:
        return [str(word) for word in typing.get_args(kind)]
    return [word for part in typing.get_args(kind) for word in _choices(part)]
