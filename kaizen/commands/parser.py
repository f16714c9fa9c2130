"""Command lines of the commands that take more than a recipe and overrides."""

import argparse
import shlex
import shutil
from collections.abc import Callable
from typing import Any, NoReturn

from kaizen.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line with code 2, like all of ours."""

    def __init__(self, usage: str, about: str, closing: str = "") -> None:
        super().__init__(
            usage=usage,
            description=about,
            epilog=closing,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, but --help comes before any error."""
        if {"-h", "--help"} & set(args or ()):
            self.print_help()
            self.exit()
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print below its usage as a ConfigError."""
        raise ConfigError("arguments", f"{message}; {' '.join(self.format_usage().split())}")


def at_least(least: int) -> Callable[[str], int]:
    """A parser of numbers of at least `least`, for `type=`; it raises ArgumentTypeError for anything else."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"is {text!r}; allowed: a number of at least {least}")
        return int(text)

    return number


def launcher(text: str) -> list[str]:
    """Words of a launch command, such as accelerate launch -q; none: a plain process. For `type=`, as `at_least`."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"is {text!r}, which cannot be read: {error}") from None
    if words and shutil.which(words[0]) is None:
        raise argparse.ArgumentTypeError(f"is {words[0]!r}, which is not a program; allowed: as accelerate launch -q")
    return words
