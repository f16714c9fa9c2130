"""Colour operations of views: images are float32 (n, 3, h, w) in grey levels, 0..255, each with draws of its own.

On a CPU an operation touches only the images that need it. Comparisons and `where` take a CPU ten times as long as a
sum, so arithmetic replaces them wherever all pixels take part, with the same bits.
"""

from collections.abc import Callable
from enum import IntEnum

import torch
from einops import rearrange, repeat
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R 601, as in PIL)."""
SOLARIZE_FROM = 128
LARGE = 160 * 160
"""Pixels from which on images are jittered one by one on a CPU."""
BEYOND = 1e30
"""Multiplied by the difference of two unequal levels, it exceeds every level and hue."""


class Part(IntEnum):
    """The parts of colour jitter, as numbered in its `order`."""

    BRIGHTNESS = 0
    CONTRAST = 1
    SATURATION = 2
    HUE = 3


def jitter_steps(
    brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor | None, order: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Arguments of `jitter`; each image has its own order of the four parts.

    Args:
        brightness, contrast, saturation: (n,) factors, 1 = unchanged.
        hue: (n,) turns in -0.5..0.5, or None when no image gets another hue.
        order: int64 (n, 4), the Part at each position.

    Returns:
        Blends (n, 3 or 6, 3): what the pixels, their mean grey and each one's grey are multiplied by; and the hue.
    """
    place = order.argsort(dim=1)
    turn = place[:, Part.HUE :]
    # Among themselves: the three blends that remain when the hue is taken out of the order.
    rank = place[:, : Part.HUE] - (place[:, : Part.HUE] > turn).to(torch.int64)
    blends = rank.argsort(dim=1)
    factors = torch.stack([brightness, contrast, saturation], dim=1).gather(1, blends)
    if hue is not None:
        # Turning the hue costs most, so it is done once, between two passes over the blends: those before, those after.
        before = turn > torch.arange(Part.HUE, device=turn.device)
        factors = torch.cat([torch.where(before, factors, 1.0), torch.where(before, 1.0, factors)], dim=1)
        blends = repeat(blends, "n part -> n (sweep part)", sweep=2)
    rest = 1 - factors
    from_mean, from_gray = (torch.where(blends == part, rest, 0.0) for part in (Part.CONTRAST, Part.SATURATION))
    return torch.stack([factors, from_mean, from_gray], dim=2), hue


def jitter(images: Tensor, blends: Tensor, hue: Tensor | None, out: Tensor | None = None) -> Tensor:
    """Colour jitter of images (n, 3, h, w) by what `jitter_steps` returns; `out` may be the images."""
    out = images.clone() if out is None else out.copy_(images)
    pixels = rearrange(out, "n c h w -> n c (h w)")
    if on_cpu(images) and pixels.shape[2] >= LARGE:
        turns = [None] * len(out) if hue is None else [turn if turn != 0 else None for turn in hue.split(1)]
        for image, steps, turn in zip(pixels.split(1), blends.tolist(), turns, strict=True):
            _jitter_one(image, steps, turn)
        return out
    needed = [blends[:, :, 0] != 1] if hue is None else [blends[:, :, 0] != 1, hue[:, None] != 0]
    spans = _spans(torch.cat(needed, dim=1))
    for step, blend in enumerate(blends[..., None].unbind(1)):
        if step == Part.HUE and hue is not None:
            _turn_hue(pixels[spans[-1]], hue[spans[-1]])
        some = pixels[spans[step]]
        if len(some):
            _blend(some, *blend[spans[step]].unbind(1))
    return out


def _jitter_one(pixels: Tensor, blends: list[list[float]], turn: Tensor | None) -> None:
    """Colour jitter of one image (1, 3, p), in place, by its row of `blends` and of the hue (1,), None for no turn.

    Of `_blend` only that is computed which a step needs.
    """
    for step, (factor, from_mean, from_gray) in enumerate(blends):
        if step == Part.HUE and turn is not None:
            _turn_hue(pixels, turn)
        if factor == 1:
            continue
        inside = 0 <= factor <= 1
        if from_mean:
            base = from_mean * _exact_mean(_shade(pixels))
            inside = inside and float(base) <= 255 - 255 * factor
            torch.add(base, pixels, alpha=factor, out=pixels)
        elif from_gray:
            inside = False
            torch.add(_shade(pixels).mul_(from_gray)[:, None], pixels, alpha=factor, out=pixels)
        else:
            pixels.mul_(factor)
        if not inside:
            pixels.clamp_(0, 255)


def on_cpu(tensor: Tensor) -> bool:
    """Whether the host may read values to decide what to do; on a GPU it would have to wait for them."""
    return tensor.device.type == "cpu"


def _spans(needed: Tensor) -> list[slice]:
    """From the first to the last row in which each column of `needed` (n, k) is true; off the CPU all rows."""
    n, k = needed.shape
    if not on_cpu(needed):
        return [slice(None)] * k
    rows = torch.arange(n)[:, None]
    first, last = torch.where(needed, rows, n).amin(dim=0), torch.where(needed, rows, -1).amax(dim=0)
    return [slice(*span) for span in zip(first.tolist(), (last + 1).tolist(), strict=True)]


