"""Gradient accumulation, as set by the environment of a launch."""

import os

from kaizen.errors import ConfigError

VARIABLE = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
"""Accelerate reads it in every launch; the flag of its launcher works for DeepSpeed only."""


def accumulation() -> int:
    """Number of parts that the batch of a step is split into.

    Raises:
        ConfigError: the variable is not a whole number of at least 1.
    """
    asked = os.environ.get(VARIABLE, "1")
    if not (asked.isascii() and asked.isdecimal() and int(asked)):
        raise ConfigError(VARIABLE, f"is {asked!r}; allowed: a number of parts per step, such as 4, or unset for 1")
    return int(asked)
