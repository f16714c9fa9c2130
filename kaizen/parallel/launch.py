"""What a launcher has started, and the CPU threads of a process."""

import os

from kaizen.errors import ConfigError


def usable_cores() -> int:
    """CPU cores that this process may use; not every system can tell, then all there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads() -> int:
    """CPU threads of this process: KAIZEN_THREADS, or its share of the cores that the node's processes may use."""
    asked = os.environ.get("KAIZEN_THREADS") or "0"
    if not asked.isdecimal():
        raise ConfigError("KAIZEN_THREADS", f"is {asked!r}; allowed: a number of threads, 0 for a share of the cores")
    return int(asked) or max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def check_launch(world: int, device: str, precision: str) -> None:
    """Refuse to train as another number of processes, or on another device, than the launch was meant to be.

    Raises:
        ConfigError: what was started, or what a batch job asked for, is not `world` processes on a `device`; or the
            device does not train in Accelerate's mixed precision.
    """
    if precision == "fp16" and device == "cpu":
        raise ConfigError("mixed_precision", "is fp16, which does not train on a CPU; allowed there: no, bf16")
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != world:
        raise ConfigError(
            "launcher",
            f"started {started} processes, but Accelerate sees {world}, so each would train alone; "
            "on CPU set ACCELERATE_USE_CPU=1 and launch with --multi_gpu --num_processes N",
        )
    # What a batch job has asked for, in the words of the batch files: a GPU that is not seen is no reason to spend the
    # job's hours on a CPU.
    for key, found in (("KAIZEN_DEVICE", device), ("KAIZEN_PROCESSES", str(world))):
        if (asked := os.environ.get(key)) and asked != found:
            raise ConfigError(key, f"is {asked!r}, but this launch has {found!r}; allowed: what it has, or unset")
