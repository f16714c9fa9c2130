"""Triton kernels of BatchNorm and the operations that follow it; `fused_norm` launches them.

Maps are rows of pixels and columns of channels (channels last), the rows of one view after those of another; each view
has statistics of its own. `pixels` counts those of a view. Sums and statistics are float32. No sum is atomic, so the
same input gives the same bits.
"""

import triton
import triton.language as tl

COLUMNS, NARROW = tl.constexpr(64), tl.constexpr(16)
"""Channels per program; the second where one program adds up all parts."""


@triton.jit
def _tile(pointer, rows, columns, mask, channels):  # type: ignore[no-untyped-def]
    return tl.load(pointer + rows.to(tl.int64)[:, None] * channels + columns[None, :], mask=mask, other=0.0)


@triton.jit
def _of_view(pointer, pixels, channels):  # type: ignore[no-untyped-def]
    """Where the maps of this program's view begin."""
    return pointer + tl.program_id(2).to(tl.int64) * pixels * channels


@triton.jit
def sum_moments(  # type: ignore[no-untyped-def]
    x, parts, pixels, channels, steps, count, ROWS: tl.constexpr, STAGES: tl.constexpr
):
    """Mean and sum of squared deviations of each channel over the pixels of one part, one of `count` of a view."""
    part, columns = tl.program_id(0), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    held, x = columns < channels, _of_view(x, pixels, channels)
    first = part * steps * ROWS
    # Deviations from a pixel of the part, so that squares of a large mean do not cancel.
    shift = tl.load(x + first.to(tl.int64) * channels + columns, mask=held, other=0.0).to(tl.float32)
    sums, squares = tl.zeros((ROWS, COLUMNS), tl.float32), tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in tl.range(steps, num_stages=STAGES):
        rows = first + step * ROWS + tl.arange(0, ROWS)
        mask = (rows < pixels)[:, None] & held[None, :]
        value = tl.where(mask, _tile(x, rows, columns, mask, channels).to(tl.float32) - shift[None, :], 0.0)
        sums += value
        squares += value * value
    size = tl.minimum(steps * ROWS, pixels - first).to(tl.float32)
    total = tl.sum(sums, axis=0)
    place = parts + 2 * (tl.program_id(2) * count + part) * channels + columns
    tl.store(place, shift + total / size, mask=held)
    tl.store(place + channels, tl.sum(squares, axis=0) - total * total / size, mask=held)


@triton.jit
def merge_moments(  # type: ignore[no-untyped-def]
    parts,
    weight,
    bias,
    saved,
    running_mean,
    running_var,
    batches,
    pixels,
    channels,
    steps,
    count,
    momentum,
    eps,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    VIEWS: tl.constexpr,
    TRACKED: tl.constexpr,
):
    """Mean, 1 / std, scale and shift of each view's channels from the parts (Chan et al. 1979).

    Running statistics move and batches are counted, one view after another.
    """
    columns, part = tl.program_id(0) * NARROW + tl.arange(0, NARROW), tl.arange(0, PARTS)
    held = columns < channels
    mask = (part < count)[:, None] & held[None, :]
    sizes = tl.minimum(steps * ROWS, pixels - part * steps * ROWS).to(tl.float32)[:, None]
    sizes = tl.where(mask, sizes, 0.0)
    gain, offset = tl.load(weight + columns, mask=held, other=0.0), tl.load(bias + columns, mask=held, other=0.0)
    moved_mean, moved_var = tl.zeros((NARROW,), tl.float32), tl.zeros((NARROW,), tl.float32)
    if TRACKED:
        moved_mean = tl.load(running_mean + columns, mask=held, other=0.0)
        moved_var = tl.load(running_var + columns, mask=held, other=0.0)
    for view in tl.static_range(VIEWS):
        place = 2 * (view * count + part)[:, None] * channels + columns[None, :]
        means = tl.load(parts + place, mask=mask, other=0.0)
        deviations = tl.load(parts + place + channels, mask=mask, other=0.0)
        mean = tl.sum(means * sizes, axis=0) / pixels
        apart = tl.where(mask, means - mean[None, :], 0.0)
        deviation = tl.sum(deviations + apart * apart * sizes, axis=0)
        inverse = 1.0 / tl.sqrt(deviation / pixels + eps)
        own = saved + 4 * view * channels + columns
        tl.store(own, mean, mask=held)
        tl.store(own + channels, inverse, mask=held)
        tl.store(own + 2 * channels, inverse * gain, mask=held)
        tl.store(own + 3 * channels, offset - mean * inverse * gain, mask=held)
        moved_mean += momentum * (mean - moved_mean)
        moved_var += momentum * (deviation / tl.maximum(pixels - 1, 1) - moved_var)
    if TRACKED:
        tl.store(running_mean + columns, moved_mean, mask=held)
        tl.store(running_var + columns, moved_var, mask=held)
        first = tl.program_id(0) == 0
        tl.store(batches, tl.load(batches, mask=first) + VIEWS, mask=first)


