"""Requests to stop: SIGINT, SIGTERM, or a file named `stop` in the run directory."""

import signal
from pathlib import Path
from types import FrameType

from kaizen.errors import Stopped


class StopRequest:
    """Notices a request to stop: at first a signal ends the program at once, from `defer` on it only raises a flag.

    A file that was there before is one that an earlier run was ended by otherwise; it stops nothing until it is
    touched again.
    """

    def __init__(self, directory: Path) -> None:
        self.file = directory / "stop"
        self._stale = self._touched()
        self._asked: str | None = None
        self._deferred = False

    def install(self) -> None:
        """Catch SIGINT and SIGTERM from now on."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def defer(self) -> None:
        """From now on a signal only raises the flag, so that no step and no file is left half done."""
        self._deferred = True

    def asked(self) -> str | None:
        """What asked this process to stop, or None."""
        if self._asked is None and self._touched() not in (None, self._stale):
            self._asked = f"file {self.file}"
        return self._asked

    def clear(self) -> None:
        """Remove the file, so that the next start goes on."""
        self.file.unlink(missing_ok=True)

    def _touched(self) -> int | None:
        try:
            return self.file.stat().st_mtime_ns
        except OSError:
            return None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # A second signal changes nothing: what the first one began, such as a save, goes on.
        if self._asked is None:
            self._asked = signal.Signals(number).name
            if not self._deferred:
                raise Stopped(self._asked)
