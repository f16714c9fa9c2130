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


class _Fused(torch.autograd.Function):
    """relu(batch_norm(x) + residual) of channels-last maps (n, c, h, w), by the statistics of the batch."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        residual: Tensor | None,
        running: tuple[Tensor, Tensor] | None,
        momentum: float,
        eps: float,
        relu: bool,
    ) -> Tensor:
        shape = _Shape(x)
        parts = x.new_empty((2 * shape.parts, shape.channels), dtype=torch.float32)
        saved = x.new_empty((4, shape.channels), dtype=torch.float32)
        y = torch.empty_like(x)
        sum_moments[shape.summed](x, parts, *shape.sizes, shape.steps, ROWS, num_warps=WARPS)
        mean, var = running if running is not None else (saved, saved)
        numbers = (*shape.sizes, shape.steps, shape.parts, momentum, eps)
        merge_moments[shape.narrow](
            parts, weight, bias, saved, mean, var, *numbers, ROWS, PARTS, running is not None, num_warps=WARPS
        )
        added = residual if residual is not None else x
        apply_norm[shape.tiles](x, added, y, saved, *shape.sizes, ROWS, residual is not None, relu, num_warps=WARPS)
        ctx.save_for_backward(x, y if relu else None, weight, saved)
        ctx.added, ctx.relu = residual is not None, relu
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, y, weight, saved = ctx.saved_tensors
        dy = grads[0].contiguous(memory_format=torch.channels_last)
        shape, y = _Shape(x), x if y is None else y
        parts = x.new_empty((2 * shape.parts, shape.channels), dtype=torch.float32)
        factors, gradients = (x.new_empty((rows, shape.channels), dtype=torch.float32) for rows in (3, 2))
        sum_gradients[shape.summed](dy, x, y, saved, parts, *shape.sizes, shape.steps, ROWS, ctx.relu, num_warps=WARPS)
        of = (parts, weight, saved, factors, gradients, *shape.sizes, shape.parts)
        merge_gradients[shape.narrow](*of, PARTS, num_warps=WARPS)
        dx = torch.empty_like(x)
        dresidual = torch.empty_like(x) if ctx.added and ctx.relu else dx
        both = (ROWS, ctx.added and ctx.relu, ctx.relu)
        apply_gradient[shape.tiles](dy, x, y, factors, dx, dresidual, *shape.sizes, *both, num_warps=WARPS)
        # Without ReLU the residual's gradient is the output's own.
        passed = None if not ctx.added else dresidual if ctx.relu else dy
        return dx, gradients[0].to(weight.dtype), gradients[1].to(weight.dtype), passed, None, None, None, None


class _Shape:
    """How maps (n, c, h, w) are cut for the kernels: as rows of pixels and columns of channels."""

    def __init__(self, x: Tensor) -> None:
        self.channels = x.shape[1]
        pixels = x.numel() // self.channels
        tiles, blocks = triton.cdiv(pixels, ROWS), triton.cdiv(self.channels, COLUMNS.value)
        self.steps = triton.cdiv(tiles, PARTS)
        self.parts = triton.cdiv(tiles, self.steps)
        self.sizes = (pixels, self.channels)
        self.summed, self.tiles = (self.parts, blocks), (tiles, blocks)
        self.narrow = (triton.cdiv(self.channels, NARROW.value),)


def fused_batch_norm(
    x: Tensor, norm: torch.nn.BatchNorm2d, *, residual: Tensor | None = None, relu: bool = True
) -> Tensor:
    """relu(norm(x) + residual) by the statistics of the batch; running statistics move as torch's do.

    Args:
        x: maps (n, c, h, w), channels last; residual: of the same kind, added before ReLU.
        norm: with weight and bias; in train mode its running statistics move, if it keeps any.
    """
    running = None
    if norm.training and norm.track_running_stats and norm.running_mean is not None:
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        running = norm.running_mean, norm.running_var
        norm.num_batches_tracked.add_(1)
    if residual is not None:
        residual = residual.to(x.dtype).contiguous(memory_format=torch.channels_last)
    return _Fused.apply(x, norm.weight, norm.bias, residual, running, norm.momentum, norm.eps, relu)
