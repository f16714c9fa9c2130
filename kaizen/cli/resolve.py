"""Resolves a recipe, a preset and dotted overrides to one checked configuration.

Heavy imports wait until the method is known, so that a wrong key is reported at once, without loading torch.
"""

import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError, to_json

from kaizen.cli.checks import check_pairs
from kaizen.cli.explain import explained, similar, suggestion
from kaizen.cli.lists import alternatives, make_lists
from kaizen.cli.own import config_class, load_parts, place_names, take_copies
from kaizen.cli.shipped import read_preset, read_recipe
from kaizen.cli.trust import OPTION, check_trust
from kaizen.config.memory import BUDGETS
from kaizen.config.schema import Config, settled
from kaizen.config.types import AUTO
from kaizen.config.yaml import YamlError, parse_yaml
from kaizen.data.known import KNOWN_SOURCES
from kaizen.errors import ConfigError
from kaizen.model.methods import method_class
from kaizen.model.networks.fit import family, fit_encoder
from kaizen.plugins import absolute, is_code, short

EXCLUSIVE = {"replay": BUDGETS, "stream": ("classes", "sizes"), "optim": ("epochs", "images")}
"""Keys of a section of which one replaces the others: on the command line, those of the recipe."""


class Arguments(NamedTuple):
    """The parsed command line; values of overrides are still text."""

    recipe: str
    overrides: dict[str, str]
    preset: str | None = None
    trust_code: bool = False


def parse_arguments(tokens: Sequence[str]) -> Arguments:
    """Recipe, preset and overrides from `[RECIPE] [--preset NAME] [--trust-code] [--section.key VALUE ...]`.

    Raises:
        ConfigError: a key without a value or without a section, or more than one recipe.
    """
    recipes: list[str] = []
    overrides: dict[str, str] = {}
    preset: str | None = None
    rest = [token for token in tokens if token != OPTION]
    while rest:
        token = rest.pop(0)
        if not token.startswith("-"):
            recipes.append(token)
            continue
        key, given, value = token.removeprefix("--").partition("=")
        is_preset = key == "preset" and token.startswith("--")
        if not is_preset and ("." not in key or key.startswith("-")):
            raise ConfigError(token, f"is not a key; {suggestion(key)}")
        if not given:
            if not rest or rest[0].startswith("--"):
                form = "--preset NAME" if is_preset else "--section.key VALUE"
                raise ConfigError("--preset" if is_preset else key, f"needs a value: {form}")
            value = rest.pop(0)
        if is_preset:
            preset = value
        else:
            overrides[key] = value
    if len(recipes) > 1:
        raise ConfigError("RECIPE", f"are {recipes}; only one is allowed, and keys are written --section.key VALUE")
    return Arguments(recipes[0] if recipes else "digits", overrides, preset, OPTION in tokens)


def resolve(
    recipe: str,
    overrides: dict[str, str],
    preset: str | None = None,
    trust_code: bool = False,
    *,
    as_trained: bool = False,
) -> tuple[str, Config]:
    """Name of the recipe and the whole checked configuration: the recipe, then the preset, then the overrides.

    Args:
        trust_code: whether code that a run directory names may run without being named in the overrides.
        as_trained: whether this code is that which the run was trained with, even if the user's file is newer.

    Raises:
        ConfigError: names the key, what was found and what is allowed.
    """
    name, tree = read_recipe(recipe)
    if trust_code:
        take_copies(tree, Path(recipe).parent, as_trained)
    meant, changes = _distiller(tree), _preset(preset)
    _drop(tree, overrides, changes)
    for section, keys in changes.items():
        tree.setdefault(section, {}).update(keys)
    override(tree, overrides)
    shorten_warmup(tree, overrides)
    if meant != _distiller(tree):
        # The recipe's strengths belong to its distiller; a different distiller uses its defaults unless they are given.
        for key in ("weight", "temperature", "negative_weight"):
            if f"distill.{key}" not in overrides:
                tree.get("distill", {}).pop(key, None)
    place_names(tree)
    check_trust(recipe, tree, overrides, trust_code)
    tree.pop("code", None)
    kind = config_class(tree)
    make_lists(tree, kind)
    derive_tasks(tree.get("stream", {}))
    try:
        config: Config = kind.model_validate_json(to_json(tree))
    except PydanticSerializationError as error:
        raise ConfigError("RECIPE", f"{recipe!r} cannot be read: {error}") from None
    except ValidationError as error:
        raise explained(error, tree, kind) from None
    from kaizen.model.distillers import resolve_distiller  # torch is already loaded: the method's class needs it

    known = KNOWN_SOURCES.get(config.data.source)
    config = config.model_copy(update={"distill": resolve_distiller(config)})
    config = fit_encoder(config, known.image_size if known else None)
    load_parts(config)
    check_pairs(config)
    method = config.method.name
    if len(config.views) > (most := method_class(method).most_views):
        raise ConfigError("views", f"are {len(config.views)}; allowed with {method}: {most}")
    if known and config.stream.kind == "class" and config.stream.sizes and sum(config.stream.sizes) > known.classes:
        problem = f"is {list(config.stream.sizes)}, {sum(config.stream.sizes)} classes in all"
        raise ConfigError("stream.sizes", f"{problem}; allowed: at most the {known.classes} of {config.data.source}")
    if known and config.stream.kind == "class" and not config.stream.classes and config.stream.tasks > known.classes:
        raise ConfigError(
            "stream.tasks",
            f"is {config.stream.tasks}; allowed: 1 to {known.classes}, the classes of {config.data.source}",
        )
    return name, config


