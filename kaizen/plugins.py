"""Parts that users bring: methods, distillers, readers, encoders, replay policies and view operations of their own.

A part is named `path/to/file.py:Name`, `package.module:Name`, or by the entry point of an installed plug-in. Whoever
calls `own_class` runs its code, so `kaizen.cli.trust` asks first whether the user has named it. Every folder may import
this module; it imports only kaizen.errors.
"""

import difflib
import hashlib
import inspect
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel

from kaizen.errors import ConfigError

HOW = "path/to/file.py:Name, package.module:Name"
OF_A_FILE = re.compile(r"(?P<path>.+\.py):(?P<name>\w+)", re.DOTALL)
FOREIGN = ("timm:",)
"""Beginnings of names with a colon that are not names of own parts."""


@dataclass(frozen=True)
class Kind:
    """A kind of part: its base class and that of its settings (empty: none) by module and name, and its group of
    entry points."""

    base: str
    group: str
    settings: str = ""


# Base classes by name, as they lie in folders above this module.
KINDS = {
    "method.name": Kind("kaizen.model.methods.base:Method", "kaizen.methods", "kaizen.config.schema:MethodSettings"),
    "distill.name": Kind(
        "kaizen.model.distillers:Distiller", "kaizen.distillers", "kaizen.config.schema:DistillConfig"
    ),
    "eval.readers": Kind("kaizen.evaluation.readers.base:Reader", "kaizen.readers"),
    "encoder.name": Kind(
        "kaizen.model.networks.base:Encoder", "kaizen.encoders", "kaizen.config.encoder:EncoderConfig"
    ),
    "replay.policy": Kind(
        "kaizen.data.policies:ReplayPolicy", "kaizen.replay_policies", "kaizen.config.memory:ReplayConfig"
    ),
    "views.extra": Kind("kaizen.data.operations:ViewOperation", "kaizen.view_operations"),
}
"""By the key that names the part."""
_loaded: dict[str, str] = {}
"""SHA-256 of the file of each own part that was loaded, by its name."""
_modules: dict[Path, tuple[ModuleType, bytes]] = {}
"""Each file that was run, and exactly the text that was run."""


def is_code(name: object) -> bool:
    """Whether a name is that of a class in a file or module."""
    return isinstance(name, str) and ":" in name and not name.startswith(FOREIGN)


def installed(key: str) -> dict[str, EntryPoint]:
    """Installed plug-ins by name that fit a key of KINDS."""
    return {found.name: found for found in entry_points(group=KINDS[key].group)}


def unknown(key: str, name: object, words: Iterable[str]) -> str:
    """What is wrong with a name that is neither one of ours nor that of an own part."""
    if str(name).endswith(".py"):
        return f"is {name!r}; allowed: a class in that file, as {name}:Name"
    known = [*words, *installed(key)]
    close = difflib.get_close_matches(str(name), known, n=1)
    meant = f"did you mean {close[0]}? " if close else ""
    return f"is {name!r}; {meant}allowed: {', '.join([*known, HOW])}"


def absolute(name: str) -> str:
    """The name with the absolute path of its file, so that it holds in every working directory."""
    found = OF_A_FILE.fullmatch(name)
    return f"{Path(found['path']).expanduser().absolute()}:{found['name']}" if found else name


def short(name: Any) -> Any:
    """The name without the directory of its file, wherever the file lies; every other value unchanged."""
    if isinstance(name, list):
        return [short(member) for member in name]
    found = OF_A_FILE.fullmatch(name) if isinstance(name, str) and name.startswith("/") else None
    return f"{Path(found['path']).name}:{found['name']}" if found else name


