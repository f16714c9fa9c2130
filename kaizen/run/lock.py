"""The lock of a run directory: a file that its holder keeps changing, so that no crash leaves it behind.

The file says who holds it and counts on. A holder on the same machine that ended is noticed at once; one on another
machine by a count that stands still, as clocks differ.

The package filelock does not replace this: its FileLock (flock) does not reach other nodes on every file system, and
its SoftFileLease takes over what a killed process held by an exchange of two names alone, which NFS refuses, so that
the directory would stay locked for ever (tried with 4.3.1). Nor does it notice a killed process that nobody has
waited for.
"""

import hashlib
import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from kaizen.errors import ConfigError, TrainingFailed

LOCK = ".lock"
BEAT = 5.0
"""Seconds between two counts."""
STALE = 45.0
"""Seconds after which a count that stands still is that of a holder that is gone."""


class RunLock:
    """The lock on a directory, taken at once and held until `release`.

    Args:
        directory: exists.

    Raises:
        ConfigError: another process holds it, or it cannot be written.
    """

    def __init__(self, directory: Path, *, beat: float = BEAT, stale: float = STALE) -> None:
        self._file = directory / LOCK
        self.token = uuid.uuid4().hex
        self._mine = {"token": self.token, "machine": _machine(), "host": socket.gethostname(), **_process()}
        self._count, self._beat, self._stale = 0, beat, stale
        self._ended = threading.Event()
        try:
            while not self._created():
                self._remove(self._left_behind())
        except OSError as error:
            raise ConfigError("run.dir", f"{directory} cannot be written ({error.strerror})") from None
        threading.Thread(target=self._keep_counting, name="kaizen-lock", daemon=True).start()

    def check(self) -> None:
        """Raise a TrainingFailed if another process has taken the directory, as after hours without power."""
        if not holds(self._file.parent, self.token):
            raise TrainingFailed(
                f"{self._file.parent} was taken over by another process; nothing more is written to it"
            )

    def release(self) -> None:
        """Let others have the directory."""
        self._ended.set()
        with suppress(OSError):  # what cannot be written any more cannot be given back, and is found stale
            if holds(self._file.parent, self.token):
                self._file.unlink(missing_ok=True)

    def _text(self) -> str:
        # Of one length, so that one who reads while it is written finds some count, and the holder.
        return json.dumps({**self._mine, "count": f"{self._count:012d}"})

    def _created(self) -> bool:
        """Whether the file was not there and is ours now."""
        try:
            descriptor = os.open(self._file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(self._text())
        return True

    def _left_behind(self) -> bytes | None:
        """What the file of a holder that is gone says; None: there is no file any more.

        Raises:
            ConfigError: its holder lives.
        """
        first, deadline = _read(self._file), time.monotonic() + self._stale
        while (held := _read(self._file)) == first and held is not None:
            gone = _is_gone(_parsed(held))
            if gone or time.monotonic() > deadline:
                return held
            if gone is not None:
                break
            time.sleep(self._stale / 20)
        if held is None:
            return None
        holder = _parsed(held) or _parsed(first)  # read while it was written, it says nothing
        who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')} since {holder.get('since', '?')}"
        problem = f"{self._file.parent} is in use by {who}"
        raise ConfigError(
            "run.dir", f"{problem}; allowed: another run.dir, or stop that run first (touch its file `stop`)"
        )

    def _remove(self, stale: bytes | None) -> None:
        """Take the file away if it still holds this; of all that want to, one at a time."""
        if stale is None:
            return
        taking = self._file.with_name(f".lock.taking-{hashlib.sha256(stale).hexdigest()[:16]}")
        try:
            os.close(os.open(taking, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        except FileExistsError:
            deadline = time.monotonic() + self._stale
            while taking.exists() and time.monotonic() < deadline:
                time.sleep(self._stale / 100)
            if time.monotonic() < deadline:
                return
        if _read(self._file) == stale:
            self._file.unlink()
        taking.unlink(missing_ok=True)

    def _keep_counting(self) -> None:
        while not self._ended.wait(self._beat):
            with suppress(OSError):
                if not holds(self._file.parent, self.token):
                    return
                self._count += 1
                with open(self._file, "r+", encoding="utf-8") as file:
                    file.write(self._text())


def holds(directory: Path, token: str) -> bool:
    """Whether the lock of a directory is the one with this token; OSError where that cannot be read."""
    return _parsed(_read(directory / LOCK)).get("token") == token


def _read(file: Path) -> bytes | None:
    # Opened anew each time: that is when network file systems look for what others have written.
    with suppress(FileNotFoundError):
        return file.read_bytes()
    return None


def _parsed(content: bytes | None) -> dict[str, Any]:
    """What a lock says; nothing, if it is gone or half written."""
    with suppress(ValueError):
        found = json.loads(content or "null")
        if isinstance(found, dict):
            return found
    return {}


def _machine() -> str:
    """What processes that can see each other's numbers have in common."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return boot + os.readlink("/proc/self/ns/pid")
    return socket.gethostname()


def _process() -> dict[str, Any]:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return {"pid": os.getpid(), "began": _began(os.getpid()), "since": since}


def _began(pid: int) -> str | None:
    """When a process began, in ticks since the machine did, as numbers are used again; None: it is gone."""
    with suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        # A killed process that nobody has waited for keeps its number.
        return None if fields[0] in ("Z", "X") else fields[19]
    return None


def _is_gone(holder: dict[str, Any]) -> bool | None:
    """Whether a holder on this machine is gone; None: on another machine, or not to be told."""
    if holder.get("machine") != _machine() or not isinstance(holder.get("pid"), int) or not holder.get("began"):
        return None
    return _began(holder["pid"]) != holder["began"]
