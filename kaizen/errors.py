"""The ways a run can end, as exceptions; each has the exit code of `python train.py`."""

import errno
import re

REFUSING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ESTALE)
"""Errors with which a file system refuses to write or to read."""
REFUSED = re.compile(r"can't allocate memory|not enough memory|Cannot allocate memory")


class KaizenError(Exception):
    """An error that ends the run, with a message for the user and an exit code.

    `everywhere`: processes other than the main one print it too, because the main one does not.
    """

    exit_code = 1
    everywhere = False


class ConfigError(KaizenError):
    """Configuration or data that cannot be used: one line naming the key or file, what was found, what is allowed."""

    exit_code = 2

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}")
        self.key, self.problem = key, problem


class DamagedError(ConfigError):
    """A saved file that is missing or was changed; the key is the file."""


class TrainingFailed(KaizenError):
    """Training that cannot continue, for example after a loss that is not finite or the death of a process."""

    exit_code = 3


def explained(error: Exception) -> Exception:
    """Turn an error of the machine (full disk, too little memory) into a one-line message; return all others as is."""
    if isinstance(error, KaizenError):
        return error
    if isinstance(error, OSError) and error.errno in REFUSING and error.filename:
        return TrainingFailed(f"{error.filename}: {error.strerror}; what was saved before is kept")
    text = str(error).partition("\n")[0]
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or REFUSED.search(text):
        remedy = "if a training step needs too much, use a smaller optim.batch, more processes or gradient accumulation"
        return TrainingFailed(f"not enough memory ({text or 'MemoryError'}); {remedy}")
    return error


class Stopped(BaseException):
    """A run that was asked to stop and has saved everything that it needs to resume.

    Not an Exception, because a signal may raise it inside a library that converts exceptions.
    """

    exit_code = 75