def resolve_run(run: Path, overrides: dict[str, str], *, trust_code: bool = False) -> tuple[str, Config]:
    """Name and configuration of a run directory, whose code, as it was in training, runs only if it is trusted.

    Raises:
        ConfigError: it contains no run, its configuration cannot be used, or it names code that may not run.
    """
    file = run / "config.yaml"
    if not file.is_file():
        raise ConfigError("RUN", f"is '{run}', which contains no run (no config.yaml); allowed: a run directory")
    name, config = resolve(str(file), overrides, trust_code=trust_code, as_trained=True)
    return name, settled(config, parse_yaml(file.read_text(encoding="utf-8")))


def _distiller(tree: dict[str, Any]) -> object:
    """Name of the distiller of a tree: its method's where the key is auto or missing; runs no code of the user's."""
    name, method = tree.get("distill", {}).get("name", "auto"), tree.get("method", {}).get("name", "simclr")
    if name == "auto":
        # Code of the user's own is not run yet, as it may not be what the configuration names in the end.
        return f"that of {method}" if is_code(method) else method_class(method).distiller
    return name


def _preset(preset: str | None) -> dict[str, dict[str, Any]]:
    """The keys that the preset sets, by section; without a preset none."""
    return read_preset(preset) if preset is not None else {}


def _chosen(section: str, found: object, overrides: dict[str, str], changes: dict[str, dict[str, Any]]) -> object:
    """The name that a section has in the end: of the overrides, else of the preset's changes, else the recipe's."""
    return overrides.get(f"{section}.name", changes.get(section, {}).get("name", found))


