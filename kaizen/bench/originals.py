"""Views of encoded images, timed against the usual loader with PIL at the same number of workers."""

import time

import numpy as np
import torch

from kaizen.bench.against import MOST_IMAGES
from kaizen.bench.loader import pil_loader, pil_rate
from kaizen.bench.spread import Spread, ratio, spread
from kaizen.config.schema import Config
from kaizen.data.crops import Cropper
from kaizen.data.encoded import Encoded
from kaizen.data.load import Stream
from kaizen.data.random import fold, hash_rows
from kaizen.data.views import augment
from kaizen.parallel import threads

BATCH = 64
"""Images per batch of both."""


def compare_originals(config: Config, stream: Stream, repetitions: int) -> dict[str, Spread]:
    """Two-view images per second from encoded images, of our data path on the CPU and of the usual one; both in turns.

    Ours decodes and crops in as many threads as the usual loader has processes, and then computes the rest of the views
    with as many; nothing overlaps, so that it never has more than these.
    """
    images, views, size = stream.source.train.images, config.views[:2], stream.source.image_size
    assert isinstance(images, Encoded)
    workers = images.decoding.workers or threads()
    rows = np.arange(len(images))[:MOST_IMAGES]
    contents = [images.contents.read(int(row)).tobytes() for row in rows]
    cropper = Cropper(images, Encoded.collected([], images.decoding), views, pinned=False)
    loader = pil_loader(contents, views, size, stream.moments, BATCH, workers)
    none, batches = np.empty(0, dtype=np.int64), max(2, -(-len(rows) // BATCH))

    def ours() -> float:
        began = time.perf_counter()
        for batch in range(batches):
            ids = rows[np.arange(batch * BATCH, (batch + 1) * BATCH) % len(rows)]
            keys = hash_rows(fold(config.run.seed, batch), torch.from_numpy(ids))
            crops = cropper.crop(ids, none, keys)
            for number, (view, made) in enumerate(zip(views, crops, strict=True)):
                augment(made, keys, number, view, view.size or size, *stream.moments, cropped=True)
        return batches * BATCH / (time.perf_counter() - began)

    def theirs() -> float:
        return pil_rate(loader, batches)

    held = torch.get_num_threads()
    torch.set_num_threads(workers)
    try:
        with torch.no_grad():
            ours()
            pairs = [(ours(), theirs()) if turn % 2 else (theirs(), ours())[::-1] for turn in range(repetitions)]
    finally:
        torch.set_num_threads(held)
    fast, usual = (list(rates) for rates in zip(*pairs, strict=True))
    both = {"ours_images_per_second": spread(fast), "theirs_images_per_second": spread(usual)}
    return {**both, "ratio": ratio(fast, usual), "workers": spread([float(workers)])}
