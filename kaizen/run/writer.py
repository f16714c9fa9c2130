"""Checkpoints are written in parallel with the training, which continues as soon as their tensors are copied."""

import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Writer:
    """Does file work in a separate thread, one piece at a time."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kaizen-writer")
        self._work: Future[None] | None = None

    def submit(self, work: Callable[[], None]) -> None:
        """Start a piece of work; the previous one must be done (see `wait`)."""
        self._work = self._thread.submit(work)

    def wait(self) -> None:
        """Wait for the work under way, and raise its error."""
        work, self._work = self._work, None
        if work:
            work.result()

    def close(self) -> None:
        """Finish the work under way; its error is printed, as no `wait` will raise it."""
        self._thread.shutdown()
        if self._work and (error := self._work.exception()):
            print(f"note: the checkpoint under way was not written ({error})", file=sys.stderr)
        self._work = None
