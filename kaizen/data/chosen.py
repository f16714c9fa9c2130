"""Classes of tasks that are chosen by hand: their names as a user writes them, as outputs of the classifier."""

import difflib
from collections.abc import Sequence

from kaizen.data.files import listed
from kaizen.errors import ConfigError


def chosen_classes(wanted: Sequence[Sequence[str]], names: Sequence[str]) -> list[list[int]]:
    """Numbers of the classes of each task, given as names or, where no class is named by a number, as numbers.

    Raises:
        ConfigError: a class is unknown, or is named twice.
    """
    numbers = {name: number for number, name in enumerate(names)}
    if not any(name.isdecimal() for name in names):
        numbers |= {str(number): number for number in range(len(names))}
    seen: dict[int, str] = {}
    for word in (word for task in wanted for word in task):
        if word not in numbers:
            near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError("stream.classes", f"names {word!r}{hint}; allowed: {_allowed(names)}")
        if (number := numbers[word]) in seen:
            twice = word if seen[number] == word else f"{seen[number]} and {word}, the same class"
            raise ConfigError("stream.classes", f"names {twice} twice; allowed: each class once")
        seen[number] = word
    return [[numbers[word] for word in task] for task in wanted]


def _allowed(names: Sequence[str]) -> str:
    shown = listed([f"{name!r}" if "," in name else name for name in names])
    return shown if any(name.isdecimal() for name in names) else f"{shown}, or numbers 0 to {len(names) - 1}"
