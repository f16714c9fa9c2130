"""Checks of what the launcher has started, and the number of CPU threads of a process."""

import math
import os
from contextlib import suppress
from pathlib import Path

from kaizen.errors import ConfigError


def usable_cores() -> int:
    """Number of CPU cores that this process can use, by its affinity and its CPU quota."""
    # Not every system knows an affinity; all cores count there.
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(allowed, _quota())))


def _quota(groups: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> float:
    """CPU quota of this process' control groups in cores, as set for containers; infinite without a limit.

    The limits of a group's parents apply as well.
    """
    paths: set[Path] = set()
    with suppress(OSError):
        for line in groups.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers or "cpu" in controllers.split(","):  # version 2 or 1
                top, relative = mounted / ("cpu" if controllers else ""), Path(path.lstrip("/"))
                paths |= {top / part for part in (relative, *relative.parents)}
    return min(map(_limit, paths), default=math.inf)


def _limit(group: Path) -> float:
    with suppress(OSError, ValueError):  # ValueError: "max", no limit
        quota, period = map(float, (group / "cpu.max").read_text(encoding="utf-8").split())
        return quota / period
    with suppress(OSError, ValueError):
        quota, period = (
            float((group / f"cpu.cfs_{name}_us").read_text(encoding="utf-8")) for name in ("quota", "period")
        )
        return quota / period if quota > 0 else math.inf
    return math.inf


def threads() -> int:
    """Number of CPU threads of this process: KAIZEN_THREADS, or its share of the cores that it can use."""
    asked = os.environ.get("KAIZEN_THREADS") or "0"
    if not asked.isdecimal():
        raise ConfigError("KAIZEN_THREADS", f"is {asked!r}; allowed: a number of threads, 0 for a share of the cores")
    return int(asked) or max(1, usable_cores() // neighbours())


def neighbours() -> int:
    """Number of processes that the launcher has started on this node, this one included."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


SEVERAL_ON_CPU = "ACCELERATE_USE_CPU=1 accelerate launch -q --multi_gpu --num_processes 2 train.py ..."
"""The command that starts two processes on a CPU."""


def check_launch(world: int, device: str, precision: str) -> None:
    """Refuse to train with a different number of processes, or on a different device, than requested.

    Raises:
        ConfigError: the launcher started, or the batch job requested, something other than `world` processes on a
            `device`; or the device does not train in Accelerate's mixed precision.
    """
    if precision == "fp16" and device == "cpu":
        raise ConfigError("mixed_precision", "is fp16, which does not train on a CPU; allowed there: no, bf16")
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != world:
        raise ConfigError(
            "launcher",
            f"started {started} processes, but Accelerate sees {world}, so each would train alone; "
            f"allowed on a CPU: {SEVERAL_ON_CPU}",
        )
    # Asked for several, `accelerate launch` sets MASTER_ADDR; it alone sets the variable of torch.compile.
    several = {"MASTER_ADDR", "ACCELERATE_DYNAMO_USE_FULLGRAPH"} <= os.environ.keys()
    if world == 1 and several and "WORLD_SIZE" not in os.environ:
        raise ConfigError(
            "--num_processes",
            "is above 1, but accelerate launch started one process, as it does with --cpu or without --multi_gpu; "
            f"allowed on a CPU: {SEVERAL_ON_CPU}, or --num_processes 1 (without MASTER_ADDR in the environment)",
        )
    # The batch files state what a job has requested: if no GPU is found, the job must not spend its hours on a CPU.
    for key, found in (("KAIZEN_DEVICE", device), ("KAIZEN_PROCESSES", str(world))):
        if (asked := os.environ.get(key)) and asked != found:
            raise ConfigError(key, f"is {asked!r}, but this launch has {found!r}; allowed: what it has, or unset")