def _blend(pixels: Tensor, factor: Tensor, from_mean: Tensor, from_gray: Tensor) -> None:
    """factor * pixels (n, 3, p) + from_mean * their mean grey + from_gray * each one's grey, in 0..255, in place."""
    base = _shade(pixels)
    mean = _exact_mean(base)
    base.mul_(from_gray).add_(from_mean * mean)
    torch.addcmul(base[:, None], pixels, factor[:, None], out=pixels).clamp_(0, 255)


def _shade(pixels: Tensor) -> Tensor:
    """Grey (n, ...) of pixels (n, 3, ...)."""
    red, green, blue = pixels.unbind(1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def _exact_mean(shade: Tensor) -> Tensor:
    """Mean (n, 1) of each row, to 1/256 level: whole numbers add up to the same in any order, on any device."""
    count = shade.shape[1]
    total = torch.int32 if count * 255 * 256 < 2**31 else torch.int64
    return (shade * 256).to(torch.int32).sum(dim=1, keepdim=True, dtype=total) / (256.0 * count)


def _turn_hue(pixels: Tensor, turns: Tensor) -> None:
    """Turn the hue of pixels (n, 3, p), in place, keeping HSV's saturation and value; no turn leaves their bits."""
    red, green, blue = pixels.unbind(1)
    top = torch.maximum(red, green)
    top = torch.maximum(top, blue, out=top)
    chroma = torch.minimum(red, green)
    chroma = torch.sub(top, torch.minimum(chroma, blue, out=chroma), out=chroma)
    near = torch.empty_like(pixels)
    # The hue counts from the channel at the top. Red's and green's are moved out of the minimum's sight where they are
    # below it; blue's is never less than that of one at the top. Where two are there both agree, or (red and blue) the
    # smaller one is red's.
    below = torch.sub(top[:, None], pixels[:, :2], out=near[:, :2])
    sextant = (green - blue).add_(below[:, 0], alpha=BEYOND)
    other = (blue - red).add_(chroma, alpha=2).add_(below[:, 1], alpha=BEYOND)
    torch.minimum(sextant, other, out=sextant)
    torch.sub(red, green, out=other).add_(chroma, alpha=4)
    torch.minimum(sextant, other, out=sextant)
    sextant.div_(torch.clamp(chroma, min=1e-6, out=other)).add_(6 * turns[:, None])
    sextant.sub_(torch.div(sextant, 6, out=other).floor_(), alpha=6)
    # A channel is at the top up to one sextant from its own hue, at the bottom from two on, and linear in between.
    # Red's own lies at both ends, so its distance is taken from the opposite one.
    bottom = top.sub_(chroma, alpha=2)
    for channel, hue in enumerate((3, 2, 4)):
        torch.sub(sextant, hue, out=near[:, channel])
    near.abs_()
    torch.sub(3, near[:, 1:], out=near[:, 1:])
    near.clamp_(1, 2)
    # Between the lowest and the highest channel, however it is rounded: nothing to clamp.
    chosen = turns != 0
    if on_cpu(turns) and bool(chosen.all()):
        torch.addcmul(bottom[:, None], chroma[:, None], near, out=pixels)
    else:
        choose(chosen, torch.addcmul(bottom[:, None], chroma[:, None], near, out=near), pixels, out=pixels)


def choose(chosen: Tensor, these: Tensor, others: Tensor, out: Tensor | None = None) -> Tensor:
    """Rows of `these` (n, ...) where `chosen` (n,), elsewhere of `others`, of the same shape."""
    chosen = chosen.to(others.dtype).view(-1, *(1 for _ in others.shape[1:]))
    return torch.addcmul(these * chosen, others, 1 - chosen, out=out)


def apply_to(
    chosen: Tensor, operation: Callable[..., Tensor], images: Tensor, *columns: Tensor, out: Tensor | None = None
) -> Tensor:
    """Images (n, ...), those `chosen` (n,) replaced by `operation` of them and of their rows of `columns` (n,).

    `out` may be the images.
    """
    if not on_cpu(images):
        return choose(chosen, operation(images, *columns), images, out)
    rows = chosen.nonzero()[:, 0]
    these = operation(images.index_select(0, rows), *(column.index_select(0, rows) for column in columns))
    return (images.clone() if out is None else out.copy_(images)).index_copy_(0, rows, these)


def gray(images: Tensor, chosen: Tensor, out: Tensor | None = None) -> Tensor:
    """Images (n, 3, h, w), those `chosen` (n,) in grey, the same in all three channels."""
    return apply_to(chosen, lambda some: _shade(some)[:, None].expand_as(some), images, out=out)


def solarize(images: Tensor, chosen: Tensor, out: Tensor | None = None) -> Tensor:
    """Images (n, 3, h, w) in grey levels, those `chosen` (n,) with every level from 128 on inverted."""
    return apply_to(chosen, lambda some: torch.where(some >= SOLARIZE_FROM, 255 - some, some), images, out=out)
