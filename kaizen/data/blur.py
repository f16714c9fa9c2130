"""Gaussian blur of views as PIL does it: each line of pixels times a matrix, with exact products as in a crop."""

from collections.abc import Iterator

import torch
from einops import rearrange
from torch import Tensor

from kaizen.data.colour import apply_to
from kaizen.data.crop import GRID, exact_products, resample, to_levels

BLOCK = 32
"""Pixels of a long line that are computed at a time."""


def blur(images: Tensor, chosen: Tensor, sigma: Tensor, largest: float, out: Tensor | None = None) -> Tensor:
    """Images (n, 3, h, w) in grey levels, those `chosen` (n,) blurred by PIL's GaussianBlur of sigma (n,) pixels.

    As in PIL a Gaussian is three box filters with the border repeated (Gwosdek et al. 2011, "Theoretical foundations
    of Gaussian convolution by extended box filtering"). Grey levels differ from PIL's by at most 2 from sigma 0.3 on
    and by at most 4 below, as PIL rounds six times and this twice. No sigma may exceed `largest`.
    """

    def blurred(some: Tensor, sigma: Tensor) -> Tensor:
        n, channels, *shape = some.shape
        sides = [_window(length, largest) for length in shape]
        rows = blur_weights(sigma, sides[0], largest)
        columns = rows if sides[0] == sides[1] else blur_weights(sigma, sides[1], largest)
        if sides == shape:
            return resample(some.round(), rows, columns)
        # So laid out, an image is one matrix along either axis.
        pixels = torch.round(rearrange(some, "n c h w -> n h c w"), out=some.new_empty(n, shape[0], channels, shape[1]))
        pixels = blur_blocks(pixels.flatten(1, 2), columns, largest, along_rows=True).view_as(pixels)
        pixels = blur_blocks(pixels.flatten(2, 3), rows, largest, along_rows=False).view_as(pixels)
        return rearrange(pixels, "n h c w -> n c h w")

    return apply_to(chosen, blurred, images, sigma, out=out)


def _reach(largest: float) -> int:
    """How far from a pixel a blur reaches: each of its three boxes goes one pixel beyond its own radius."""
    return 3 * (int(largest) + 1)


def _window(length: int, largest: float) -> int:
    """Side of the matrix that blurs a line: its length, or for a long line that of a block and what it reaches."""
    around = BLOCK + 2 * _reach(largest)
    return around if 2 * length >= 3 * around else length


def blur_blocks(lines: Tensor, weights: Tensor, largest: float, *, along_rows: bool) -> Tensor:
    """Blur along the rows, or else the columns, without most of the zeros in the matrices of whole lines.

    Args:
        lines: (n, h, w), whole grey levels.
        weights: (n, k, k) of `blur_weights` for the same `largest`. Each block of a line is computed from the k pixels
            around it, as if they were the line; k is the length of the line, or less but above 2 * _reach(largest).

    Returns:
        (n, h, w), whole grey levels in 0..255.
    """
    result = torch.empty_like(lines)
    with exact_products(lines.device):
        for block, around, inside in _blocks(lines.shape[2 if along_rows else 1], weights.shape[2], _reach(largest)):
            if along_rows:
                matrices = rearrange(weights[:, inside], "n to at -> n at to")
                torch.bmm(lines[:, :, around], matrices, out=result[:, :, block])
            else:
                torch.bmm(weights[:, inside], lines[:, around], out=result[:, block])
    return to_levels(result)


def _blocks(length: int, window: int, reach: int) -> Iterator[tuple[slice, slice, slice]]:
    """Blocks of a line, the window around each, and where in its window each lies.

    An end of a window is an end of the line too, or so far from the block that it does not show.
    """
    size = length if window == length else window - 2 * reach
    for first in range(0, length, size):
        last = min(first + size, length)
        begin = max(0, min(first - reach, length - window))
        yield slice(first, last), slice(begin, begin + window), slice(first - begin, last - begin)


def blur_weights(sigma: Tensor, length: int, largest: float) -> Tensor:
    """Matrices (n, length, length) that blur a line by sigma (n,) pixels, none above `largest`."""
    variance = sigma.square() / 3
    whole = ((torch.sqrt(12 * variance + 1) - 1) / 2).floor()
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1).square()))
    radius = (whole + part)[:, None, None]
    border = int(largest) + 2
    target, pixel = (
        torch.arange(length, device=sigma.device),
        torch.arange(-border, length + border, device=sigma.device),
    )
    box = (radius + 1 - (target[:, None] - pixel).abs()).clamp_(0, 1).div_(2 * radius + 1)
    once = box[:, :, border : border + length].clone()
    once[:, :, 0] += box[:, :, :border].sum(dim=2)
    once[:, :, -1] += box[:, :, border + length :].sum(dim=2)
    # Few enough bits for each product to be exact in float32.
    with exact_products(sigma.device):
        once = _round_rows(once, 2.0**11)
        twice = _round_rows(torch.bmm(once, once), 2.0**12)
        return _round_rows(torch.bmm(twice, once), GRID)


def _round_rows(weights: Tensor, grid: float) -> Tensor:
    """Square matrices rounded, in place, to multiples of 1 / grid, with the diagonal making each row sum to one."""
    weights.mul_(grid).round_().mul_(1 / grid)
    weights.diagonal(dim1=1, dim2=2).add_(1 - weights.sum(dim=2))
    return weights
