"""Heartbeats of the processes of a run, and the reason of a failure, through the store of their process group.

A collective whose peer died may fail at once (gloo, a closed socket), after minutes (NCCL) or never (a node without
power). So each process increases a count in the store and watches the count of the next rank, in a ring. As long as one
process lives, one of the dead ones is watched by a living one, which notices and reports it to all.

torch does not replace this. torchrun's agent waits for the end of processes on its node only, so a frozen one stays
unnoticed. NCCL's watchdog and a monitored barrier measure seconds, so a process that compiles, or a job that was
suspended, counts as dead unless they wait for many minutes. None of them gives the other processes the reason, which
status.json needs.
"""

import atexit
import os
import queue
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from kaizen.errors import KaizenError, TrainingFailed

T = TypeVar("T")

LOOK_SECONDS = float(os.environ.get("KAIZEN_LOOK_SECONDS") or 2.0)  # tests shorten it
# The limits count looks, not seconds, so that processes that were suspended together do not take each other for dead.
LOST = 20  # without a sign of life: far longer than any call that holds the interpreter's lock, and well under a minute
HURRIED = 7  # the same after a signal: torchrun sends SIGTERM when a process has died, and kills the others 30 s later
GRACE = 3  # for a failing process to report its reason, and for the others to end by themselves

STORE_LOST = "the store of the processes no longer answers: process 0 or the launcher has ended"
# Messages of the backends when another process has died; gloo raises bare RuntimeErrors.
_OF_OTHERS = re.compile(r"gloo|nccl|connection (was )?(closed|reset)|process ?group", re.IGNORECASE)


@dataclass(frozen=True)
class Failure:
    """Why a run failed.

    reports: whether this process writes and prints the reason: the main process does, or another one if the main
    process is dead; follows: the error of this process is only a consequence of a failure elsewhere.
    """

    code: int
    reason: str
    reports: bool = True
    follows: bool = False

    def error(self) -> KaizenError:
        """The failure as an exception, for a process that has no own error to raise."""
        error = TrainingFailed(self.reason)
        error.exit_code, error.everywhere = self.code, self.reports
        return error


def describe(error: Exception, rank: int, world: int) -> Failure:
    """The error of this process as the reason of a failed run."""
    reason = f"{type(error).__name__}: {error}"
    if isinstance(error, KaizenError):
        return Failure(error.exit_code, reason)
    return Failure(TrainingFailed.exit_code, f"process {rank}: {reason}" if world > 1 else reason)


def is_of_others(error: Exception) -> bool:
    """Whether an error only says that a message to or from the other processes failed."""
    return isinstance(error, dist.DistError) or (type(error) is RuntimeError and bool(_OF_OTHERS.search(str(error))))


def group_store(name: str) -> dist.Store:
    """The default group's store over a separate connection: on a shared one, a wait blocks every other user."""
    store = _get_default_store()
    while isinstance(store, dist.PrefixStore):
        store = store.underlying_store
    if isinstance(store, dist.TCPStore):
        store = dist.TCPStore(store.host, store.port, is_master=False, wait_for_workers=False)
    return dist.PrefixStore(name, store)


class StoreThread:
    """A store that is asked from a separate thread, because one whose host has lost its power never answers."""

    def __init__(self, store: dist.Store) -> None:
        self._store = store
        self._questions: queue.SimpleQueue[tuple[Callable[[Any], Any], Future[Any]]] = queue.SimpleQueue()
        threading.Thread(target=self._answer, name="kaizen-store", daemon=True).start()

    def put(self, question: Callable[[dist.Store], T]) -> Future[T]:
        """Ask without waiting."""
        future: Future[T] = Future()
        self._questions.put((question, future))
        return future

    def ask(self, question: Callable[[dist.Store], T], seconds: float) -> T | None:
        """The answer, or None if none came in this time or the store failed, which means the same to all callers."""
        try:
            return self.put(question).result(seconds)
        except Exception:
            return None

    def _answer(self) -> None:
        while True:
            question, future = self._questions.get()
            try:
                future.set_result(question(self._store))
            except Exception as error:
                future.set_exception(error)


