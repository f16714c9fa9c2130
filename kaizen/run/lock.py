"""The lock of a run directory: a file that its holder keeps changing, so that a crash does not leave it locked.

The file names its holder and contains a count that the holder increases. If the holder was on the same machine, its
end is noticed at once; on another machine, by a count that no longer changes (time stamps would not do: clocks differ).

The package filelock does not replace this. Its FileLock (flock) does not reach other nodes on every file system. Its
SoftFileLease takes over the lock of a killed process only by swapping two names, which NFS refuses, so the directory
would stay locked forever (tried with 4.3.1). It does not notice a zombie process either.
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
"""Seconds without a new count after which the holder is considered dead."""


class RunLock:
    """The lock on a directory, taken by the constructor and held until `release`.

    Args:
        directory: an existing directory.

    Raises:
        ConfigError: another process holds it, or it cannot be written.
    """

    def __init__(self, directory: Path, *, beat: float = BEAT, stale: float = STALE) -> None:
        self._file = directory / LOCK
        self.token = uuid.uuid4().hex
        self._mine = {"token": self.token, "machine": _machine(), "host": socket.gethostname(), "pid": os.getpid()}
        self._mine |= {"began": _start_time(os.getpid()), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        self._count, self._beat, self._stale = 0, beat, stale
        self._ended = threading.Event()
        try:
            while not self._created():
                self._remove(self._stale_content())
        except OSError as error:
            raise ConfigError("run.dir", f"{directory} cannot be written ({error.strerror})") from None
        threading.Thread(target=self._keep_counting, name="kaizen-lock", daemon=True).start()

    def check(self) -> None:
        """Raise a TrainingFailed if another process has taken the directory over, as after a long suspension."""
        if not holds(self._file.parent, self.token):
            raise TrainingFailed(
                f"{self._file.parent} was taken over by another process; nothing more is written to it"
            )

    def release(self) -> None:
        """Release the directory."""
        self._ended.set()
        with suppress(OSError):  # a lock file that cannot be deleted becomes stale
            if holds(self._file.parent, self.token):
                self._file.unlink(missing_ok=True)

    def _text(self) -> str:
        # The length is constant, so that a read during a write finds a count and the holder.
        return json.dumps({**self._mine, "count": f"{self._count:012d}"})

    def _created(self) -> bool:
        """Create the lock file; False if it already exists."""
        try:
            descriptor = os.open(self._file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(self._text())
        return True

    def _stale_content(self) -> bytes | None:
        """Content of the lock file of a dead holder; None: the file no longer exists.

        Raises:
            ConfigError: the holder is alive.
        """
        first, deadline = _read(self._file), time.monotonic() + self._stale
        while (held := _read(self._file)) == first and held is not None:
            dead = _is_dead(_parsed(held))
            if dead or time.monotonic() > deadline:
                return held
            if dead is not None:
                break
            time.sleep(self._stale / 20)
        if held is None:
            return None
        holder = _parsed(held) or _parsed(first)  # a read during a write may find no valid content
        who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')} since {holder.get('since', '?')}"
        problem = f"{self._file.parent} is in use by {who}"
        raise ConfigError(
            "run.dir", f"{problem}; allowed: another run.dir, or stop that run first (touch its file `stop`)"
        )

    def _remove(self, stale: bytes | None) -> None:
        """Delete the lock file if it still has this content; one process at a time does so."""
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
    """Whether the lock of a directory has this token; OSError if it cannot be read."""
    return _parsed(_read(directory / LOCK)).get("token") == token


def _read(file: Path) -> bytes | None:
    # Opened again each time, because a network file system looks for changes by other nodes only then.
    with suppress(FileNotFoundError):
        return file.read_bytes()
    return None


def _parsed(content: bytes | None) -> dict[str, Any]:
    """Content of a lock; empty if the file is missing or half written."""
    with suppress(ValueError):
        found = json.loads(content or "null")
        if isinstance(found, dict):
            return found
    return {}


def _machine() -> str:
    """Name of this machine and PID namespace: processes with the same one can look each other up by process id."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return boot + os.readlink("/proc/self/ns/pid")
    return socket.gethostname()


def _start_time(pid: int) -> str | None:
    """Start time of a process in ticks since boot, because process ids are reused; None: the process has ended."""
    with suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        # A zombie keeps its process id.
        return None if fields[0] in ("Z", "X") else fields[19]
    return None


def _is_dead(holder: dict[str, Any]) -> bool | None:
    """Whether a holder on this machine is dead; None: on another machine, or unknown."""
    if holder.get("machine") != _machine() or not isinstance(holder.get("pid"), int) or not holder.get("began"):
        return None
    return _start_time(holder["pid"]) != holder["began"]
