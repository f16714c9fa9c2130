"""Peak memory of a part of the work, not only of the whole process."""

from contextlib import suppress

import torch

from kaizen.parallel import Parallel


def reset_peak(parallel: Parallel) -> None:
    """Reset the peak; where the system cannot (only Linux can), it stays that of the whole process."""
    if parallel.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(parallel.device)
    else:
        with suppress(OSError), open("/proc/self/clear_refs", "w", encoding="utf-8") as file:
            file.write("5")


def peak_memory(parallel: Parallel) -> int:
    """Peak bytes since the last reset: of the GPU's memory if there is a GPU, otherwise of this process."""
    if parallel.device.type != "cuda":
        with suppress(OSError, StopIteration), open("/proc/self/status", encoding="utf-8") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))
    return parallel.peak_memory()
