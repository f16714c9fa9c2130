"""Code of the user's own that a run calls: after each step and at each task's end, on the main process."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


class Callbacks:
    """Calls those of the objects that have a method of this name.

    Args:
        active: whether this process calls them.
    """

    def __init__(self, held: Sequence[Any], *, active: bool) -> None:
        self._held = tuple(held) if active else ()

    def step(self, step: int, terms: Mapping[str, Tensor]) -> None:
        """on_step(step, terms): step of the run that was taken, and the four terms, tensors () on the device."""
        for callback in self._held:
            if called := getattr(callback, "on_step", None):
                called(step, terms)

    def task_end(self, task: int, accuracies: Mapping[str, list[float | None]]) -> None:
        """on_task_end(task, accuracies): the task that was trained, and accuracies by reader and task."""
        for callback in self._held:
            if called := getattr(callback, "on_task_end", None):
                called(task, accuracies)
