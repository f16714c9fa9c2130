"""The usual input pipeline: PIL and torchvision in the workers of a DataLoader; and what limits training."""

import math
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from io import BytesIO
from os import PathLike

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from kaizen.bench.against import pil_pipeline
from kaizen.config.views import ViewConfig

Content = bytes | str | PathLike[str]
"""An encoded image, or the path of its file."""
EVEN = 1.05
"""Rates closer than this factor are called equal: measurements differ by as much."""


class TwoViews(Dataset[tuple[Tensor, ...]]):
    """Views of encoded images as torchvision makes them: each image is decoded whole, and once for all of its views."""

    def __init__(
        self, contents: Sequence[Content], views: Sequence[ViewConfig], size: int, moments: tuple[Tensor, Tensor]
    ) -> None:
        self.contents = contents
        self.pipelines = [pil_pipeline(view, view.size or size, moments) for view in views]

    def __len__(self) -> int:
        return len(self.contents)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        content = self.contents[index]
        with Image.open(BytesIO(content) if isinstance(content, bytes) else content) as picture:
            image = picture.convert("RGB")
        return tuple(pipeline(image) for pipeline in self.pipelines)


class Endless(Sampler[int]):
    """Numbers below `count` > 0 in random order, again and again.

    A DataLoader starts each pass with empty queues; with few images that would be measured instead of its speed.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[int]:
        while True:
            yield from torch.randperm(self.count).tolist()


def pil_loader(
    contents: Sequence[Content],
    views: Sequence[ViewConfig],
    size: int,
    moments: tuple[Tensor, Tensor],
    batch: int,
    workers: int,
) -> DataLoader[tuple[Tensor, ...]]:
    """Endless full batches, each a list of views (batch, 3, s, s), from `workers` processes, or from this one if 0.

    `moments` are mean and standard deviation (3,) of the channels, of pixels from 0 to 1.

    Raises:
        ValueError: there are no images.
    """
    if not contents:
        raise ValueError("contents: is empty; allowed: at least one encoded image or path")
    # Not forked from this process, whose memory is allocated as kaizen.data.pool asks.
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([__name__])
    return DataLoader(
        TwoViews(contents, views, size, moments),
        batch,
        sampler=Endless(len(contents)),
        num_workers=workers,
        multiprocessing_context=server if workers else None,
    )


def pil_rate(loader: DataLoader[tuple[Tensor, ...]], batches: int) -> float:
    """Images per second of a `pil_loader`, each with all of its views; torch has one thread, in this process too.

    The first batch of every worker warms up. `batches` are then timed, rounded up to as many for each worker: all
    workers finish at about the same time, so that another number would measure a part of a round.
    """
    each, threads = max(loader.num_workers, 1), torch.get_num_threads()
    batches = math.ceil(batches / each) * each
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            feed = iter(loader)
            for _ in range(each):
                next(feed)
            began = time.perf_counter()
            for _ in range(batches):
                next(feed)
            return (loader.batch_size or 1) * batches / (time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)


def limit_sentence(feed_rate: float, step_rate: float, workers: int | None) -> str:
    """One sentence that says whether data or device limit training, by how much, and what the user can do.

    Both rates are images per second, above 0: those that `workers` prepare (0 or 1: one; None: a thread that gathers
    stored pixels), and those that training steps take when their data are ready.
    """
    crew = f"{workers} workers prepare" if workers and workers > 1 else "one worker prepares"
    feed, step = _shown(feed_rate), _shown(step_rate)
    if step_rate > EVEN * feed_rate:
        times = step_rate / feed_rate
        found = f"{crew} {feed} images/s, and the device could train on {step}, {times:.1f} times as many"
        if workers is None:
            return f"The data are the limit: {found}; a faster memory, or fewer processes that share it, would help."
        needed = math.ceil(max(workers, 1) * times)
        return f"The data are the limit: {found}; set data.workers to about {needed}, on as many cores."
    if feed_rate > EVEN * step_rate:
        found = f"it trains on {step} images/s, and {crew} {feed}, {feed_rate / step_rate:.1f} times as many"
        return f"The device is the limit: {found}; nothing needs to change, as more workers would not help."
    found = f"{crew} {feed} images/s, and the device trains on {step}"
    return f"Data and device are equally fast: {found}; nothing needs to change, as more workers would help little."


def _shown(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
