"""Random resized crops of a batch: boxes drawn as torchvision draws them, pixels resampled as PIL does.

A crop is two small matrices per image, one along each axis. Pixels are whole numbers and weights multiples of 2**-15,
so a float32 product (not a TF32 one) is exact in any order of summation: an image's crop depends neither on the rest
of the batch nor on the number of threads.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from einops import rearrange
from torch import Tensor

TRIES = 10
BOX_DRAWS = 2 * TRIES + 2
GRID = 2.0**15
"""Weights are multiples of 1 / GRID: 255 * sum(abs(weights)) * GRID stays below 2**24, what float32 counts exactly."""
TABLE = 2**21
"""Maximum number of entries of a table of weights: 8 MB."""

Box = tuple[Tensor, Tensor, Tensor, Tensor]


def sample_boxes(
    draws: Tensor, height: int | Tensor, width: int | Tensor, scale: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """Crop boxes (top, left, height, width), int64 (n,) in pixels, by the law of torchvision's RandomResizedCrop.

    Args:
        draws: (n, BOX_DRAWS) numbers in [0, 1).
        height, width: of all images, or int64 (n,) of each.
        scale: smallest and largest area, as a part of the image's.
        ratio: smallest and largest width / height; its logarithm is uniform.
    """
    # Filled, as copying a number to a GPU would make the host wait.
    height, width = (
        side.to(torch.float32) if isinstance(side, Tensor) else torch.full_like(draws[:, 0], side)
        for side in (height, width)
    )
    area = (height * width)[:, None] * (scale[0] + (scale[1] - scale[0]) * draws[:, :TRIES])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = torch.exp(low + (high - low) * draws[:, TRIES : 2 * TRIES])
    tall, wide = torch.sqrt(area / aspect).round(), torch.sqrt(area * aspect).round()
    fits = (tall > 0) & (tall <= height[:, None]) & (wide > 0) & (wide <= width[:, None])
    found, first = fits.any(dim=1), fits.to(torch.uint8).argmax(dim=1, keepdim=True)
    central = _central_box(height, width, ratio)
    tall = torch.where(found, tall.gather(1, first)[:, 0], central[0])
    wide = torch.where(found, wide.gather(1, first)[:, 0], central[1])
    top = _place(draws[:, -2], height - tall, found)
    left = _place(draws[:, -1], width - wide, found)
    return top.long(), left.long(), tall.long(), wide.long()


def _central_box(height: Tensor, width: Tensor, ratio: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Height and width of torchvision's fallback: the largest central box with an allowed ratio."""
    shape = width / height
    tall = torch.where(shape < ratio[0], (width / ratio[0]).round().clamp(min=1), height)
    return tall, torch.where(shape > ratio[1], (height * ratio[1]).round().clamp(min=1), width)


def _place(draws: Tensor, room: Tensor, found: Tensor) -> Tensor:
    """Start of a box that has `room` pixels to move in; in the middle where no try fitted."""
    # For draws so close to 1 that the product is rounded up.
    drawn = torch.minimum(torch.floor(draws * (room + 1)), room)
    return torch.where(found, drawn, torch.floor(room / 2))


def crop_resize(
    images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor, size: int, flip: Tensor | None = None
) -> Tensor:
    """Crop and resize each image as PIL does (bicubic, antialiased): within 2 grey levels, 98 % of them equal.

    PIL here is Pillow up to 12, which always works along the rows first; Pillow 13 (its #9549) begins with the columns
    where a tall crop shrinks, which changes steep edges.

    Args:
        images: uint8 (n, c, h, w).
        top, left, height, width: (n,) boxes in pixels, inside the images.
        flip: bool (n,), which crops are mirrored left to right.

    Returns:
        float32 (n, c, size, size), whole grey levels in 0..255.
    """
    rows = bicubic_weights(top, height, images.shape[2], size)
    columns = bicubic_weights(left, width, images.shape[3], size, flip)
    return resample(images, rows, columns)


