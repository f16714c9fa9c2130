"""BatchNorm with what follows it (the residual's sum, ReLU) in one pass over memory, as Triton kernels for NVIDIA GPUs.

torch's own kernels for channels-last bfloat16 read each map several times over and reach a fifth of the memory's
speed in the statistics. Here a map is read twice and written once, forwards; the arithmetic is float32. No sum is
atomic, so the same input gives the same bits. Imported only where it is used, as Triton needs a GPU's compiler.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS = 128, 64
"""Pixels and channels that a program takes at a time."""
PARTS = 256
"""Most parts that the pixels are summed in, each by a program of its own; then one program adds up the parts."""


@triton.jit
def _tile(pointer, rows, columns, mask, channels):  # type: ignore[no-untyped-def]
    return tl.load(pointer + rows.to(tl.int64)[:, None] * channels + columns[None, :], mask=mask, other=0.0)


@triton.jit
def _moments(x, parts, pixels, channels, steps, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Mean and sum of squared deviations of each channel over the pixels of one part."""
    part, columns = tl.program_id(0), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    held = columns < channels
    first = part * steps * ROWS
    # Deviations from a pixel of the part, so that squares of a large mean do not cancel.
    shift = tl.load(x + first.to(tl.int64) * channels + columns, mask=held, other=0.0).to(tl.float32)
    sums, squares = tl.zeros((ROWS, COLUMNS), tl.float32), tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in range(steps):
        rows = first + step * ROWS + tl.arange(0, ROWS)
        mask = (rows < pixels)[:, None] & held[None, :]
        value = tl.where(mask, _tile(x, rows, columns, mask, channels).to(tl.float32) - shift[None, :], 0.0)
        sums += value
        squares += value * value
    count = tl.minimum(steps * ROWS, pixels - first).to(tl.float32)
    total = tl.sum(sums, axis=0)
    mean = shift + total / count
    tl.store(parts + (2 * part) * channels + columns, mean, mask=held)
    tl.store(parts + (2 * part + 1) * channels + columns, tl.sum(squares, axis=0) - total * total / count, mask=held)


@triton.jit
def _statistics(  # type: ignore[no-untyped-def]
    parts,
    weight,
    bias,
    saved,
    running_mean,
    running_var,
    pixels,
    channels,
    steps,
    count,
    momentum,
    eps,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PARTS: tl.constexpr,
    TRACKED: tl.constexpr,
):
    """Mean, 1 / std, scale and shift of each channel from the parts (Chan et al. 1979); running statistics move."""
    columns, part = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, PARTS)
    held = columns < channels
    mask = (part < count)[:, None] & held[None, :]
    place = (2 * part)[:, None] * channels + columns[None, :]
    means, deviations = (
        tl.load(parts + place, mask=mask, other=0.0),
        tl.load(parts + place + channels, mask=mask, other=0.0),
    )
    sizes = tl.minimum(steps * ROWS, pixels - part * steps * ROWS).to(tl.float32)[:, None]
    sizes = tl.where(mask, sizes, 0.0)
    mean = tl.sum(means * sizes, axis=0) / pixels
    apart = tl.where(mask, means - mean[None, :], 0.0)
    deviation = tl.sum(deviations + apart * apart * sizes, axis=0)
    inverse = 1.0 / tl.sqrt(deviation / pixels + eps)
    scale = inverse * tl.load(weight + columns, mask=held, other=0.0)
    shift = tl.load(bias + columns, mask=held, other=0.0) - mean * scale
    tl.store(saved + columns, mean, mask=held)
    tl.store(saved + channels + columns, inverse, mask=held)
    tl.store(saved + 2 * channels + columns, scale, mask=held)
    tl.store(saved + 3 * channels + columns, shift, mask=held)
    if TRACKED:
        old = tl.load(running_mean + columns, mask=held, other=0.0)
        tl.store(running_mean + columns, old + momentum * (mean - old), mask=held)
        old = tl.load(running_var + columns, mask=held, other=0.0)
        unbiased = deviation / tl.maximum(pixels - 1, 1)
        tl.store(running_var + columns, old + momentum * (unbiased - old), mask=held)


