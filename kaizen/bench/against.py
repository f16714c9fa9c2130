"""Alternative pipelines of two views, timed against ours on one thread of the CPU."""

import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision import transforms as tv

from kaizen.bench.spread import Spread, inverse, ratio, spread
from kaizen.config.schema import Config
from kaizen.config.views import ViewConfig
from kaizen.data.colour import SOLARIZE_FROM
from kaizen.data.load import Stream
from kaizen.data.random import fold, hash_rows
from kaizen.data.views import augment

MOST_IMAGES = 256
Views = Callable[[], list[Tensor]]
"""Makes both views (n, 3, s, s) of a batch."""


def against_pil(images: np.ndarray, views: Sequence[ViewConfig], size: int, moments: tuple[Tensor, Tensor]) -> Views:
    """The common pipeline: torchvision's transforms on one PIL image after another, then a stack."""
    pictures = [Image.fromarray(image) for image in np.ascontiguousarray(rearrange(images, "n c h w -> n h w c"))]
    pipelines = [pil_pipeline(view, view.size or size, moments) for view in views]
    return lambda: [torch.stack([pipeline(picture) for picture in pictures]) for pipeline in pipelines]


def pil_pipeline(view: ViewConfig, size: int, moments: tuple[Tensor, Tensor]) -> Callable[[Any], Tensor]:
    """One view (3, size, size) of an RGB picture of PIL, with torchvision's transforms in the usual order."""

    bicubic = tv.InterpolationMode.BICUBIC
    steps: list[Any] = [tv.RandomResizedCrop(size, view.crop_scale, view.crop_ratio, interpolation=bicubic)]
    if view.jitter_p:
        steps.append(tv.RandomApply([tv.ColorJitter(*view.jitter)], view.jitter_p))
    if view.gray_p:
        steps.append(tv.RandomGrayscale(view.gray_p))
    if view.blur_p:
        steps.append(tv.RandomApply([tv.Lambda(partial(_blurred, sigma=view.blur_sigma))], view.blur_p))
    if view.solarize_p:
        steps.append(tv.RandomSolarize(SOLARIZE_FROM, view.solarize_p))
    if view.flip_p:
        steps.append(tv.RandomHorizontalFlip(view.flip_p))
    return tv.Compose([*steps, tv.ToTensor(), tv.Normalize(*(moment.tolist() for moment in moments))])


def _blurred(picture: Image.Image, sigma: tuple[float, float]) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(random.uniform(*sigma)))


def against_kornia(images: np.ndarray, views: Sequence[ViewConfig], size: int, moments: tuple[Tensor, Tensor]) -> Views:
    """Kornia's augmentations of the whole batch, with parameters per image."""
    import kornia.augmentation as ka

    def pipeline(view: ViewConfig, side: int) -> Any:
        # Three times the largest sigma to either side, within the image; odd.
        width = (min(2 * round(3 * view.blur_sigma[1]) + 1, side) - 1) | 1
        steps = [
            ka.RandomResizedCrop((side, side), view.crop_scale, view.crop_ratio, resample="bicubic"),
            ka.ColorJitter(*view.jitter, p=view.jitter_p) if view.jitter_p else None,
            ka.RandomGrayscale(p=view.gray_p) if view.gray_p else None,
            ka.RandomGaussianBlur((width, width), view.blur_sigma, p=view.blur_p) if view.blur_p else None,
            ka.RandomSolarize((SOLARIZE_FROM / 255,) * 2, (0.0, 0.0), p=view.solarize_p) if view.solarize_p else None,
            ka.RandomHorizontalFlip(p=view.flip_p) if view.flip_p else None,
            ka.Normalize(*moments),
        ]
        return torch.nn.Sequential(*(step for step in steps if step is not None))

    batch = torch.from_numpy(images)
    pipelines = [pipeline(view, view.size or size) for view in views]

    def make() -> list[Tensor]:
        pixels = batch.float() / 255
        return [made(pixels) for made in pipelines]

    return make


PIPELINES = {"pil": against_pil, "kornia": against_kornia}


def compare_views(name: str, config: Config, stream: Stream, repetitions: int) -> dict[str, Spread]:
    """Two-view images per second of our views and of one of PIPELINES, and their ratio; both in turns."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(config.run.seed)
            random.seed(config.run.seed)
            return _compare(name, config, stream, repetitions)
    finally:
        torch.set_num_threads(threads)


def _compare(name: str, config: Config, stream: Stream, repetitions: int) -> dict[str, Spread]:
    views, size, moments = config.views[:2], stream.source.image_size, stream.moments
    count = min(MOST_IMAGES, len(stream.source.train.images))
    images = stream.source.train.images[np.arange(count)]
    batch, keys = torch.from_numpy(images), hash_rows(fold(config.run.seed), torch.arange(count))

    def ours() -> list[Tensor]:
        return [augment(batch, keys, i, view, view.size or size, *moments) for i, view in enumerate(views)]

    theirs = PIPELINES[name](images, views, size, moments)
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for turn in range(-1, repetitions):
        pair = (("ours", ours), ("theirs", theirs))
        for who, make in pair if turn % 2 else pair[::-1]:
            began = time.perf_counter()
            make()
            if turn >= 0:  # the first turn warms up
                seconds[who].append(time.perf_counter() - began)
    rates = {f"{who}_images_per_second": inverse(spread(taken), count) for who, taken in seconds.items()}
    return {**rates, "ratio": ratio(seconds["theirs"], seconds["ours"])}