@triton.jit
def apply_norm(  # type: ignore[no-untyped-def]
    x, residual, y, saved, pixels, channels, ROWS: tl.constexpr, ADDED: tl.constexpr, RELU: tl.constexpr
):
    """relu(x * scale + shift + residual)."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    held, own = columns < channels, saved + 4 * tl.program_id(2) * channels + columns
    mask = (rows < pixels)[:, None] & held[None, :]
    scale = tl.load(own + 2 * channels, mask=held, other=0.0)
    shift = tl.load(own + 3 * channels, mask=held, other=0.0)
    x, y = _of_view(x, pixels, channels), _of_view(y, pixels, channels)
    value = _tile(x, rows, columns, mask, channels).to(tl.float32) * scale[None, :] + shift[None, :]
    if ADDED:
        value += _tile(_of_view(residual, pixels, channels), rows, columns, mask, channels).to(tl.float32)
    if RELU:
        value = tl.maximum(value, 0.0)
    place = y + rows.to(tl.int64)[:, None] * channels + columns[None, :]
    tl.store(place, value.to(y.dtype.element_ty), mask=mask)


@triton.jit
def sum_gradients(  # type: ignore[no-untyped-def]
    dy, x, y, saved, parts, pixels, channels, steps, count, ROWS: tl.constexpr, STAGES: tl.constexpr, RELU: tl.constexpr
):
    """Sums over one part's pixels of the gradient, and of its product with the normalised x."""
    part, columns = tl.program_id(0), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    held, own = columns < channels, saved + 4 * tl.program_id(2) * channels + columns
    mean = tl.load(own, mask=held, other=0.0)
    inverse = tl.load(own + channels, mask=held, other=0.0)
    dy, x, y = (_of_view(dy, pixels, channels), _of_view(x, pixels, channels), _of_view(y, pixels, channels))
    sums, products = tl.zeros((ROWS, COLUMNS), tl.float32), tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in tl.range(steps, num_stages=STAGES):
        rows = (part * steps + step) * ROWS + tl.arange(0, ROWS)
        mask = (rows < pixels)[:, None] & held[None, :]
        gradient = _tile(dy, rows, columns, mask, channels).to(tl.float32)
        if RELU:
            gradient = tl.where(_tile(y, rows, columns, mask, channels).to(tl.float32) > 0, gradient, 0.0)
        value = _tile(x, rows, columns, mask, channels).to(tl.float32)
        sums += gradient
        products += gradient * ((value - mean[None, :]) * inverse[None, :])
    place = parts + 2 * (tl.program_id(2) * count + part) * channels + columns
    tl.store(place, tl.sum(sums, axis=0), mask=held)
    tl.store(place + channels, tl.sum(products, axis=0), mask=held)


@triton.jit
def merge_gradients(  # type: ignore[no-untyped-def]
    parts, weight, saved, factors, gradients, pixels, channels, count, PARTS: tl.constexpr, VIEWS: tl.constexpr
):
    """Gradients of weight and bias over all views, and the factors of dx = a g + p x + q for each view's channels."""
    columns, part = tl.program_id(0) * NARROW + tl.arange(0, NARROW), tl.arange(0, PARTS)
    held = columns < channels
    mask = (part < count)[:, None] & held[None, :]
    gain = tl.load(weight + columns, mask=held, other=0.0)
    by_weight, by_bias = tl.zeros((NARROW,), tl.float32), tl.zeros((NARROW,), tl.float32)
    for view in tl.static_range(VIEWS):
        place = 2 * (view * count + part)[:, None] * channels + columns[None, :]
        along = tl.sum(tl.load(parts + place, mask=mask, other=0.0), axis=0)
        across = tl.sum(tl.load(parts + place + channels, mask=mask, other=0.0), axis=0)
        mean = tl.load(saved + 4 * view * channels + columns, mask=held, other=0.0)
        inverse = tl.load(saved + (4 * view + 1) * channels + columns, mask=held, other=0.0)
        scale = inverse * gain
        by_x = -scale * inverse * across / pixels
        own = factors + 3 * view * channels + columns
        tl.store(own, scale, mask=held)
        tl.store(own + channels, by_x, mask=held)
        tl.store(own + 2 * channels, -scale * along / pixels - by_x * mean, mask=held)
        by_weight += across
        by_bias += along
    tl.store(gradients + columns, by_weight, mask=held)
    tl.store(gradients + channels + columns, by_bias, mask=held)


@triton.jit
def apply_gradient(  # type: ignore[no-untyped-def]
    dy, x, y, factors, dx, dresidual, pixels, channels, ROWS: tl.constexpr, ADDED: tl.constexpr, RELU: tl.constexpr
):
    """Gradients of x, dx = a g + p x + q, and of the residual, g."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    held, own = columns < channels, factors + 3 * tl.program_id(2) * channels + columns
    mask = (rows < pixels)[:, None] & held[None, :]
    dy, x, y = (_of_view(dy, pixels, channels), _of_view(x, pixels, channels), _of_view(y, pixels, channels))
    gradient = _tile(dy, rows, columns, mask, channels).to(tl.float32)
    if RELU:
        gradient = tl.where(_tile(y, rows, columns, mask, channels).to(tl.float32) > 0, gradient, 0.0)
    a = tl.load(own, mask=held, other=0.0)
    p = tl.load(own + channels, mask=held, other=0.0)
    q = tl.load(own + 2 * channels, mask=held, other=0.0)
    value = _tile(x, rows, columns, mask, channels).to(tl.float32)
    value = a[None, :] * gradient + p[None, :] * value + q[None, :]
    place = rows.to(tl.int64)[:, None] * channels + columns[None, :]
    tl.store(_of_view(dx, pixels, channels) + place, value.to(dx.dtype.element_ty), mask=mask)
    if ADDED:
        place = _of_view(dresidual, pixels, channels) + place
        tl.store(place, gradient.to(dresidual.dtype.element_ty), mask=mask)
