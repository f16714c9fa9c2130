"""Images per second that JPEGs of 500 x 375 pixels are decoded and cropped with: threads of the CPU, and nvJPEG.

usage: python tests/gpu/decode_speed.py [IMAGES]

The last line compares two 224 px crops per image by `kaizen.data.crops.Cropper`, on all cores of this process, with
torchvision's batched decoding by the GPU alone, without its crops. It decides whether a run should decode on the GPU.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import photographs
import torch
from torchvision.io import ImageReadMode, decode_jpeg

from kaizen.config.views import ViewConfig
from kaizen.data.crops import Cropper
from kaizen.data.encoded import Encoded
from kaizen.data.random import hash_rows
from kaizen.data.source import load_source

BATCH = 256


def rate(work: Callable[[np.ndarray], object], count: int) -> float:
    """Images per second of `work` on one batch of rows after another."""
    batches = [np.arange(first, min(first + BATCH, count)) for first in range(0, count, BATCH)]
    work(batches[0])
    began = time.perf_counter()
    for batch in batches:
        work(batch)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return count / (time.perf_counter() - began)


def main(count: int) -> None:
    """Measure, and print one line for each way."""
    with tempfile.TemporaryDirectory() as place:
        # Each is a crop of a photograph, and about as large in bytes as one of ImageNet.
        source = photographs.write(Path(place) / "images", count, least=375, most=500, classes=2)
        images = load_source(source, image_size=224, store="files", cache_dir=f"{place}/cache").train.images
        assert isinstance(images, Encoded)
        cropper = Cropper(
            images, Encoded.collected([], images.decoding), [ViewConfig()] * 2, pinned=torch.cuda.is_available()
        )
        keys, none = hash_rows(1, torch.arange(len(images))), np.empty(0, dtype=np.int64)
        threads = rate(lambda rows: cropper.crop(rows, none, keys[rows]), len(images))
        workers = images.decoding.pool._max_workers
        print(f"{workers} threads: {threads:.0f} images/s, decoded and cropped twice")
        if not torch.cuda.is_available():
            print(f"decode: {threads:.0f} images/s by {workers} threads; left out: nvJPEG")
            return
        contents = [torch.from_numpy(images.contents.read(row)) for row in range(len(images))]

        def by_gpu(rows: np.ndarray) -> object:
            return decode_jpeg([contents[row] for row in rows], ImageReadMode.RGB, device="cuda")

        gpu = rate(by_gpu, len(images))
        print(f"decode: {threads:.0f} images/s by {workers} threads with crops, {gpu:.0f} by nvJPEG without crops")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
