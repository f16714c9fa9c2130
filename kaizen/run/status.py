"""status.json: the position of a run and how it ended, for scripts, because launchers hide exit codes."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from kaizen.run.checkpoint import write_json, writing

STATUS_SECONDS = 10.0
"""Minimum seconds between two updates while a run trains."""


def timestamp() -> str:
    """The current time in ISO format, to the second, with the offset from UTC."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def write_status(directory: Path, content: dict[str, Any]) -> None:
    """Replace status.json atomically."""
    file = directory / "status.json"
    try:
        write_json(file, content)
    except OSError:
        # On a full disk only the old file's own block is left.
        with writing(file), open(file, "r+", encoding="utf-8") as held:
            held.write(json.dumps(content) + "\n")
            held.truncate()


def read_position(directory: Path) -> tuple[int, int]:
    """Task and step in status.json; (0, 0) if it cannot be read."""
    try:
        status = json.loads((directory / "status.json").read_text(encoding="utf-8"))
        return int(status["task"]), int(status["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0, 0
