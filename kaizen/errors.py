"""The ways a run can end, as exceptions; each carries the exit code of `python train.py`."""


class KaizenError(Exception):
    """A run that cannot go on, with a message for the user and an exit code.

    `everywhere`: processes other than the main one print it too, as the main one does not.
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
    """Something saved that is missing a part or was changed; the key is the file."""


class TrainingFailed(KaizenError):
    """Training that cannot be trusted any more, such as a loss that is not finite, or a process that died."""

    exit_code = 3


class Stopped(BaseException):
    """A run that was asked to stop and has saved all that it needs to go on.

    No Exception, as it may be raised by a signal inside a library that turns exceptions into others.
    """

    exit_code = 75
