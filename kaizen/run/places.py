"""Paths in a run directory, and the names of its files."""

from pathlib import Path

from kaizen.errors import ConfigError

TASK_END, CHECKPOINT = ("student", "method", "replay"), ("student", "method", "optimizer")
"""Files (safetensors) of a task-end directory and of a checkpoint."""


def task_directory(run: Path, task: int) -> Path:
    """Directory of the state at a task's end."""
    return run / "tasks" / f"task-{task:02d}"


def checkpoint_directory(run: Path, task: int, step: int) -> Path:
    """Directory of a checkpoint; `step` counts over the run."""
    return run / "checkpoints" / f"task-{task:02d}_step-{step:08d}"


def user_path(key: str, text: str) -> Path:
    """The path that a user gives for a key, with ~ replaced; ConfigError if there is no such home directory."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ConfigError(key, f"is {text!r}, but there is no such home directory; allowed: a path without ~") from None
