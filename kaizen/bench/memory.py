"""Peak memory of a part of the work, not only of the whole process."""

import torch


def reset_peak(device: torch.device) -> bool:
    """Reset the peak; False if the system cannot (only Linux can), so that it covers the whole process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        with open("/proc/self/clear_refs", "w", encoding="utf-8") as file:
            file.write("5")
    except OSError:
        return False
    return True


def peak_memory(device: torch.device) -> int:
    """Peak bytes since the last reset: of the GPU's memory if there is a GPU, otherwise of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        with open("/proc/self/status", encoding="utf-8") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
