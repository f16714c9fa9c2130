"""BatchNorm and the operations that follow it (the sum with the residual, ReLU) as fused kernels for NVIDIA GPUs.

On an H100 torch's own kernels took a third of a ResNet-18's step at 32 px in bfloat16, most of it in the statistics.
Here a map is read twice and written once, forwards. Imported only where it is used, as Triton needs a compiler.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from kaizen.model.networks.norm_kernels import (
    COLUMNS,
    NARROW,
    apply_gradient,
    apply_norm,
    merge_gradients,
    merge_moments,
    sum_gradients,
    sum_moments,
)

ROWS, WARPS = 128, 8
"""Pixels per program, and its warps."""
PARTS = 256
"""Maximum number of parts in which pixels are summed, one program per part; one more program adds up the parts."""
STAGES = 1
"""Tiles of a sum that are on their way from memory at a time."""


class _Fused(torch.autograd.Function):
    """relu(batch_norm(x) + residual) of channels-last maps (n, c, h, w), by the statistics of each view's batch."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        residual: Tensor | None,
        running: tuple[Tensor, Tensor, Tensor] | None,
        momentum: float,
        eps: float,
        relu: bool,
        views: int,
    ) -> Tensor:
        shape = _Shape(x, views)
        parts, saved, y = shape.numbers(2 * shape.parts), shape.numbers(4), torch.empty_like(x)
        sum_moments[shape.summed](x, parts, *shape.summing, ROWS, STAGES, num_warps=WARPS)
        moved = running if running is not None else (saved, saved, saved)
        more = (*shape.summing, momentum, eps, ROWS, shape.most, views, running is not None)
        merge_moments[shape.narrow](parts, weight, bias, saved, *moved, *more, num_warps=WARPS)
        added = residual if residual is not None else x
        apply_norm[shape.tiles](x, added, y, saved, *shape.sizes, ROWS, residual is not None, relu, num_warps=WARPS)
        ctx.save_for_backward(x, y if relu else None, weight, saved)
        ctx.added, ctx.relu, ctx.views = residual is not None, relu, views
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, y, weight, saved = ctx.saved_tensors
        dy = grads[0].contiguous(memory_format=torch.channels_last)
        shape, y = _Shape(x, ctx.views), x if y is None else y
        parts, factors = shape.numbers(2 * shape.parts), shape.numbers(3)
        gradients = factors.new_empty((2, shape.channels))
        sum_gradients[shape.summed](dy, x, y, saved, parts, *shape.summing, ROWS, STAGES, ctx.relu, num_warps=WARPS)
        of = (parts, weight, saved, factors, gradients, *shape.sizes, shape.parts)
        merge_gradients[shape.narrow](*of, shape.most, ctx.views, num_warps=WARPS)
        dx = torch.empty_like(x)
        dresidual = torch.empty_like(x) if ctx.added and ctx.relu else dx
        both = (ROWS, ctx.added and ctx.relu, ctx.relu)
        apply_gradient[shape.tiles](dy, x, y, factors, dx, dresidual, *shape.sizes, *both, num_warps=WARPS)
        # Without ReLU the residual's gradient is the output's own.
        passed = None if not ctx.added else dresidual if ctx.relu else dy
        return dx, gradients[0].to(weight.dtype), gradients[1].to(weight.dtype), passed, None, None, None, None, None


class _Shape:
    """How maps (n, c, h, w) are cut for the kernels: by views, as rows of pixels and columns of channels."""

    def __init__(self, x: Tensor, views: int) -> None:
        self.x, self.views, self.channels = x, views, x.shape[1]
        pixels = x.numel() // self.channels // views
        tiles, blocks = triton.cdiv(pixels, ROWS), triton.cdiv(self.channels, COLUMNS.value)
        most = max(1, PARTS // views)
        steps = triton.cdiv(tiles, most)
        self.parts, self.most = triton.cdiv(tiles, steps), triton.next_power_of_2(most)
        self.sizes = (pixels, self.channels)
        self.summing = (*self.sizes, steps, self.parts)
        self.summed, self.tiles = (self.parts, blocks, views), (tiles, blocks, views)
        self.narrow = (triton.cdiv(self.channels, NARROW.value),)

    def numbers(self, rows: int) -> Tensor:
        """Room for so many float32 numbers of each view's channels."""
        return self.x.new_empty((self.views, rows, self.channels), dtype=torch.float32)


def fused_batch_norm(
    x: Tensor, norm: torch.nn.BatchNorm2d, *, residual: Tensor | None = None, relu: bool = True, views: int = 1
) -> Tensor:
    """relu(norm(x) + residual) by the statistics of the batch; running statistics move as torch's do.

    Args:
        x: maps (n, c, h, w), channels last; residual: of the same kind, added before ReLU.
        norm: with weight and bias; in train mode its running statistics move, if it keeps any.
        views: number of equal parts of x, one after another, each with statistics of its own, as in a call for each.
    """
    running = None
    if norm.training and norm.track_running_stats and norm.running_mean is not None:
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        running = norm.running_mean, norm.running_var, norm.num_batches_tracked
    if residual is not None:
        residual = residual.to(x.dtype).contiguous(memory_format=torch.channels_last)
    return _Fused.apply(x, norm.weight, norm.bias, residual, running, norm.momentum, norm.eps, relu, views)
