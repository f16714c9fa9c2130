"""Where a run directory keeps what, and the names of the files."""

from pathlib import Path

from kaizen.errors import ConfigError

TASK_END, CHECKPOINT = ("student", "method", "replay"), ("student", "method", "optimizer")
"""Files (safetensors) of a task-end directory and of a checkpoint."""


def task_directory(run: Path, task: int) -> Path:
    """Where the state at a task's end is kept."""
    return run / "tasks" / f"task-{task:02d}"


def checkpoint_directory(run: Path, task: int, step: int) -> Path:
    """Where a checkpoint is kept; `step` counts over the run."""
    return run / "checkpoints" / f"task-{task:02d}_step-{step:08d}"


def user_path(key: str, text: str) -> Path:
    """The path that a user gives for a key, with ~ replaced; ConfigError where there is no such home directory."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ConfigError(key, f"is {text!r}, but there is no such home directory; allowed: a path without ~") from None