def bicubic_weights(start: Tensor, length: Tensor, source: int, size: int, flip: Tensor | None = None) -> Tensor:
    """Matrices (n, size, source), float32, that resize pixels start .. start + length of a line to `size` pixels.

    The kernel is Keys' (1981) with a = -1/2, widened when it shrinks the line; flip, bool (n,), reverses the result.
    """
    boxes = source * (source + 1) // 2
    if 2 * boxes * size * source > TABLE:
        return _weights(start, length, source, size, flip)
    place = (length - 1) * (2 * source + 2 - length) // 2 + start
    return _table(source, size, start.device).index_select(0, place if flip is None else place + boxes * flip)


# A tenth of the time that computing the weights takes. Copied to a GPU once, which makes the host wait.
@lru_cache(maxsize=64)
def _table(source: int, size: int, device: torch.device) -> Tensor:
    """Weights of all boxes, the shorter and then those further left first, and then of the same boxes flipped."""
    boxes = [(start, length) for length in range(1, source + 1) for start in range(source + 1 - length)]
    start, length = torch.tensor([*boxes, *boxes]).T
    return _weights(start, length, source, size, torch.arange(2 * len(boxes)) >= len(boxes)).to(device)


def _weights(start: Tensor, length: Tensor, source: int, size: int, flip: Tensor | None) -> Tensor:
    """The weights of `bicubic_weights`, computed."""
    step = (length / size)[:, None, None]
    stretch = step.clamp(min=1)
    pixels = torch.arange(source, device=start.device) + 0.5
    places = (torch.arange(size, device=start.device) + 0.5)[:, None]
    if flip is not None:
        places = torch.where(flip[:, None, None], size - places, places)
    first, last = start[:, None, None], (start + length)[:, None, None]
    distance = ((pixels - (first + places * step)) / stretch).abs_()
    # Each piece of the kernel is 0 where the other one begins, so clamping replaces choosing between them.
    near, far = distance.clamp(max=1), distance.clamp_(1, 2)
    weights = (near * 1.5 - 2.5).mul_(near).mul_(near).add_(1)
    weights.sub_((far - 2).square_().mul_(far - 1), alpha=0.5)
    # Whole numbers before the sum, so that the sum is exact too.
    weights = weights.mul_(((pixels > first) & (pixels < last)) * (GRID / stretch)).round_()
    return weights.mul_(GRID / weights.sum(dim=2, keepdim=True)).round_().mul_(1 / GRID)


def resample(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Multiply each image by a matrix along each axis, rounding to whole grey levels after each as PIL does.

    Args:
        images: uint8 or float32 (n, c, h, w), whole grey levels.
        rows, columns: (n, height, h) and (n, width, w), multiples of 1 / GRID whose rows sum to about 1.

    Returns:
        float32 (n, c, height, width), whole grey levels in 0..255.
    """
    with exact_products(images.device):
        pixels = rearrange(images.to(rows.dtype), "n c h w -> n (c h) w")
        wide = to_levels(torch.bmm(pixels, rearrange(columns, "n width w -> n w width")))
        wide = rearrange(wide, "n (c h) width -> n c h width", c=images.shape[1])
        del pixels
        # One plane of all images after another in memory: later operations take the channels apart.
        planes = wide.new_empty(wide.shape[1], len(wide), rows.shape[1], columns.shape[1])
        for plane, channel in zip(planes, wide.unbind(1), strict=True):
            torch.bmm(rows, channel, out=plane)
    return rearrange(to_levels(planes), "c n height width -> n c height width")


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Products in full float32: neither autocast's bfloat16 nor TF32, which would round the weights."""
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


def to_levels(x: Tensor) -> Tensor:
    """Numbers of any shape rounded, in place, to whole grey levels in 0..255; halves go up, as in PIL."""
    return x.add_(0.5).floor_().clamp_(0, 255)
