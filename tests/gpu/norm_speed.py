"""Microseconds of BatchNorm and ReLU on a GPU: torch's, and the fused kernels with tiles of several sizes.

usage: python tests/gpu/norm_speed.py [IMAGES]

Sizes are those of a ResNet-18's four stages at 32 pixels. The floor is the time that reading the map twice and writing
it once takes at the speed of a copy; backwards three maps are read twice and one is written.
"""

import itertools
import sys
from collections.abc import Callable
from functools import partial

import torch
import triton
from torch import nn
from torch.nn import functional as F

from kaizen.model.networks import fused_norm

STAGES = ((64, 32), (128, 16), (256, 8), (512, 4))
TILES = [(128, 256, 8), *itertools.product((64, 128), (128, 512), (4, 8)), (256, 256, 8)]
"""ROWS, PARTS and WARPS; the first are those in use."""


def microseconds(work: Callable[[], object]) -> float:
    return 1000 * triton.testing.do_bench(work, warmup=10, rep=50, return_mode="median")


def fused(x: torch.Tensor, norm: nn.BatchNorm2d, tiles: tuple[int, int, int]) -> torch.Tensor:
    fused_norm.ROWS, fused_norm.PARTS, fused_norm.WARPS = tiles
    return fused_norm.fused_batch_norm(x, norm)


def measure(images: int, channels: int, side: int, per_byte: float) -> None:
    """Print the times of one size; `per_byte`: microseconds that a copy takes for a byte read or written."""
    x = torch.randn(images, channels, side, side, device="cuda", dtype=torch.bfloat16)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    norm, grad = nn.BatchNorm2d(channels).cuda(), torch.randn_like(x)
    size = x.numel() * x.element_size()
    print(f"{images} x {channels} x {side} x {side}: floor {3 * per_byte * size:.1f}, {7 * per_byte * size:.1f} us")
    forwards = {"torch": lambda: F.relu(norm(x))}
    for rows, parts, warps in TILES:
        forwards[f"rows {rows}, parts {parts}, warps {warps}"] = partial(fused, x, norm, (rows, parts, warps))
    for name, forward in forwards.items():
        y = forward()
        back = partial(torch.autograd.grad, y, x, grad, retain_graph=True)
        print(f"  {name:32} forward {microseconds(forward):7.1f}, backward {microseconds(back):7.1f} us", flush=True)


if __name__ == "__main__":
    source = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    byte = microseconds(source.clone) / (2 * source.numel())
    print(f"a copy moves {1e-6 / byte:.2f} TB/s (read + written)")
    for stage in STAGES:
        measure(int(sys.argv[1]) if len(sys.argv) > 1 else 288, *stage, byte)
