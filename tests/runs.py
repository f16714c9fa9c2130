"""Reading run directories in tests."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TASKS, STEPS = 5, 6
"""Tasks of a tiny run, and steps of each."""


def run_of(tiny: list[str]) -> Path:
    return Path(tiny[tiny.index("--run.dir") + 1])


def log_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def status_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "status.json").read_text())


def snapshots(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in sorted(run.glob("tasks/*/*.safetensors"))}


def wait_for_step(run: Path, step: int, alive: Callable[[], bool]) -> None:
    """Until the run has logged that step, or has ended."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and alive():
        if (run / "log.jsonl").exists() and f'"step": {step},' in (run / "log.jsonl").read_text():
            return
        time.sleep(0.002)
