"""What a file system need not be able to do: it is tried, and no run fails for the lack of it."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNABLE = (errno.EPERM, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS)
"""What a file system answers that cannot do a thing at all, as some FUSE, SMB and WSL mounts."""


@contextmanager
def if_able() -> Iterator[None]:
    """Let the work inside fail where the file system cannot do it; other errors are raised."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNABLE:
            raise


def flush_directory(path: Path) -> None:
    """Have the names in a directory on the disk, where the file system can do that."""
    with if_able():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
