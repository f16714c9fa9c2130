"""Recipes and presets: those shipped with the package, and the user's own recipe files."""

import difflib
from importlib import resources
from pathlib import Path
from typing import Any

from kaizen.config.schema import read_header
from kaizen.config.yaml import YamlError, parse_yaml
from kaizen.errors import ConfigError


def shipped_recipes() -> dict[str, str]:
    """Text of the shipped recipes by name; the first line of each is a comment that describes it."""
    return _texts("recipes")


def shipped_presets() -> dict[str, str]:
    """Text of the presets by name: baselines for any recipe; the first line of each is a comment that describes it."""
    return _texts("presets")


def description(text: str) -> str:
    """The first line of a recipe or preset, which describes it."""
    return text.splitlines()[0].removeprefix("# ")


def read_recipe(recipe: str) -> tuple[str, dict[str, Any]]:
    """Name and content of a shipped recipe, or of a YAML file.

    Raises:
        ConfigError: the recipe or file does not exist, or is not a YAML mapping.
    """
    shipped = shipped_recipes()
    if recipe in shipped:
        name, text = recipe, shipped[recipe]
    elif recipe.endswith((".yaml", ".yml")) or "/" in recipe:
        try:
            text = Path(recipe).read_text(encoding="utf-8")
            # The config.yaml of a run names the recipe that it came from.
            name = read_header(text)[0] or Path(recipe).stem
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError("RECIPE", f"{recipe!r} cannot be read ({error})") from None
    else:
        near = difflib.get_close_matches(recipe, shipped, n=3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        problem = (
            f"is {recipe!r}; {hint}allowed: a name that `python -m kaizen recipes` lists, or the path of a YAML file"
        )
        raise ConfigError("RECIPE", problem)
    try:
        content = parse_yaml(text)
    except YamlError as error:
        raise ConfigError("RECIPE", f"{recipe!r} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError("RECIPE", f"{recipe!r} has no sections; allowed: sections of keys, as optim: {{lr: 1}}")
    for section, part in content.items():
        is_list = section in ("views", "extensions")
        members = part if is_list and isinstance(part, list) else [part]
        fits = isinstance(part, list) == is_list and all(isinstance(member, dict) for member in members)
        if not fits or not all(isinstance(key, str) for member in members for key in member):
            allowed = "a list of settings, each with keys" if is_list else "keys with values"
            raise ConfigError(str(section), f"is {brief(part)} in {recipe!r}; allowed: {allowed}")
    return name, content


def preset_of(recipe: str) -> str | None:
    """The preset that the config.yaml of a run names, for the record; None for any other recipe."""
    file = Path(recipe)
    is_file = recipe.endswith((".yaml", ".yml")) and file.is_file()
    return read_header(file.read_text(encoding="utf-8"))[1] if is_file else None


def read_preset(preset: str) -> dict[str, dict[str, Any]]:
    """The keys that a preset sets, by section.

    Raises:
        ConfigError: the preset does not exist.
    """
    shipped = shipped_presets()
    if preset not in shipped:
        raise ConfigError("--preset", f"is {preset!r}; allowed: {', '.join(shipped)}")
    content: dict[str, dict[str, Any]] = parse_yaml(shipped[preset])
    return content


def brief(value: Any) -> str:
    """A value as messages show it, shortened if it is long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _texts(folder: str) -> dict[str, str]:
    files = (file for file in (resources.files("kaizen") / folder).iterdir() if file.name.endswith(".yaml"))
    return dict(sorted((file.name.removesuffix(".yaml"), file.read_text(encoding="utf-8")) for file in files))
