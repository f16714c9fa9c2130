"""Requests to stop: SIGINT, SIGTERM, or a file named `stop` in the run directory."""

import ctypes
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType

import kaizen
from kaizen.errors import Stopped

STOP_STEPS = 5
"""Steps between agreements on stopping; each is a message between processes."""
LAUNCHED = "TORCHELASTIC_RUN_ID"
"""The variable by which torchrun, and Accelerate through it, marks the processes that it starts."""
PR_SET_PDEATHSIG = 1  # of Linux' prctl


def end_with_launcher() -> None:
    """Have this process killed when the launcher that started it is gone, which may have had no time to do so.

    Killed, as there is nobody left to tell whether it has ended: what it trains goes on from the newest checkpoint.
    """
    if sys.platform != "linux" or LAUNCHED not in os.environ:
        return
    launcher = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != launcher:  # it ended just before
        os.kill(os.getpid(), signal.SIGKILL)


class StopRequest:
    """Notices a request to stop: at first a signal ends the program at once, from `defer` on it only raises a flag."""

    def __init__(self) -> None:
        self._file: Path | None = None
        self._old: tuple[int, int] | None = None
        self._asked: str | None = None
        self.deferred = self.signalled = False

    def install(self) -> None:
        """Catch SIGINT and SIGTERM from now on."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def watch(self, directory: Path) -> None:
        """Look for the file in this directory; one from before the program began was meant for an earlier run.

        Such a file counts once it is touched again, whatever the clock that dates it says.
        """
        self._file = directory / "stop"
        with suppress(OSError):
            status = self._file.stat()
            if status.st_mtime < kaizen.STARTED:
                self._old = _identity(status)

    def defer(self) -> None:
        """From now on a signal only raises the flag, so that no step and no file is left half done."""
        self.deferred = True

    def asked(self) -> str | None:
        """What asked this process to stop, or None."""
        if self._asked is None and self._file is not None:
            with suppress(OSError):
                if _identity(self._file.stat()) != self._old:
                    self._asked = f"file {self._file}"
        return self._asked

    def check(self) -> None:
        """Raise Stopped if this process was asked to stop."""
        if asked := self.asked():
            raise Stopped(asked)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signalled = True
        # A second signal changes nothing: what the first one began, such as a save, goes on.
        if self._asked is None:
            self._asked = signal.Signals(number).name
            if not self.deferred:
                raise Stopped(self._asked)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_ino, status.st_mtime_ns
