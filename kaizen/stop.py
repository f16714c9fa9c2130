"""Requests to stop: SIGINT, SIGTERM, or a file named `stop` in the run directory."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from kaizen.errors import Stopped


class StopRequest:
    """Turns signals into a flag while the training loop runs, and into an exception where nothing can be lost."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "stop"
        self._asked: str | None = None
        self._deferred = False

    def install(self) -> None:
        """Catch SIGINT and SIGTERM from now on."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._asked = self._asked or signal.Signals(number).name
        if not self._deferred:
            raise Stopped(self._asked)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal only raises the flag, so that no step and no file is left half done."""
        before, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = before

    def clear(self, main: bool) -> None:
        """Remove the file, so that the next start goes on; one process does it."""
        if main:
            self.file.unlink(missing_ok=True)

    def asked(self) -> str | None:
        """Who asked this process to stop, or None."""
        if self._asked is None and self.file.exists():
            self._asked = f"file {self.file}"
        return self._asked
