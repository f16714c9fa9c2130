"""Checkpoints are written beside the training, which goes on as soon as their tensors are copied."""

import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Writer:
    """Does file work on a thread of its own, one piece at a time."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kaizen-writer")
        self._work: Future[None] | None = None

    def submit(self, work: Callable[[], None]) -> None:
        """Begin this piece of work; the one before has to be done (see `wait`)."""
        self._work = self._thread.submit(work)

    def wait(self) -> None:
        """Wait for the work that is under way, and raise what it raised."""
        work, self._work = self._work, None
        if work:
            work.result()

    def close(self) -> None:
        """Let what is under way come to its end; that it could not is told where nobody waits for it any more."""
        self._thread.shutdown()
        if self._work and (error := self._work.exception()):
            print(f"note: the checkpoint under way was not written ({error})", file=sys.stderr)
        self._work = None
