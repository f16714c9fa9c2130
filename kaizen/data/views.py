"""The views of a batch: SSL augmentations on the device, drawn per image from its key, without per-image Python.

Between crop and normalisation an image is float32 in grey levels, 0..255. Nothing here waits for the device.
"""

from enum import IntEnum

import torch
from torch import Tensor

from kaizen.config import ViewConfig
from kaizen.data.crop import BOX_DRAWS, GRID, crop_resize, exact_products, resample, sample_boxes
from kaizen.data.random import uniform

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R 601, as in PIL)."""
SOLARIZE_FROM = 128
CACHED_PIXELS = 64 * 32 * 32
"""Pixels that one CPU core augments at a time: each image tensor of such a part stays in the core's cache."""


class Draw(IntEnum):
    """Column of each random number of a view: fixed, so that an operation switched off shifts no other's draws."""

    JITTER = 0
    BRIGHTNESS = 1
    CONTRAST = 2
    SATURATION = 3
    HUE = 4
    ORDER = 5
    GRAY = 9
    BLUR = 10
    BLUR_SIGMA = 11
    SOLARIZE = 12
    FLIP = 13
    BOX = 14
    END = 14 + BOX_DRAWS


class Part(IntEnum):
    """The parts of colour jitter, as numbered in its `order`."""

    BRIGHTNESS = 0
    CONTRAST = 1
    SATURATION = 2
    HUE = 3


