"""Gradient accumulation, as the environment of a launch sets it."""

import os

from kaizen.errors import ConfigError

VARIABLE = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
"""Accelerate reads it in every launch; its launcher hands on its own flag for DeepSpeed alone."""


def accumulation() -> int:
    """Parts that a step's batch comes in.

    Raises:
        ConfigError: the variable holds no whole number of at least 1.
    """
    asked = os.environ.get(VARIABLE, "1")
    if not (asked.isascii() and asked.isdecimal() and int(asked)):
        raise ConfigError(VARIABLE, f"is {asked!r}; allowed: a number of parts per step, such as 4, or unset for 1")
    return int(asked)
