"""What a device is asked."""

import torch


def synchronize(device: torch.device) -> None:
    """Wait for what the device is doing."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