@triton.jit
def _apply(  # type: ignore[no-untyped-def]
    x,
    residual,
    y,
    saved,
    pixels,
    channels,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ADDED: tl.constexpr,
    RELU: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    held = columns < channels
    mask = (rows < pixels)[:, None] & held[None, :]
    scale = tl.load(saved + 2 * channels + columns, mask=held, other=0.0)
    shift = tl.load(saved + 3 * channels + columns, mask=held, other=0.0)
    value = _tile(x, rows, columns, mask, channels).to(tl.float32) * scale[None, :] + shift[None, :]
    if ADDED:
        value += _tile(residual, rows, columns, mask, channels).to(tl.float32)
    if RELU:
        value = tl.maximum(value, 0.0)
    place = y + rows.to(tl.int64)[:, None] * channels + columns[None, :]
    tl.store(place, value.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _gradient_sums(  # type: ignore[no-untyped-def]
    dy,
    x,
    y,
    saved,
    parts,
    pixels,
    channels,
    steps,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RELU: tl.constexpr,
):
    """Sums over one part's pixels of the gradient, and of its product with the normalised x."""
    part, columns = tl.program_id(0), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    held = columns < channels
    mean = tl.load(saved + columns, mask=held, other=0.0)
    inverse = tl.load(saved + channels + columns, mask=held, other=0.0)
    sums, products = tl.zeros((ROWS, COLUMNS), tl.float32), tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in range(steps):
        rows = (part * steps + step) * ROWS + tl.arange(0, ROWS)
        mask = (rows < pixels)[:, None] & held[None, :]
        gradient = _tile(dy, rows, columns, mask, channels).to(tl.float32)
        if RELU:
            gradient = tl.where(_tile(y, rows, columns, mask, channels).to(tl.float32) > 0, gradient, 0.0)
        value = _tile(x, rows, columns, mask, channels).to(tl.float32)
        sums += gradient
        products += gradient * ((value - mean[None, :]) * inverse[None, :])
    tl.store(parts + (2 * part) * channels + columns, tl.sum(sums, axis=0), mask=held)
    tl.store(parts + (2 * part + 1) * channels + columns, tl.sum(products, axis=0), mask=held)


@triton.jit
def _gradient_statistics(  # type: ignore[no-untyped-def]
    parts,
    weight,
    saved,
    factors,
    gradients,
    pixels,
    channels,
    count,
    COLUMNS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Gradients of weight and bias, and the factors of dx = a g + p x + q for each channel."""
    columns, part = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, PARTS)
    held = columns < channels
    mask = (part < count)[:, None] & held[None, :]
    place = (2 * part)[:, None] * channels + columns[None, :]
    along = tl.sum(tl.load(parts + place, mask=mask, other=0.0), axis=0)
    across = tl.sum(tl.load(parts + place + channels, mask=mask, other=0.0), axis=0)
    mean = tl.load(saved + columns, mask=held, other=0.0)
    inverse = tl.load(saved + channels + columns, mask=held, other=0.0)
    scale = inverse * tl.load(weight + columns, mask=held, other=0.0)
    by_x = -scale * inverse * across / pixels
    tl.store(gradients + columns, across, mask=held)
    tl.store(gradients + channels + columns, along, mask=held)
    tl.store(factors + columns, scale, mask=held)
    tl.store(factors + channels + columns, by_x, mask=held)
    tl.store(factors + 2 * channels + columns, -scale * along / pixels - by_x * mean, mask=held)


@triton.jit
def _gradient(  # type: ignore[no-untyped-def]
    dy,
    x,
    y,
    factors,
    dx,
    dresidual,
    pixels,
    channels,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ADDED: tl.constexpr,
    RELU: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    held = columns < channels
    mask = (rows < pixels)[:, None] & held[None, :]
    gradient = _tile(dy, rows, columns, mask, channels).to(tl.float32)
    if RELU:
        gradient = tl.where(_tile(y, rows, columns, mask, channels).to(tl.float32) > 0, gradient, 0.0)
    a = tl.load(factors + columns, mask=held, other=0.0)
    p = tl.load(factors + channels + columns, mask=held, other=0.0)
    q = tl.load(factors + 2 * channels + columns, mask=held, other=0.0)
    value = _tile(x, rows, columns, mask, channels).to(tl.float32)
    place = rows.to(tl.int64)[:, None] * channels + columns[None, :]
    tl.store(dx + place, (a[None, :] * gradient + p[None, :] * value + q[None, :]).to(dx.dtype.element_ty), mask=mask)
    if ADDED:
        tl.store(dresidual + place, gradient.to(dresidual.dtype.element_ty), mask=mask)


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
        _moments[shape.summed](x, parts, *shape.sizes, shape.steps, ROWS, COLUMNS, num_warps=8)
        mean, var = running if running is not None else (saved, saved)
        numbers = (*shape.sizes, shape.steps, shape.parts, momentum, eps)
        _statistics[shape.narrow](
            parts, weight, bias, saved, mean, var, *numbers, ROWS, 16, PARTS, running is not None, num_warps=8
        )
        added = residual if residual is not None else x
        _apply[shape.tiles](x, added, y, saved, *shape.sizes, ROWS, COLUMNS, residual is not None, relu, num_warps=8)
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
        sums = (ROWS, COLUMNS, ctx.relu)
        _gradient_sums[shape.summed](dy, x, y, saved, parts, *shape.sizes, shape.steps, *sums, num_warps=8)
        of = (parts, weight, saved, factors, gradients, *shape.sizes, shape.parts)
        _gradient_statistics[shape.narrow](*of, 16, PARTS, num_warps=8)
        dx = torch.empty_like(x)
        dresidual = torch.empty_like(x) if ctx.added and ctx.relu else dx
        both = (ROWS, COLUMNS, ctx.added and ctx.relu, ctx.relu)
        _gradient[shape.tiles](dy, x, y, factors, dx, dresidual, *shape.sizes, *both, num_warps=8)
        # Without ReLU the residual's gradient is the output's own.
        passed = None if not ctx.added else dresidual if ctx.relu else dy
        return dx, gradients[0].to(weight.dtype), gradients[1].to(weight.dtype), passed, None, None, None, None


class _Shape:
    """How maps (n, c, h, w) are cut for the kernels: as rows of pixels and columns of channels."""

    def __init__(self, x: Tensor) -> None:
        self.channels = x.shape[1]
        pixels = x.numel() // self.channels
        tiles, blocks = triton.cdiv(pixels, ROWS), triton.cdiv(self.channels, COLUMNS)
        self.steps = triton.cdiv(tiles, PARTS)
        self.parts = triton.cdiv(tiles, self.steps)
        self.sizes = (pixels, self.channels)
        self.summed, self.tiles, self.narrow = (self.parts, blocks), (tiles, blocks), (triton.cdiv(self.channels, 16),)


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
    arguments = (x, norm.weight, norm.bias, residual, running, norm.momentum, norm.eps, relu)
    return _Fused.apply(*arguments)
