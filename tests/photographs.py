"""JPEGs of uneven size: crops of scikit-learn's sample photographs and, where it is installed, of scikit-image's.

usage: python tests/photographs.py DIR COUNT [--parquet] [--least 200] [--most 1200] [--classes 10] [--test-part 0.2]
           [--seed 0]

A class is a region of a photograph, so a network can learn it. The same arguments give the same files, as long as
Pillow and the photographs are the same; a larger COUNT adds images to those of a smaller one.
"""

import argparse
import io
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
from PIL import Image, ImageChops, ImageEnhance
from pyarrow import parquet as pq
from sklearn.datasets import load_sample_images

SPLITS = ("train", "test")
GREY, TURNED, FULL_COLOUR = 0.1, 0.2, 0.3
"""Shares of images in greyscale, with an orientation in EXIF, and with chroma in full resolution (4:4:4)."""
GRAIN = (0, 4, 8, 12)
"""Standard deviations of grain. Without it enlarged crops would take far fewer bytes per pixel than photographs do."""
MOST_ROWS = 64
"""Images per row group of a parquet file; at least four groups per file."""
STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""How an upright image lies in a file of each orientation of EXIF."""
Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels."""


def photographs() -> dict[str, Image.Image]:
    """The photographs that come with installed packages, by name."""
    found = load_sample_images()
    named = {Path(name).stem: Image.fromarray(image) for name, image in zip(found.filenames, found.images, strict=True)}
    try:
        from skimage import data
    except ImportError:
        return named
    return named | {name: Image.fromarray(getattr(data, name)()) for name in ("astronaut", "chelsea", "coffee")}


def regions(classes: int) -> dict[str, tuple[Image.Image, Box]]:
    """That many regions of photographs, in the order of their names, which are those of the classes."""
    sources, found = photographs(), {}
    cells = math.ceil(classes / len(sources))
    across = math.ceil(math.sqrt(cells))
    down = math.ceil(cells / across)
    for number in range(classes):
        cell, source = divmod(number, len(sources))
        name, photograph = list(sources.items())[source]
        width, height = photograph.width / across, photograph.height / down
        left, top = cell % across * width, cell // across * height
        found[f"{name}-{cell:02}"] = photograph, (left, top, left + width, top + height)
    return dict(sorted(found.items()))


def jpeg(upright: Image.Image, orientation: int = 1, **options: object) -> bytes:
    """A JPEG that is `upright` once the orientation of its EXIF (1 to 8) is applied."""
    exif = Image.Exif()
    if orientation != 1:
        exif[Image.ExifTags.Base.Orientation] = orientation
        upright = upright.transpose(STORED[orientation])
    buffer = io.BytesIO()
    upright.save(buffer, "JPEG", exif=exif, **options)
    return buffer.getvalue()


class Camera:
    """Takes photographs; number `index` of a split depends on nothing else."""

    def __init__(self, least: int, most: int, classes: int, seed: int) -> None:
        self.least, self.most, self.seed = least, most, seed
        self.regions = regions(classes)
        levels = np.random.default_rng(seed).standard_normal((most + 64, most + 64, 3), np.float32)
        self.grain = [Image.fromarray((levels * sigma + 128.5).clip(0, 255).astype(np.uint8)) for sigma in GRAIN]

    def label(self, index: int) -> int:
        return index % len(self.regions)

    def take(self, split: str, index: int) -> bytes:
        """One image as JPEG."""
        rng = np.random.default_rng([self.seed, SPLITS.index(split), index])
        photograph, region = list(self.regions.values())[self.label(index)]
        size = self._size(rng)
        picture = photograph.resize(size, Image.Resampling.BICUBIC, _crop(rng, region, size))
        if rng.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        picture = ImageEnhance.Brightness(picture).enhance(rng.uniform(0.7, 1.3))
        left, top = rng.integers(64, size=2)
        grain = self.grain[rng.integers(len(GRAIN))].crop((left, top, left + size[0], top + size[1]))
        picture = ImageChops.add(picture, grain, offset=-128)
        if rng.random() < GREY:
            picture = picture.convert("L")
        orientation = int(rng.integers(2, 9)) if rng.random() < TURNED else 1
        subsampling = "4:4:4" if rng.random() < FULL_COLOUR else "4:2:0"
        return jpeg(picture, orientation, quality=int(rng.integers(75, 96)), subsampling=subsampling)

    def _size(self, rng: np.random.Generator) -> tuple[int, int]:
        """Width and height, upright: both within least..most, the longer at most twice the shorter."""
        ratio = 2 ** rng.uniform(0, math.log2(min(2, self.most / self.least)))
        short = int(rng.integers(self.least, max(int(self.most / ratio), self.least) + 1))
        long = min(int(short * ratio), self.most)
        return (short, long) if rng.random() < 0.5 else (long, short)


