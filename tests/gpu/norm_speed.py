"""Microseconds of BatchNorm and ReLU on a GPU: torch's, and the fused kernels with tiles of several sizes.

usage: python tests/gpu/norm_speed.py [IMAGES [VIEWS]]

Sizes are those of a ResNet-18's first, second and last stage at 32 pixels, for all views of a step in one call. The
floor is the time that reading the map twice and writing it once takes at the speed of a copy; backwards three maps are
read twice and one is written.
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

STAGES = ((64, 34), (128, 17), (512, 5))
TILES = [(128, 256, 8, 1), *itertools.product((64, 128), (256, 512), (4, 8), (1, 3)), (256, 256, 8, 1)]
"""ROWS, PARTS, WARPS and STAGES; the first are those in use."""


def microseconds(work: Callable[[], object]) -> float:
    return 1000 * triton.testing.do_bench(work, warmup=4, rep=20, return_mode="median")


def fused(x: torch.Tensor, norm: nn.BatchNorm2d, views: int, tiles: tuple[int, int, int, int]) -> torch.Tensor:
    fused_norm.ROWS, fused_norm.PARTS, fused_norm.WARPS, fused_norm.STAGES = tiles
    return fused_norm.fused_batch_norm(x, norm, views=views)


def sums(x: torch.Tensor, views: int) -> float:
    """Microseconds of the first of the kernels alone, with the tiles of the last call."""
    shape = fused_norm._Shape(x, views)
    parts, more = shape.numbers(2 * shape.parts), (*shape.summing, fused_norm.ROWS, fused_norm.STAGES)
    return microseconds(lambda: fused_norm.sum_moments[shape.summed](x, parts, *more, num_warps=fused_norm.WARPS))


def measure(images: int, views: int, channels: int, side: int, per_byte: float) -> None:
    """Print the times of one size; `per_byte`: microseconds that a copy takes for a byte read or written."""
    x = torch.randn(views * images, channels, side, side, device="cuda", dtype=torch.bfloat16)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    norm, grad = nn.BatchNorm2d(channels).cuda(), torch.randn_like(x)
    size = x.numel() * x.element_size()
    print(f"{views} x {images} x {channels} x {side} x {side}: floor {3 * per_byte * size:.1f}, ", end="")
    print(f"{7 * per_byte * size:.1f} us; of the sums {per_byte * size:.1f} us")
    forwards = {"torch": lambda: torch.cat([F.relu(norm(view)) for view in x.chunk(views)])}
    for tiles in TILES:
        forwards["rows {}, parts {}, warps {}, stages {}".format(*tiles)] = partial(fused, x, norm, views, tiles)
    for name, forward in forwards.items():
        y = forward()
        back = partial(torch.autograd.grad, y, x, grad, retain_graph=True)
        taken = f"forward {microseconds(forward):7.1f}, backward {microseconds(back):7.1f}"
        print(f"  {name:40} {taken}" + ("" if name == "torch" else f", sums {sums(x, views):6.1f}"), "us", flush=True)


if __name__ == "__main__":
    source = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    byte = microseconds(source.clone) / (2 * source.numel())
    print(f"a copy moves {1e-6 / byte:.2f} TB/s (read + written)")
    given = [int(word) for word in sys.argv[1:]]
    for stage in STAGES:
        measure(given[0] if given else 288, given[1] if len(given) > 1 else 2, *stage, byte)
