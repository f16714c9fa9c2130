"""Own parts of a configuration: where their names may stand, their keys, and that all of them can be loaded."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import create_model

from kaizen.cli.lists import make_lists
from kaizen.config.encoder import ENCODERS
from kaizen.config.memory import POLICIES
from kaizen.config.schema import READERS, Config
from kaizen.model.methods import REGISTRY, method_class
from kaizen.plugins import OF_A_FILE, absolute, in_run, installed, is_code, names_in, own_class, own_settings

WORDS = {one.key: one.words for one in (READERS, ENCODERS, POLICIES)} | {"method.name": tuple(REGISTRY)}


def place_names(tree: dict[str, Any]) -> None:
    """Give every own part in a tree the absolute path of its file, in place."""
    make_lists(tree, Config)
    _rename(tree, absolute)


def take_copies(tree: dict[str, Any], run: Path, always: bool) -> None:
    """Take the copies that a run keeps of its own parts, in place, where the file is gone; `always`: in any case."""
    code = tree.get("code")
    held: dict[str, Any] = code if isinstance(code, dict) else {}

    def placed(name: str) -> str:
        found = OF_A_FILE.fullmatch(name)
        there = found is None or Path(found["path"]).is_file()
        return name if there and not always else in_run(name, held, run)

    _rename(tree, placed)


def _rename(tree: dict[str, Any], change: Callable[[str], str]) -> None:
    """Change every name that may be that of an own part."""
    for key in {key for key, _ in names_in(tree)}:
        section, _, name = key.partition(".")
        for part in tree[section] if isinstance(tree[section], list) else [tree[section]]:
            if isinstance(held := part.get(name), list):
                part[name] = [change(one) if isinstance(one, str) else one for one in held]
            elif isinstance(held, str):
                part[name] = change(held)


def config_class(tree: dict[str, Any]) -> type[Config]:
    """The class of the configuration with the keys of its method and of its own distiller, encoder and policy.

    Raises:
        ConfigError: one of them cannot be loaded.
    """
    method = tree.setdefault("method", {}).setdefault("name", "simclr")
    settings: Any = method_class(method).Settings
    if method not in REGISTRY:
        # A class that copies one of ours may fix the name to a word of its own.
        settings = create_model(settings.__name__, __base__=settings, name=(str, method))
    generic: Any = Config
    kind: type[Config] = generic[settings]
    fields: dict[str, Any] = {}
    for key in ("encoder.name", "replay.policy", "distill.name"):
        section, name = key.split(".")
        chosen = tree.get(section, {}).get(name)
        if key == "distill.name" and isinstance(chosen, str) and chosen not in ("auto", "none"):
            _distillers().distiller_class(chosen)  # an unknown one is told before the keys that it may have
        if _is_own(key, chosen):
            keys: Any = own_settings(key, chosen)
            fields[section] = (keys, keys())
    return create_model("Config", __base__=kind, **fields) if fields else kind


def load_parts(config: Config) -> None:
    """Load every own part that a configuration names, so that a wrong one is refused before any work.

    Raises:
        ConfigError: one of them cannot be loaded.
    """
    for key, name in names_in(config.model_dump()):
        if _is_own(key, name):
            own_class(key, name)


def _is_own(key: str, name: object) -> bool:
    """Whether a name is none of ours; an unknown word, too, is left to the configuration's own check."""
    words = ("auto", "none", *_distillers().REGISTRY) if key == "distill.name" else WORDS.get(key, ())
    return isinstance(name, str) and name not in words and (is_code(name) or name in installed(key))


def _distillers() -> ModuleType:
    """The module of the distillers, which needs torch; the method has loaded that by then."""
    return import_module("kaizen.model.distillers")
