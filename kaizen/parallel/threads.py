"""CPU threads of a process."""

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
