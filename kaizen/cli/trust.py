"""Whether code that a configuration names may run: the user has named it, or a run directory, perhaps a stranger's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kaizen.errors import ConfigError
from kaizen.plugins import KINDS, OF_A_FILE, absolute, is_code, names_in

OPTION = "--trust-code"
RUN_FILES = ("status.json", "environment.json", "results.json", "tasks", "checkpoints")


def of_a_run(recipe: str, tree: Mapping[str, Any]) -> bool:
    """Whether a recipe is the configuration of a run directory, which others may have written, and no recipe file."""
    places = [Path(recipe), Path(recipe).resolve()] if recipe.endswith((".yaml", ".yml")) else []
    beside = any((place.parent / name).exists() for place in places for name in RUN_FILES)
    return beside or any(place.name == "config.yaml" for place in places) or "code" in tree


def check_trust(recipe: str, tree: Mapping[str, Any], overrides: Mapping[str, str], trust_code: bool) -> None:
    """Refuse code of a run directory that the command line does not name itself; before any of it runs.

    Args:
        tree: the configuration with absolute names, before its own parts are loaded.

    Raises:
        ConfigError: names the code and the option that allows it.
    """
    if trust_code or not of_a_run(recipe, tree):
        return
    named = [text for key, text in overrides.items() if key in KINDS or key.startswith("views.")]
    given = {_source(absolute(name.strip("[] "))) for text in named for name in text.split(",")}
    asked = dict.fromkeys(name for _, name in names_in(tree) if is_code(name) and _source(name) not in given)
    if asked:
        problem = f"is needed for {recipe}, which names code: {', '.join(asked)}"
        raise ConfigError(OPTION, f"{problem}; it runs with your rights, so read it first if others wrote it")


def _source(name: str) -> str:
    """The file or the module of a name: whoever names one of its classes has consented to all of it."""
    found = OF_A_FILE.fullmatch(name)
    return found["path"] if found else name.partition(":")[0]
