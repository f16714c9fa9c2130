"""Sweep files: the runs that their lines describe, each checked and each with a unique name."""

import itertools
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from kaizen.cli.resolve import Arguments, parse_arguments, resolve
from kaizen.cli.shipped import shipped_recipes
from kaizen.config.schema import Config, is_free
from kaizen.errors import ConfigError

LONGEST_NAME = 120
"""Maximum length of a run's name; a hash replaces the rest."""
OF_THE_SWEEP = ("run.dir", "run.resume")
"""Keys that the sweep itself sets, so that a run resumes where it stopped."""


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep: its name, its line in the file, its arguments and its configuration."""

    name: str
    line: int
    tokens: tuple[str, ...]
    config: Config


def read_sweep(file: Path) -> list[SweepRun]:
    """The resolved runs of a sweep file, in its order.

    Raises:
        ConfigError: names the file, the line and the key.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("FILE", f"{str(file)!r} cannot be read ({error})") from None
    runs: list[SweepRun] = []
    for number, line in enumerate(lines, start=1):
        try:
            for tokens in expand(split_line(line)):
                runs.append(_planned(number, tokens, runs))
        except ConfigError as error:
            raise ConfigError(f"{file}, line {number}", str(error)) from None
    if not runs:
        raise ConfigError("FILE", f"{str(file)!r} contains no run; allowed: RECIPE [--section.key VALUE ...] per line")
    return runs


def split_line(line: str) -> list[str]:
    """Words of a line as split by a shell; # at the start of an unquoted word begins a comment.

    Raises:
        ConfigError: a quotation is not closed.
    """
    for end in re.finditer(r"(?:^|(?<=\s))#|$", line):
        try:
            return shlex.split(line[: end.start()])
        except ValueError as error:  # this # is inside quotes
            problem = error
    raise ConfigError("line", f"cannot be split into words ({problem})")


def expand(tokens: list[str]) -> list[tuple[str, ...]]:
    """Every combination of the {a,b,c} lists in the words of a line, the last list changing fastest; none of no words.

    Raises:
        ConfigError: braces are not closed, or an alternative is empty.
    """
    return list(itertools.product(*map(_alternatives, tokens))) if tokens else []


def _alternatives(token: str) -> list[str]:
    *parts, end = re.split(r"\{([^{}]*)\}", token)
    if re.search(r"[{}]", "".join([*parts[::2], end])):
        raise ConfigError(token, "has an unmatched brace; a list of values is {a,b,c}, without spaces or in quotes")
    choices = [_members(token, part) if index % 2 else [part] for index, part in enumerate([*parts, end])]
    return ["".join(choice) for choice in itertools.product(*choices)]


def _members(token: str, text: str) -> list[str]:
    """Parts of a text between its commas, except commas in brackets."""
    depth, members = 0, [""]
    for character in text:
        depth += (character == "[") - (character == "]")
        if character == "," and depth == 0:
            members.append("")
        else:
            members[-1] += character
    members = [member.strip() for member in members]
    if not all(members):
        raise ConfigError(token, "has an empty alternative; a list of values is {a,b,c}")
    return members


def _planned(line: int, tokens: tuple[str, ...], before: list[SweepRun]) -> SweepRun:
    arguments = parse_arguments(tokens)
    for key in OF_THE_SWEEP:
        if key in arguments.overrides:
            raise ConfigError(key, "is set by the sweep; a line may set any other key")
    recipe, config = resolve(*arguments)
    run = SweepRun(run_name(recipe, arguments, config), line, tokens, config)
    for other in before:
        same_label = parse_arguments(other.tokens)[::2] == arguments[::2]
        if run.name == other.name or (same_label and config.hash(places=True) == other.config.hash(places=True)):
            raise ConfigError(run.name, f"is the same run as {other.name} of line {other.line}")
    return run


def run_name(recipe: str, arguments: Arguments, config: Config) -> str:
    """RECIPE[-PRESET][-section.key=VALUE ...]-seedN, without the keys that do not affect the result.

    A hash of the configuration is added if a value was changed or cut to fit a file name, or if the recipe is a file of
    the user. The name does not depend on the other lines of the sweep.
    """
    keys = sorted(key for key in arguments.overrides if not is_free(key) and key != "run.seed")
    parts = [recipe, *([arguments.preset] if arguments.preset else [])]
    full = "-".join([*parts, *(f"{key}={arguments.overrides[key]}" for key in keys)])
    name = re.sub(r"[^A-Za-z0-9._+=-]+", "_", full)[:LONGEST_NAME]
    if name != full or arguments.recipe not in shipped_recipes():
        without_seed = config.model_copy(update={"run": config.run.model_copy(update={"seed": 0})})
        name += f"-{without_seed.hash(places=True)[:8]}"
    return f"{name}-seed{config.run.seed}"