def _crop(rng: np.random.Generator, region: Box, size: tuple[int, int]) -> Box:
    """A random part of a region in the shape of `size`; its sides are half to all of what fits."""
    left, top, right, bottom = region
    scale = rng.uniform(0.5, 1) * min((right - left) / size[0], (bottom - top) / size[1])
    width, height = size[0] * scale, size[1] * scale
    # Limits against rounding: PIL refuses a box that leaves the image.
    x = max(min(left + rng.random() * (right - left - width), right - width), 0)
    y = max(min(top + rng.random() * (bottom - top - height), bottom - height), 0)
    return x, y, min(x + width, right), min(y + height, bottom)


def write(
    folder: Path,
    count: int,
    parquet: bool = False,
    least: int = 200,
    most: int = 1200,
    classes: int = 10,
    test_part: float = 0.2,
    seed: int = 0,
) -> str:
    """Write `count` images, both splits together; returns the value of data.source.

    Raises:
        ValueError: `least` exceeds `most`, or a split has no image of some class.
        FileExistsError: an imagefolder is there, whose images would stay.
    """
    tests = round(count * test_part)
    if not 1 <= least <= most:
        raise ValueError(f"least is {least} and most is {most}; allowed: 1 or more, least up to most")
    if not 1 <= classes <= min(tests, count - tests):
        found = f"{classes} classes, {count - tests} images to train and {tests} to test"
        raise ValueError(f"{found}; allowed: each class in both splits, as 10 classes with 40 and 10")
    camera = Camera(least, most, classes, seed)
    for split, length in zip(SPLITS, (count - tests, tests), strict=True):
        (_write_parquet if parquet else _write_folders)(folder, camera, split, length)
    return f"{'parquet' if parquet else 'imagefolder'}:{folder}"


def _chunks(camera: Camera, split: str, count: int, rows: int) -> Iterator[tuple[range, list[bytes]]]:
    """Images in order with their numbers, `rows` at a time, so that few are in memory."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for start in range(0, count, rows):
            numbers = range(start, min(start + rows, count))
            yield numbers, list(pool.map(lambda index: camera.take(split, index), numbers))


def _write_folders(folder: Path, camera: Camera, split: str, count: int) -> None:
    places = [folder / split / name for name in camera.regions]
    (folder / split).mkdir(parents=True)
    for place in places:
        place.mkdir()
    for numbers, images in _chunks(camera, split, count, MOST_ROWS):
        for index, image in zip(numbers, images, strict=True):
            (places[camera.label(index)] / f"{index:06}.jpg").write_bytes(image)


def _write_parquet(folder: Path, camera: Camera, split: str, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = datasets.ClassLabel(names=list(camera.regions))
    schema = datasets.Features({"image": datasets.Image(), "label": names}).arrow_schema
    with pq.ParquetWriter(folder / f"{split}.parquet", schema) as writer:
        for numbers, images in _chunks(camera, split, count, min(MOST_ROWS, math.ceil(count / 4))):
            held = [{"bytes": image, "path": None} for image in images]
            labels = [camera.label(index) for index in numbers]
            writer.write_table(pa.table({"image": held, "label": labels}, schema=schema))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("count", type=int, metavar="COUNT")
    parser.add_argument("--parquet", action="store_true")
    for name, value in {"least": 200, "most": 1200, "classes": 10, "test_part": 0.2, "seed": 0}.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    return parser.parse_args()


if __name__ == "__main__":
    print(write(**vars(_arguments())))
