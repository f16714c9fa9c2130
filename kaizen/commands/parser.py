"""Command lines of the commands that take more than a recipe and overrides."""

import argparse
from typing import NoReturn

from kaizen.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """argparse whose mistakes are one line with code 2, as all of ours are; --help is left to the command."""

    def __init__(self, usage: str, about: str, closing: str = "") -> None:
        super().__init__(
            usage=usage,
            description=about,
            epilog=closing,
            add_help=False,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print below a usage.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("arguments", f"{message}; {' '.join(self.format_usage().split())}")


def at_least_one(text: str) -> int:
    """A number of at least 1, for `type=`.

    Raises:
        ArgumentTypeError: it is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"is {text!r}; allowed: a number of at least 1")
    return int(text)