def names_in(tree: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every name in a configuration's tree that may be that of an own part, with its key of KINDS."""
    for key in KINDS:
        section, _, name = key.partition(".")
        held = tree.get(section)
        for part in held if isinstance(held, list | tuple) else [held]:
            value = part.get(name) if isinstance(part, Mapping) else None
            for member in value if isinstance(value, list | tuple) else [value]:
                if isinstance(member, str):
                    yield key, member


def code_of(tree: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of the file of each own part in a resolved configuration's tree, by name; empty without own parts."""
    return {name: _loaded[name] for _, name in names_in(tree) if name in _loaded}


def changed_code(tree: Mapping[str, Any], held: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Own parts whose file is not that of a section `code`, by name: its SHA-256 there, and now.

    Args:
        tree: of a resolved configuration.
        held: the section, in which files may have other places.
    """
    before = {short(name): str(digest) for name, digest in held.items()}
    now = code_of(tree)
    return {name: (before[short(name)], now[name]) for name in now if before.get(short(name), now[name]) != now[name]}


def copies_of(tree: Mapping[str, Any]) -> dict[str, bytes]:
    """The text of each file of own parts in a resolved configuration's tree, by its path below RUN/code."""
    found = [(OF_A_FILE.fullmatch(name), digest) for name, digest in code_of(tree).items()]
    paths = {Path(match["path"]): digest for match, digest in found if match}
    return {f"{digest[:12]}/{path.name}": _modules[path][1] for path, digest in paths.items()}


def in_run(name: str, code: Mapping[str, Any], run: Path) -> str:
    """The name with the run's own copy of the file, as its section `code` records it; without one unchanged."""
    found, digest = OF_A_FILE.fullmatch(name), code.get(name)
    copy = run / "code" / str(digest)[:12] / Path(found["path"]).name if found else None
    if found is None or copy is None or not copy.is_file():
        return name
    return f"{copy.absolute()}:{found['name']}" if _sha256(copy) == digest else name


@cache
def own_class(key: str, name: str) -> type:
    """The class of an own part, checked; this runs its code.

    Args:
        key: one of KINDS.
        name: as the configuration holds it.

    Raises:
        ConfigError: there is no such file, module or class, importing it fails, or it is of another kind.
    """
    kind = KINDS[key]
    if found := OF_A_FILE.fullmatch(name):
        module, text = _module_of(key, Path(found["path"]))
        cls, place, digest = getattr(module, found["name"], None), found["path"], hashlib.sha256(text).hexdigest()
    else:
        cls, place = _importable(key, name)
        digest = ""
    if not isinstance(cls, type) or not _extends(cls, kind.base):
        where = f"is {name!r}, but {place}"
        fitting = [n for n, c in vars(sys.modules[module.__name__]).items() if _own(c, kind)] if found else []
        hint = f"; it has {', '.join(fitting)}" if fitting else ""
        problem = f"{where} has no class of that name{hint}" if cls is None else f"is {name!r}, which is {_what(cls)}"
        raise ConfigError(key, f"{problem}; allowed: a subclass of {kind.base.replace(':', '.')}")
    if lacking := sorted(getattr(cls, "__abstractmethods__", ())):
        raise ConfigError(key, f"is {name!r}, which does not define {', '.join(lacking)}")
    _check_settings(key, name, cls, kind)
    _loaded[name] = digest or _digest_of(cls)
    return cls


def own_settings(key: str, name: str) -> type[BaseModel]:
    """The class of the section that an own method, distiller, encoder or policy has; see `own_class` for errors."""
    settings: type[BaseModel] = own_class(key, name).Settings  # type: ignore[attr-defined]
    return settings


def _check_settings(key: str, name: str, cls: type, kind: Kind) -> None:
    settings = getattr(cls, "Settings", None)
    if not kind.settings or settings is None:
        return
    if not _extends(settings, kind.settings, itself=True):
        allowed = f"a class that extends {kind.settings.replace(':', '.')}"
        raise ConfigError(key, f"is {name!r}, whose Settings is {_what(settings)}; allowed: {allowed}")
    for field, held in settings.model_fields.items():
        if held.is_required() and field != "name":
            raise ConfigError(key, f"is {name!r}, whose Settings has no default for {field}; allowed: a default value")


def _importable(key: str, name: str) -> tuple[Any, str]:
    """The object of a module or an installed plug-in, and where it was looked for."""
    module, _, attribute = name.partition(":")
    try:
        if ":" not in name:
            plugin = installed(key)[name]
            return plugin.load(), f"the plug-in {plugin.value}"
        return getattr(import_module(module), attribute, None), f"module {module}"
    except (Exception, SystemExit) as error:
        raise ConfigError(key, f"is {name!r}, which cannot be imported: {_told(error)}") from None


def _module_of(key: str, path: Path) -> tuple[ModuleType, bytes]:
    """The module of a file, run once, and its text."""
    if path in _modules:
        return _modules[path]
    try:
        text = path.read_bytes()
    except OSError as error:
        problem = f"is in {path}, which cannot be read ({error.strerror})"
        raise ConfigError(key, f"{problem}; allowed: {HOW}, with a path from the working directory") from None
    # Listed, as pydantic and dataclasses look the module of a class up.
    module = ModuleType(f"kaizen_own_{path.stem}_{len(_modules)}")
    module.__file__, sys.modules[module.__name__] = str(path), module
    try:
        exec(compile(text, str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        raise ConfigError(key, f"{path} cannot be imported: {_told(error, path)}") from None
    _modules[path] = module, text
    return _modules[path]


def _told(error: BaseException, path: Path | None = None) -> str:
    """An error as one line, with its line in the file where it happened there."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {type(error).__name__}: {error.msg}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    said = f"{type(error).__name__}: {error}".partition("\n")[0]
    return f"line {lines[-1]}: {said}" if lines else said


def _extends(cls: Any, base: str, itself: bool = False) -> bool:
    """Whether a class extends another one (or is it), given by name, as nothing here may import it."""
    return isinstance(cls, type) and any(f"{c.__module__}:{c.__qualname__}" == base for c in cls.__mro__[not itself :])


def _own(found: object, kind: Kind) -> bool:
    """Whether a class of a file may be used as a part of a kind."""
    return _extends(found, kind.base) and not getattr(found, "__abstractmethods__", ())


def _what(found: object) -> str:
    bases = [base.__name__ for base in found.__mro__[1:-1]] if isinstance(found, type) else []
    if not isinstance(found, type):
        return f"no class but {type(found).__name__}"
    return f"a class that extends {', '.join(bases)}" if bases else "a class that extends nothing"


def _digest_of(cls: type) -> str:
    """SHA-256 of the file that defines a class; unknown for one without a file."""
    try:
        return _sha256(Path(inspect.getfile(cls)))
    except (TypeError, OSError):
        return "unknown"


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
