"""Operations that some file systems do not support: they are tried, and no run fails without them."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNABLE = (errno.EPERM, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS)
"""Errors of a file system that does not support an operation at all, as some FUSE, SMB and WSL mounts."""


@contextmanager
def if_able() -> Iterator[None]:
    """Ignore errors of the work inside if the file system does not support it; all other errors are raised."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNABLE:
            raise


def flush_directory(path: Path) -> None:
    """Flush the names in a directory to disk, if the file system supports that."""
    with if_able():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