def normalize(images: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Images (n, 3, h, w) in grey levels (uint8, or float 0..255) minus mean over std, both (3,) in units of 0..1."""
    scale = 1 / (255 * std)
    return (images * scale[:, None, None]).sub_((mean / std)[:, None, None]).to(dtype)


def augment(
    images: Tensor,
    keys: Tensor,
    view: int,
    parameters: ViewConfig,
    size: int,
    mean: Tensor,
    std: Tensor,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """One view of each image: crop, colour jitter, grey, blur, solarise, flip, normalise (SimCLR, solo-learn's order).

    Args:
        images: uint8 (n, 3, h, w).
        keys: int64 (n,), on the same device; an image's view is a function of its key and `view` alone.
        view: index of the view.
        parameters: how the view is drawn.
        size: side of the result in pixels.
        mean, std: (3,) of the data set, in units of 0..1.
        dtype: of the result.

    Returns:
        (n, 3, size, size) on the device of the images.
    """
    draws = uniform(keys, Draw.END, stream=view)
    part = max(1, CACHED_PIXELS // (size * size) if images.device.type == "cpu" else len(images))
    views = [
        normalize(_distort(some, drawn, parameters, size), mean, std, dtype)
        for some, drawn in zip(images.split(part), draws.split(part), strict=True)
    ]
    return torch.cat(views)


def _distort(images: Tensor, draws: Tensor, parameters: ViewConfig, size: int) -> Tensor:
    """The operations before normalisation; those with probability 0 cost nothing."""
    height, width = images.shape[2:]
    box = sample_boxes(draws[:, Draw.BOX :], height, width, parameters.crop_scale, parameters.crop_ratio)
    # Every later operation commutes with a mirror, and inside the crop it is free.
    flip = draws[:, Draw.FLIP] < parameters.flip_p if parameters.flip_p else None
    x = crop_resize(images, *box, size, flip)
    if parameters.jitter_p and any(parameters.jitter):
        x = jitter(x, *sample_jitter(draws, parameters.jitter, parameters.jitter_p))
    if parameters.gray_p:
        x = gray(x, draws[:, Draw.GRAY] < parameters.gray_p)
    if parameters.blur_p:
        low, high = parameters.blur_sigma
        x = blur(x, draws[:, Draw.BLUR] < parameters.blur_p, low + (high - low) * draws[:, Draw.BLUR_SIGMA], high)
    if parameters.solarize_p:
        x = solarize(x, draws[:, Draw.SOLARIZE] < parameters.solarize_p)
    return x


def sample_jitter(
    draws: Tensor, strengths: tuple[float, float, float, float], probability: float
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    """Arguments of `jitter` by the law of torchvision's ColorJitter; neutral ones for images that get no jitter."""
    applied = draws[:, Draw.JITTER] < probability
    factors = []
    for strength, column in zip(strengths[:3], (Draw.BRIGHTNESS, Draw.CONTRAST, Draw.SATURATION), strict=True):
        low, high = max(0.0, 1 - strength), 1 + strength
        factors.append(torch.where(applied, low + (high - low) * draws[:, column], 1.0))
    hue = torch.where(applied, strengths[3] * (2 * draws[:, Draw.HUE] - 1), 0.0) if strengths[3] else None
    order = draws[:, Draw.ORDER : Draw.ORDER + len(Part)].argsort(dim=1, stable=True)
    return factors[0], factors[1], factors[2], hue, order


def jitter(
    images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor | None, order: Tensor
) -> Tensor:
    """Colour jitter whose four parts follow, in each image, an order of its own.

    Args:
        images: float32 (n, 3, h, w), grey levels.
        brightness, contrast, saturation: (n,) factors, 1 = unchanged.
        hue: (n,) turns in -0.5..0.5, or None when no image gets another hue.
        order: int64 (n, 4), the Part at each position.
    """
    place = order.argsort(dim=1)
    turn = place[:, Part.HUE]
    # Among themselves: the three blends that remain when the hue is taken out of the order.
    rank = place[:, : Part.HUE] - (place[:, : Part.HUE] > turn[:, None]).to(torch.int64)
    blends = rank.argsort(dim=1)
    factors = torch.stack([brightness, contrast, saturation], dim=1).gather(1, blends)
    pixels = images.flatten(2)
    if hue is None:
        for k in range(3):
            pixels = _blend(pixels, blends[:, k], factors[:, k])
        return pixels.view_as(images)
    # Turning the hue costs most, so it is done once, between two passes over the blends that come before and after it.
    for k in range(3):
        pixels = _blend(pixels, blends[:, k], torch.where(turn > k, factors[:, k], 1.0))
    pixels = _turn_hue(pixels, hue)
    for k in range(3):
        pixels = _blend(pixels, blends[:, k], torch.where(turn <= k, factors[:, k], 1.0))
    return pixels.view_as(images)


def _blend(pixels: Tensor, part: Tensor, factor: Tensor) -> Tensor:
    """factor * pixels (n, 3, p) + (1 - factor) * base, in 0..255; base: 0, the mean grey, or each pixel's grey."""
    rest = 1 - factor
    shade = _shade(pixels)
    from_mean = torch.where(part == Part.CONTRAST, rest, 0.0) * _exact_mean(shade)
    from_gray = torch.where(part == Part.SATURATION, rest, 0.0)
    base = torch.addcmul(from_mean[:, None], shade, from_gray[:, None])
    return torch.addcmul(base[:, None], pixels, factor[:, None, None]).clamp_(0, 255)


def _shade(pixels: Tensor) -> Tensor:
    """Grey (n, ...) of pixels (n, 3, ...)."""
    red, green, blue = pixels.unbind(1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def _exact_mean(shade: Tensor) -> Tensor:
    """Mean (n,) of each row, to 1/256 level: whole numbers add up to the same in any order, on any device."""
    return (shade * 256).to(torch.int32).sum(dim=1) / (256.0 * shade.shape[1])


def _turn_hue(pixels: Tensor, turns: Tensor) -> Tensor:
    """Pixels (n, 3, p) with their hue turned and HSV's saturation and value kept; exactly the same ones for no turn."""
    red, green, blue = pixels.unbind(1)
    top = torch.maximum(torch.maximum(red, green), blue)
    chroma = top - torch.minimum(torch.minimum(red, green), blue)
    sextant = torch.where(top == green, blue - red + 2 * chroma, red - green + 4 * chroma)
    sextant = torch.where(top == red, green - blue, sextant).div_(chroma.clamp(min=1e-6))
    sextant = sextant.add_(6 * turns[:, None])
    sextant = sextant.sub_((sextant / 6).floor_(), alpha=6)
    # A channel is at the top up to one sextant from its own hue, at the bottom from two on, and linear in between.
    own = torch.arange(0, 6, 2, device=pixels.device)[:, None]
    near = (sextant[:, None] - own).abs_().sub_(3).abs_().clamp_(1, 2)
    turned = torch.addcmul((top - 2 * chroma)[:, None], chroma[:, None], near).clamp_(0, 255)
    return torch.where(turns[:, None, None] == 0, pixels, turned)


def gray(images: Tensor, chosen: Tensor) -> Tensor:
    """Images (n, 3, h, w), those `chosen` (n,) in grey, which all three channels then hold."""
    return torch.where(chosen[:, None, None, None], _shade(images)[:, None], images)


def solarize(images: Tensor, chosen: Tensor) -> Tensor:
    """Images (n, 3, h, w) in grey levels, those `chosen` (n,) with every level from 128 on inverted."""
    start = torch.where(chosen, float(SOLARIZE_FROM), torch.inf)[:, None, None, None]
    return torch.where(images >= start, 255 - images, images)


def blur(images: Tensor, chosen: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Images (n, 3, h, w) in grey levels, those `chosen` (n,) blurred by PIL's GaussianBlur of sigma (n,) pixels.

    As in PIL a Gaussian is three box filters with the border repeated (Gwosdek et al. 2011, "Theoretical foundations
    of Gaussian convolution by extended box filtering"). Grey levels differ from PIL's by at most 2 from sigma 0.3 on
    and by at most 4 below, as PIL rounds six times and this twice. No sigma may exceed `largest`.
    """
    height, width = images.shape[2:]
    columns = blur_weights(sigma, width, largest)
    rows = columns if height == width else blur_weights(sigma, height, largest)
    return torch.where(chosen[:, None, None, None], resample(images.round(), rows, columns), images)


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
