"""environment.json: what a run was trained on, with one entry per start that trained."""

import json
import platform
import socket
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import kaizen
from kaizen.parallel import Parallel
from kaizen.run.checkpoint import write_json
from kaizen.run.status import timestamp

LIBRARIES = ("torch", "torchvision", "accelerate", "datasets", "safetensors", "numpy")
CHANGES_RESULTS = ("gradient_accumulation_steps", "mixed_precision")
"""Keys that change more than the rounding of a result."""


def versions() -> dict[str, str]:
    """Versions of this package and of the libraries that decide what a run computes."""
    return {"kaizen": kaizen.__version__} | {name: version(name) for name in LIBRARIES}


def environment(parallel: Parallel) -> dict[str, Any]:
    """Settings that decide, in addition to the configuration, whether two runs can be equal bit for bit."""
    device = torch.cuda.get_device_name(parallel.device) if parallel.device.type == "cuda" else platform.processor()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions(),
        **parallel.setting(),
        "device_name": device,
        "command": sys.argv,
    }


def read_environment(file: Path) -> dict[str, Any]:
    """Content of environment.json; empty where the file is missing or damaged, as the next start replaces it."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return {}


def record_start(
    file: Path, parallel: Parallel, data: str, step: int, weights: Mapping[str, str] | None = None
) -> None:
    """Record a start of training: its settings at the top level and, with time and step, as last entry of `starts`.

    Args:
        data: digest of the training and test data.
        step: steps of the run that are already done.
        weights: origin of the pretrained weights that task 0 started from, if there are any.
    """
    before, now = read_environment(file), environment(parallel)
    for key in ("versions", *parallel.setting()):
        if before.get(key, now[key]) != now[key]:
            effect = "the loss and the results change from here on" if key in CHANGES_RESULTS else "but not bit for bit"
            print(f"note: {key} was {before[key]} and is now {now[key]}: the run resumes, {effect}", flush=True)
    starts = before.get("starts")
    entry = {"time": timestamp(), "hostname": socket.gethostname(), "step": step, **now}
    origin = {"weights": dict(weights)} if weights else {}
    write_json(file, {**now, "data": data, **origin, "starts": [*(starts if isinstance(starts, list) else []), entry]})
