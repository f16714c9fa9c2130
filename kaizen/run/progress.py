"""Progress of a run: seconds of training, images/s, time left, and the bar or the lines that show them."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from tqdm.auto import tqdm

LINE_SECONDS = 120.0
"""Seconds between two lines where there is no terminal for a bar."""


class Clock:
    """Seconds of training, over all starts of the run, and images/s since the last call of `lap`.

    Args:
        task: seconds that this task has already trained.
        earlier: seconds that the previous tasks have trained.
    """

    def __init__(self, task: float, earlier: float = 0.0) -> None:
        self._started = self._lap = time.perf_counter()
        self._task, self._earlier, self._images = task, earlier, 0

    def count(self, images: int) -> None:
        """Count the images of one step."""
        self._images += images

    def task_seconds(self) -> float:
        """Seconds that this task has trained."""
        return self._task + time.perf_counter() - self._started

    def seconds(self) -> float:
        """Seconds that the run has trained."""
        return self._earlier + self.task_seconds()

    def lap(self) -> float:
        """Images/s since the last call."""
        now = time.perf_counter()
        rate, self._images = self._images / (now - self._lap), 0
        self._lap = now
        return rate


class Progress:
    """A bar on stderr or in a notebook, or lines on stdout where stderr is no terminal.

    Args:
        steps, done: steps of the run, and how many of them are done.
        bar: show a bar if stderr is a terminal.
        lines: print a line every LINE_SECONDS if it is not.
    """

    def __init__(self, steps: int, done: int, *, bar: bool, lines: bool) -> None:
        shown = bar and (sys.stderr.isatty() or "ipykernel" in sys.modules)
        self._bar = tqdm(total=steps, initial=done, unit="step", dynamic_ncols=True, disable=not shown)
        self._lines, self._next_line, self._latest = lines and not shown, time.monotonic() + LINE_SECONDS, ""
        self._steps, self._done = steps, done
        self._first: tuple[float, int] | None = None

    def advance(self, task: int, tasks: int, epoch: int, epochs: int) -> None:
        """Count one finished step, and show it."""
        self._done += 1
        now = time.monotonic()
        # The first step of a start compiles and allocates, so it does not count for the pace.
        self._first = self._first or (now, self._done)
        if not self._bar.disable:
            self._bar.set_description(f"task {task} (of 0 to {tasks - 1}), epoch {epoch + 1}/{epochs}", refresh=False)
            self._bar.update()
        elif self._lines and now >= self._next_line:
            self._next_line = now + LINE_SECONDS
            left = self.seconds_left()
            parts = [f"task {task} (of 0 to {tasks - 1})", f"step {self._done} of {self._steps}", self._latest]
            parts += [f"{timedelta(seconds=round(left))} left"] if left is not None else []
            self.say(", ".join(filter(None, parts)))

    def seconds_left(self) -> float | None:
        """Estimated seconds until the last step, at the pace since this start's first one, evaluations included."""
        if self._done >= self._steps:
            return 0.0
        if self._first is None or self._done == self._first[1]:
            return None
        began, before = self._first
        return (time.monotonic() - began) / (self._done - before) * (self._steps - self._done)

    def show(self, loss: float, images_per_second: float) -> None:
        """Show the latest loss and throughput."""
        self._latest = f"loss {loss:.3f}, {images_per_second:.0f} images/s"
        self._bar.set_postfix_str(self._latest, refresh=False)

    @contextmanager
    def evaluating(self, task: int, tasks: int) -> Iterator[None]:
        """Show on the bar which network is evaluated: that of a task, or the untrained one (-1)."""
        self._bar.set_description(
            f"evaluating task {task} (of 0 to {tasks - 1})" if task >= 0 else "evaluating untrained network"
        )
        yield
        self._bar.set_description("")

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._bar.write(text, file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        """Close the bar."""
        self._bar.close()
