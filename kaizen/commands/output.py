"""Output that may fail: a reader that ends, a full disk or a lost terminal never ends what prints."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


class _Unfailing(io.FileIO):
    """A file descriptor that drops what cannot be written to it, and never closes it."""

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
    """Replace sys.stdout and sys.stderr by streams that raise nothing: not when they are closed (`>&-`), not when the
    other end is (`| head`), and not at a character that the terminal's encoding does not have."""
    held = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_unfailing(stream, number) for number, stream in enumerate(held, start=1))
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = held


def _unfailing(stream: Any, number: int) -> Any:
    """The stream `number` as it is from now on; one that is no file, such as a test's, stays as it is."""
    if stream is None or getattr(stream, "closed", False):
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.fstat(number)
        except OSError:
            # The next file to be opened would get this number, and what libraries print would end in it.
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