class Peers:
    """The other processes of a run; two threads in addition to the main one, which may hold the GIL for LOST looks.

    Args:
        store: shared by the processes of this run only.
        end: ends this process with an exit code, without any teardown.
    """

    def __init__(
        self, store: dist.Store, rank: int, world: int, seconds: float, end: Callable[[int], None] = os._exit
    ) -> None:
        self.rank, self.world, self._seconds, self._end = rank, world, seconds, end
        self._write: Callable[[Failure], None] = lambda failure: None
        self._hurried: Callable[[], bool] = lambda: False
        self._store, self._left = StoreThread(store), threading.Event()
        self._ending: Failure | None = None
        self._beat = self._unchanged = self._unanswered = self._since_report = self._since_end = 0
        # The teardown of a group may wait for dead members; handlers of later imports run before this one.
        atexit.register(self._end_failed)
        threading.Thread(target=self._watch, name="kaizen-peers", daemon=True).start()

    def watch(self, write: Callable[[Failure], None], hurried: Callable[[], bool]) -> None:
        """From now on record a failure before it ends this process; hurried: whether a signal came."""
        self._write, self._hurried = write, hurried

    def failure(self, error: Exception) -> Failure:
        """Why the run failed, the same on every process: the reason of the first one that failed.

        After an error that only shows that other processes died, wait for their reason; without one, find who died.
        """
        self._ending = describe(error, self.rank, self.world)
        if is_of_others(error):
            self._ending = self._cause(_brief(error))
        self._ending = replace(self._posted_first(self._ending), follows=is_of_others(error))
        return self._ending

    def leave(self) -> Failure | None:
        """Announce that this process ends regularly, and wait a while for the others; the failure, if there is one."""
        self._left.set()
        self._store.ask(lambda store: store.add(f"left/{self.rank}", 1), self._seconds)
        before = self._counts()
        if self._until(lambda: max(self._counts() or [-1]) < 0, GRACE):
            return None
        posted, dead = self._store.ask(_posted, self._seconds), self._silent(before, self._counts())
        if posted or dead:
            self._ending = self._posted_first(posted or _lost(f"{_named(dead)} died"))
        return self._ending

    def _cause(self, said: str) -> Failure:
        """The failure elsewhere that made a collective fail here with this message."""
        before = self._counts()
        if posted := self._until(lambda: self._store.ask(_posted, self._seconds), GRACE):
            return posted
        after = self._counts()
        if after is None:
            return _lost(f"{STORE_LOST} ({said})")
        dead = self._silent(before, after)
        return _lost(f"{_named(dead)} died ({said})" if dead else f"another process cannot be reached ({said})")

    def _until(self, check: Callable[[], T | None], looks: int) -> T | None:
        """Repeat a check until it returns something; None if it does not in this time."""
        deadline = time.monotonic() + looks * self._seconds
        while not (found := check()) and time.monotonic() < deadline:
            time.sleep(self._seconds / 20)
        return found

    def _posted_first(self, failure: Failure) -> Failure:
        """Post a failure for the others, unless one was posted before; the first one counts."""
        text = f"{failure.code} {failure.reason}"
        held = self._store.ask(lambda store: store.compare_set("failed", "", text), self._seconds)
        first = _parsed(held) if held else failure
        return Failure(first.code, first.reason, self._reports())

    def _reports(self) -> bool:
        """Whether this process writes and prints the failure: the main one, or any other if the main one is dead."""
        if self.rank == 0:
            self._store.ask(lambda store: store.add("told", 1), self._seconds)
            return True
        return not self._until(lambda: self._store.ask(lambda store: store.add("told", 0), self._seconds), 1)

    def _counts(self) -> list[int] | None:
        """Count of every process, -1 for those that have left; None: the store does not answer."""

        def read(store: dist.Store) -> list[int]:
            ranks = range(self.world)
            return [-1 if store.add(f"left/{r}", 0) else store.add(f"beat/{r}", 0) for r in ranks]

        return self._store.ask(read, self._seconds)

    def _silent(self, before: Sequence[int] | None, after: Sequence[int] | None) -> list[int]:
        """Other processes that have neither increased their count nor left in between."""
        counts = zip(before or (), after or (), strict=False)
        return [r for r, (old, new) in enumerate(counts) if r != self.rank and old == new >= 0]

    def _exchange(self, store: dist.Store) -> tuple[int, bool, Failure | None]:
        """Increase the count; the next rank's count, whether it has left, and the failure that was posted, if any."""
        store.add(f"beat/{self.rank}", 1)
        following = (self.rank + 1) % self.world
        return store.add(f"beat/{following}", 0), bool(store.add(f"left/{following}", 0)), _posted(store)

    def _watch(self) -> None:
        answer = self._store.put(self._exchange)
        while not self._left.wait(self._seconds):
            if failure := self._fatal(answer):
                self._end_by(failure)
                return
            if answer.done():
                answer = self._store.put(self._exchange)

    def _fatal(self, answer: "Future[tuple[int, bool, Failure | None]]") -> Failure | None:
        """The failure for which this process must end at once, as its main thread may hang in a collective; or None."""
        if self._ending:
            self._since_end += 1
            return self._ending if self._since_end > LOST else None
        beat, left, posted = self._beat, False, None
        if answer.done():
            if answer.exception():
                self._unanswered += 1
            else:
                beat, left, posted = answer.result()
        self._since_report += posted is not None
        self._unchanged = 0 if left or beat != self._beat else self._unchanged + 1
        self._beat = beat
        if posted and self._since_report > GRACE:
            return posted
        if self._unanswered > GRACE:
            return _lost(STORE_LOST)
        if self._unchanged >= (HURRIED if self._hurried() else LOST):
            who = f"process {(self.rank + 1) % self.world}" if answer.done() else "the host of the processes' store"
            return _lost(f"{who} died or is frozen: no sign of life for {self._unchanged * self._seconds:.0f} s")
        return None

    def _end_by(self, failure: Failure) -> None:
        failure = self._posted_first(failure)
        if failure.reports:
            with suppress(Exception):  # neither a full disk nor a closed stderr may keep this process alive
                self._write(failure)
            with suppress(Exception):
                print(f"error: {failure.reason}", file=sys.stderr)
        self._flush_and_end(failure.code)

    def _end_failed(self) -> None:
        if self._ending:
            self._flush_and_end(self._ending.code)

    def _flush_and_end(self, code: int) -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        self._end(code)


def _lost(reason: str) -> Failure:
    return Failure(TrainingFailed.exit_code, reason)


def _posted(store: dist.Store) -> Failure | None:
    return _parsed(store.get("failed")) if store.check(["failed"]) else None


def _parsed(text: bytes) -> Failure:
    code, _, reason = text.decode().partition(" ")
    return Failure(int(code), reason)


def _brief(error: Exception) -> str:
    """The first sentence of a backend's message, without the name of the source file."""
    return re.sub(r"^\[\S+\] ", "", str(error).partition("\n")[0]).partition(". ")[0]


def _named(ranks: Sequence[int]) -> str:
    return f"process{'es' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
