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
"""Steps between two checks whether any process was asked to stop; each costs a message between processes."""
LAUNCHED = "TORCHELASTIC_RUN_ID"
"""The variable that torchrun, and Accelerate through it, sets in the processes that it starts."""
PR_SET_PDEATHSIG = 1  # of Linux' prctl


def end_with_launcher() -> None:
    """Have the kernel kill this process when its launcher ends, which may have had no time to do so.

    SIGKILL, because no launcher is left to check whether the process has ended. The run resumes from its newest
    checkpoint.
    """
    if sys.platform != "linux" or LAUNCHED not in os.environ:
        return
    launcher = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != launcher:  # the launcher ended just before
        os.kill(os.getpid(), signal.SIGKILL)


class StopRequest:
    """A request to stop: at first a signal ends the program at once; after `defer` it only sets a flag."""

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
        """Look for the file `stop` in this directory; one older than this program was meant for an earlier run.

        An older file counts once it is touched again, whatever time its new time stamp shows.
        """
        self._file = directory / "stop"
        with suppress(OSError):
            status = self._file.stat()
            if status.st_mtime < kaizen.STARTED:
                self._old = _identity(status)

    def defer(self) -> None:
        """From now on a signal only sets the flag, so that no step and no file is left half done."""
        self.deferred = True

    def asked(self) -> str | None:
        """The signal or file that asked this process to stop, or None."""
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
        # A second signal changes nothing: a save that the first one started is completed.
        if self._asked is None:
            self._asked = signal.Signals(number).name
            if not self.deferred:
                raise Stopped(self._asked)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_ino, status.st_mtime_ns