def _drop(
    tree: dict[str, Any], overrides: dict[str, str], changes: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Drop the recipe's keys that no longer apply after preset and overrides, in place; returns them by section.

    Keys of the method apply to the recipe's method alone, keys of the encoder to one kind of encoder, and the padding
    of a stem to the CIFAR stem.
    """
    dropped = {}
    method, encoder = tree.get("method", {}).get("name", "simclr"), tree.get("encoder", {}).get("name")
    # The same file at another place is still the recipe's method.
    if short(absolute(str(_chosen("method", method, overrides, changes)))) != short(absolute(str(method))):
        dropped["method"] = tree.pop("method", {})
    if family(str(_chosen("encoder", encoder, overrides, changes))) != family(str(encoder)):
        dropped["encoder"] = tree.pop("encoder", {})
    elif overrides.get("encoder.stem") == "imagenet" and "stem_padding" in tree.get("encoder", {}):
        dropped["encoder"] = {"stem_padding": tree["encoder"].pop("stem_padding")}
    return dropped


def left_out(recipe: str, overrides: dict[str, str], preset: str | None = None, trust_code: bool = False) -> list[str]:
    """One line per section whose recipe keys are left out, as preset or overrides choose another method or encoder."""
    lines, changes = [], _preset(preset)
    for section, keys in _drop(read_recipe(recipe)[1], overrides, changes).items():
        others = [f"{key} {value}" for key, value in keys.items() if key != "name"]
        if others:
            stem = list(keys) == ["stem_padding"]
            new = "stem imagenet" if stem else _chosen(section, None, overrides, changes)
            text = ", ".join(others)
            lines.append(f"{'left out':19} {section} keys of the recipe, which do not apply to {new}: {text}")
    return lines


def derive_tasks(stream: dict[str, Any]) -> None:
    """Set the number of tasks, in place, where the kind of the stream determines it."""
    if stream.get("kind") == "joint":
        stream["tasks"] = 1
    elif stream.get("kind") == "domain":
        # Without names the data determine the number, and the recipe's is ignored.
        stream.pop("tasks", None)
        if isinstance(named := stream.get("domains"), list) and named:
            stream["tasks"] = len(named)
    elif stream.get("kind") == "column":
        stream.pop("tasks", None)
    else:
        for key in EXCLUSIVE["stream"]:
            if isinstance(listed := stream.get(key), list) and listed:
                stream["tasks"] = len(listed)


def default_directory(recipe: str, preset: str | None, seed: int) -> str:
    """Run directory if run.dir is null: runs/RECIPE[-PRESET]-seedN."""
    return f"runs/{'-'.join([recipe, *([preset] if preset else []), f'seed{seed}'])}"


def shorten_warmup(tree: dict[str, Any], overrides: dict[str, str]) -> None:
    """Leave the warm-up open, in place, if it belongs to more epochs than the overrides ask for."""
    optim = tree.get("optim", {})
    epochs, warmup = optim.get("epochs"), optim.get("warmup_epochs")
    if "optim.warmup_epochs" in overrides or "optim.epochs" not in overrides:
        return
    if type(epochs) is int and type(warmup) is int and warmup >= epochs:
        optim["warmup_epochs"] = AUTO


def override(tree: dict[str, Any], overrides: dict[str, str]) -> None:
    """Apply overrides to a recipe, in place."""
    for section, keys in EXCLUSIVE.items():
        given = [key for key in keys if overrides.get(f"{section}.{key}", "null") != "null"]
        for key in keys if given else ():
            tree.get(section, {}).pop(key, None)
        if section == "optim" and len(given) > 1:
            # Checked here, as a resolved configuration has a number of epochs in any case.
            raise ConfigError("optim.images", "is given with optim.epochs; allowed: one of the two")
    for dotted, text in overrides.items():
        section, *path = dotted.split(".")
        if section not in Config.model_fields or section == "extensions":
            raise ConfigError(dotted, f"is not a key: no section {section!r}{similar(section, Config.model_fields)}")
        value = _parsed(dotted, text)
        if section == "views":
            _override_views(tree, path, value)
            continue
        if len(path) != 1:
            raise ConfigError(dotted, "is not a key; keys are section.key")
        tree.setdefault(section, {})[path[0]] = value


def _override_views(tree: dict[str, Any], path: list[str], value: Any) -> None:
    views = tree.setdefault("views", [{}, {}])
    numbers = range(len(views)) if len(path) == 1 else [int(path[0])] if path[0].isdecimal() else []
    if not numbers or max(numbers) >= len(views) or len(path) > 2:
        key = ".".join(["views", *path])
        raise ConfigError(
            key, f"is not a key; allowed: views.KEY (all views) or views.0.KEY to views.{len(views) - 1}.KEY"
        )
    for number in numbers:
        views[number] = {**views[number], path[-1]: value}


def _parsed(dotted: str, text: str) -> Any:
    """The value of an override: text if the key takes text, otherwise a YAML value."""
    section, _, key = dotted.partition(".")
    model = Config.model_fields[section].annotation
    if isinstance(model, type) and issubclass(model, BaseModel) and key in model.model_fields:
        annotation = model.model_fields[key].annotation
        if _holds_text(annotation):
            return None if text == "null" and annotation is not str else text
    try:
        # An empty value is text and not null, which is rarely meant.
        return parse_yaml(text) if text else text
    except YamlError as error:
        raise ConfigError(dotted, f"is {text!r}, which cannot be read: {error}") from None


def _holds_text(kind: Any) -> bool:
    """Whether values of a type are any text, or lists of it: str, Annotated[str, ...], or a union with one of them."""
    lists = (typing.get_args(part) for part in alternatives(kind) if typing.get_origin(part) is tuple)
    return str in alternatives(kind) or any(_holds_text(members[0]) for members in lists)
