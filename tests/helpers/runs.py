"""Reading run directories in tests."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kaizen.model.methods import method_class
from kaizen.model.methods.base import Method
from kaizen.parallel import Batch

TASKS, STEPS = 5, 6
"""Tasks of a tiny run, and steps per task."""


def run_of(tiny: list[str]) -> Path:
    return Path(tiny[tiny.index("--run.dir") + 1])


def log_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def status_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "status.json").read_text())


def snapshots(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in sorted(run.glob("tasks/*/*.safetensors"))}


def wait_for_step(run: Path, step: int, alive: Callable[[], bool]) -> None:
    """Wait until the run has logged that step, or has ended."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and alive():
        if (run / "log.jsonl").exists() and f'"step": {step},' in (run / "log.jsonl").read_text():
            return
        time.sleep(0.002)


def sweep_file(tmp_path: Path, *lines: str) -> Path:
    file = tmp_path / "sweep.txt"
    file.write_text("\n".join(lines))
    return file


COMBINED: dict[str, tuple[str, ...]] = {
    "simclr, pfr": ("--method.name", "simclr", "--distill.name", "pfr"),
    **{
        f"{name}, pnr": ("--method.name", name, "--distill.name", "pnr")
        for name in ("simclr", "mocov2plus", "byol", "barlow", "vicreg")
    },
    "osiris, distill": ("--method.name", "osiris", "--method.stability", "distill"),
}
"""Methods with a distiller or a key that changes what a step computes: name and arguments."""


def settings_of(name: str, **keys: Any) -> Any:
    small = {"projector_hidden": 16, "projector_out": 8}
    for key in ("predictor_hidden", "queue_size", "prototypes", "directions"):
        if key in method_class(name).Settings.model_fields:
            small[key] = 12
    if name == "wmse":
        small["whitening_size"] = 10
    return method_class(name).Settings(**small, **keys)


def in_epoch(batch: Batch, method: Method, epoch: int) -> Batch:
    """The batch in an epoch of a task."""
    numbers = torch.tensor(method.schedule(epoch), dtype=torch.float64)
    return replace(batch, phase=method.phase(epoch), numbers=numbers)


def short(tiny: list[str]) -> list[str]:
    """A tiny run of three tasks with one epoch each."""
    return [*tiny, "--stream.tasks", "3", "--optim.epochs", "1", "--optim.warmup_epochs", "0"]
