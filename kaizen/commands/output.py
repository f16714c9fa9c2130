"""Output that may fail: an ended reader, a full disk or a lost terminal never ends the program that prints."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


class _Unfailing(io.FileIO):
    """Writes to a file descriptor, drops what cannot be written, and never closes it."""

    def __init__(self, number: int) -> None:
        super().__init__(number, "w", closefd=False)

    def write(self, data: Any) -> int:
        """Bytes of `data`, written or dropped."""
        with suppress(OSError):
            if (written := super().write(data)) is not None:  # None: the other end is not ready to read
                return written
        return memoryview(data).nbytes


@contextmanager
def unfailing_output() -> Iterator[None]:
    """Replace sys.stdout and sys.stderr by streams that never raise: not when they are closed (`>&-`), not when the
    other end is closed (`| head`), and not at a character that the terminal's encoding lacks."""
    held = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_unfailing(stream, number) for number, stream in enumerate(held, start=1))
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = held


def _unfailing(stream: Any, number: int) -> Any:
    """The new stream `number`; a stream that is not a file, such as a test's, is returned unchanged."""
    if stream is None or getattr(stream, "closed", False):
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.fstat(number)
        except OSError:
            # Otherwise the next opened file gets this number, and what libraries print is written into it.
            os.dup2(null, number)
        return open(null, "w", encoding="utf-8")
    try:
        descriptor = stream.fileno()
    except (OSError, AttributeError):
        return stream
    with suppress(OSError):
        stream.flush()
    buffer = io.BufferedWriter(_Unfailing(descriptor))
    return io.TextIOWrapper(buffer, encoding=stream.encoding, errors="replace", line_buffering=True)
