"""Triton kernels of BatchNorm and the operations that follow it; `fused_norm` launches them.

Maps are rows of pixels and columns of channels (channels last). Sums and statistics are float32. No sum is atomic, so
the same input gives the same bits.
"""

import triton
import triton.language as tl

COLUMNS, NARROW = tl.constexpr(64), tl.constexpr(16)
"""Channels per program; the second where one program adds up all parts."""


@triton.jit
def _tile(pointer, rows, columns, mask, channels):  # type: ignore[no-untyped-def]
    return tl.load(pointer + rows.to(tl.int64)[:, None] * channels + columns[None, :], mask=mask, other=0.0)


@triton.jit
def sum_moments(x, parts, pixels, channels, steps, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
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
def merge_moments(  # type: ignore[no-untyped-def]
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
    PARTS: tl.constexpr,
    TRACKED: tl.constexpr,
):
    """Mean, 1 / std, scale and shift of each channel from the parts (Chan et al. 1979); running statistics move."""
    columns, part = tl.program_id(0) * NARROW + tl.arange(0, NARROW), tl.arange(0, PARTS)
    held = columns < channels
    mask = (part < count)[:, None] & held[None, :]
    place = (2 * part)[:, None] * channels + columns[None, :]
    means = tl.load(parts + place, mask=mask, other=0.0)
    deviations = tl.load(parts + place + channels, mask=mask, other=0.0)
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
def apply_norm(  # type: ignore[no-untyped-def]
    x, residual, y, saved, pixels, channels, ROWS: tl.constexpr, ADDED: tl.constexpr, RELU: tl.constexpr
):
    """relu(x * scale + shift + residual)."""
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
def sum_gradients(  # type: ignore[no-untyped-def]
    dy, x, y, saved, parts, pixels, channels, steps, ROWS: tl.constexpr, RELU: tl.constexpr
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
def merge_gradients(  # type: ignore[no-untyped-def]
    parts, weight, saved, factors, gradients, pixels, channels, count, PARTS: tl.constexpr
):
    """Gradients of weight and bias, and the factors of dx = a g + p x + q for each channel."""
    columns, part = tl.program_id(0) * NARROW + tl.arange(0, NARROW), tl.arange(0, PARTS)
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
def apply_gradient(  # type: ignore[no-untyped-def]
    dy, x, y, factors, dx, dresidual, pixels, channels, ROWS: tl.constexpr, ADDED: tl.constexpr, RELU: tl.constexpr
):
    """Gradients of x, dx = a g + p x + q, and of the residual, g."""
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
