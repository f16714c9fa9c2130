"""The views of a batch: SSL augmentations on the device, drawn per image from its key, without per-image Python.

Between crop and normalisation an image is float32 in grey levels, 0..255. Nothing here makes the host wait for a GPU.
"""

from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from kaizen.config.views import ViewConfig
from kaizen.data import operations
from kaizen.data.blur import blur
from kaizen.data.colour import LARGE, Part, gray, jitter, jitter_steps, on_cpu, solarize
from kaizen.data.crop import BOX_DRAWS, crop_resize, sample_boxes
from kaizen.data.pool import each, pool
from kaizen.data.random import uniform

CACHED_PIXELS = 96 * 32 * 32
"""Pixels that one CPU core augments at a time: each image tensor of such a part stays in the core's cache."""
LEAST = 8
"""Images that it augments at a time all the same, so that they share the operations on small tensors."""


class Column(IntEnum):
    """Column of each random number of a view; fixed, so that an operation switched off changes no other draw."""

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


class SampledView(NamedTuple):
    """Random parameters of each image's operations, one row per image; None: the operation is switched off."""

    box: Tensor | None
    flip: Tensor | None
    blends: Tensor | None
    turns: Tensor | None
    gray: Tensor | None
    blur: Tensor | None
    sigma: Tensor
    solarize: Tensor | None
    extra: Tensor | None
    """Random numbers (n, k) of the user's own operations."""


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Images (n, 3, h, w) in grey levels (uint8, or float 0..255) minus mean over std, both (3,) in units of 0..1."""
    scale, shift = _scale_and_shift(mean, std)
    return (images * scale).sub_(shift)


def _scale_and_shift(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    return (1 / (255 * std))[:, None, None], (mean / std)[:, None, None]


def sample_crops(
    keys: Tensor, view: int, parameters: ViewConfig, heights: Tensor, widths: Tensor
) -> tuple[Tensor, Tensor]:
    """The crops of `augment` in images of these sides int64 (n,).

    Returns:
        Boxes int64 (n, 4): top, left, height, width; and bool (n,), whether the crop is mirrored left to right.
    """
    draws = uniform(keys, Column.END, stream=view)
    boxes = sample_boxes(draws[:, Column.BOX :], heights, widths, parameters.crop_scale, parameters.crop_ratio)
    return torch.stack(boxes, dim=1), draws[:, Column.FLIP] < parameters.flip_p


def augment(
    images: Tensor,
    keys: Tensor,
    view: int,
    parameters: ViewConfig,
    size: int,
    mean: Tensor,
    std: Tensor,
    *,
    cropped: bool = False,
) -> Tensor:
    """One view of each image: crop, colour jitter, grey, blur, solarise, flip, normalise (SimCLR, solo-learn's order).

    Args:
        images: uint8 (n, 3, h, w); cropped: they are the crops of this view, mirrored too (see `sample_crops`).
        keys: int64 (n,), on the same device; an image's view is a function of its key and `view` alone.
        mean, std: (3,) of the data set, in units of 0..1.

    Returns:
        (n, 3, size, size) on the device of the images.
    """
    draws, moments = uniform(keys, Column.END, stream=view), _scale_and_shift(mean, std)
    extra = operations.draw(parameters.extra, keys, view)
    sides = None if cropped else (images.shape[2], images.shape[3])
    if not on_cpu(images):
        drawn = _draw(draws, extra, parameters, sides)
        return _distort(images, drawn, parameters, size, *moments).contiguous()
    part = max(LEAST, CACHED_PIXELS // (size * size))
    views = torch.empty(len(images), 3, size, size)
    order, threads = None, torch.get_num_threads()
    if size * size >= LARGE:
        # Every thread gets some of a small batch.
        part = min(part, max(1, -(-len(images) // threads)))
    else:
        order = _order(draws, parameters, part)
        draws, extra = draws[order], None if extra is None else extra[order]
    drawn = _draw(draws, extra, parameters, sides)

    def work(number: int) -> None:
        some = slice(number * part, (number + 1) * part)
        rows = SampledView._make(column if column is None else column[some] for column in drawn)
        if order is None:
            _distort(images[some], rows, parameters, size, *moments, out=views[some])
        else:
            x = _distort(images.index_select(0, order[some]), rows, parameters, size, *moments)
            torch.index_select(x, 0, order[some].argsort(), out=views[some])

    parts = -(-len(images) // part)
    if order is None and threads > 1:
        # Large images keep a thread busy by themselves: parts side by side take half the time of shared ones.
        each(work, parts, pool("views", threads))
    else:
        for number in range(parts):
            work(number)
    return views


def _order(draws: Tensor, parameters: ViewConfig, part: int) -> Tensor:
    """Rows (n,) of each part, sorted by the place of hue in jitter, which makes `jitter` faster."""
    place = (draws[:, Column.ORDER : Column.ORDER + Part.HUE] < draws[:, Column.ORDER + Part.HUE, None]).sum(dim=1)
    place.masked_fill_(draws[:, Column.JITTER] >= parameters.jitter_p, -1)
    return (torch.arange(len(draws)) // part * 8 - place).argsort()


def _draw(draws: Tensor, extra: Tensor | None, parameters: ViewConfig, sides: tuple[int, int] | None) -> SampledView:
    """All small tensors in one go: on a CPU such an operation takes as long for one image as for hundreds.

    sides: height and width of the images; None: they are cropped.
    """

    def chosen(column: Column, probability: float) -> Tensor | None:
        return draws[:, column] < probability if probability else None

    blends = turns = None
    if parameters.jitter_p and any(parameters.jitter):
        blends, turns = jitter_steps(*sample_jitter(draws, parameters.jitter, parameters.jitter_p))
    box = None
    if sides is not None:
        boxes = sample_boxes(draws[:, Column.BOX :], *sides, parameters.crop_scale, parameters.crop_ratio)
        box = torch.stack(boxes, dim=1)
    low, high = parameters.blur_sigma
    return SampledView(
        box=box,
        flip=chosen(Column.FLIP, parameters.flip_p),
        blends=blends,
        turns=turns,
        gray=chosen(Column.GRAY, parameters.gray_p),
        blur=chosen(Column.BLUR, parameters.blur_p),
        sigma=low + (high - low) * draws[:, Column.BLUR_SIGMA],
        solarize=chosen(Column.SOLARIZE, parameters.solarize_p),
        extra=extra,
    )


def _distort(
    images: Tensor,
    drawn: SampledView,
    parameters: ViewConfig,
    size: int,
    scale: Tensor,
    shift: Tensor,
    out: Tensor | None = None,
) -> Tensor:
    """Apply the operations, each in the memory of the previous one; those switched off cost nothing."""
    # Every later operation commutes with a mirror, and inside the crop it is free.
    if drawn.box is None:
        x = images.to(torch.float32) if out is None else out.copy_(images)
    else:
        top, left, tall, wide = drawn.box.unbind(1)
        x = crop_resize(images, top, left, tall, wide, size, drawn.flip)
    if drawn.blends is not None:
        jitter(x, drawn.blends, drawn.turns, out=x)
    if drawn.gray is not None:
        gray(x, drawn.gray, out=x)
    if drawn.blur is not None:
        blur(x, drawn.blur, drawn.sigma, parameters.blur_sigma[1], out=x)
    if drawn.solarize is not None:
        solarize(x, drawn.solarize, out=x)
    if drawn.extra is not None:
        x = operations.apply(parameters.extra, x, drawn.extra)
    return torch.sub(x.mul_(scale), shift, out=x if out is None else out)


def sample_jitter(
    draws: Tensor, strengths: tuple[float, float, float, float], probability: float
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    """Arguments of `jitter` by the law of torchvision's ColorJitter; neutral ones for images that get no jitter."""
    applied = draws[:, Column.JITTER] < probability
    factors = []
    for strength, column in zip(strengths[:3], (Column.BRIGHTNESS, Column.CONTRAST, Column.SATURATION), strict=True):
        low, high = max(0.0, 1 - strength), 1 + strength
        factors.append(torch.where(applied, low + (high - low) * draws[:, column], 1.0))
    hue = torch.where(applied, strengths[3] * (2 * draws[:, Column.HUE] - 1), 0.0) if strengths[3] else None
    order = draws[:, Column.ORDER : Column.ORDER + len(Part)].argsort(dim=1, stable=True)
    return factors[0], factors[1], factors[2], hue, order
