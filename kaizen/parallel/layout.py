"""How images and weights of convolutions lie in memory."""

import torch
from torch import nn

NARROW = 16


def memory_format(network: nn.Module, device: torch.device) -> torch.memory_format:
    """The layout for a network's weights and images: channels last, with which convolutions are faster.

    On a CPU narrow networks keep the contiguous layout: torch 2.14 writes beyond its memory in strided 1x1 convolutions
    of fewer than 12 channels, on images of 56 pixels.
    """
    narrow = any(
        isinstance(part, nn.Conv2d)
        and part.kernel_size == (1, 1)
        and part.stride != (1, 1)
        and part.in_channels < NARROW
        for part in network.modules()
    )
    return torch.contiguous_format if narrow and device.type == "cpu" else torch.channels_last
