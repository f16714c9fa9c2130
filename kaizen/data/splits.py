"""A source of images and labels that was read: its two splits, their names, and what the user is told of them."""

import hashlib
import json
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from kaizen.data.decoding import evaluation_side
from kaizen.data.encoded import Encoded
from kaizen.data.rows import Undecoded

Images: TypeAlias = np.ndarray | Encoded
"""Images of a split: pixels uint8 (n, 3, s, s), read only, or encoded; `images[rows]` gives such pixels either way."""


@dataclass(frozen=True)
class Split:
    """One split: images; labels int64 (n,), -1 = none; domains int64 (n,) or None.

    domains: of each image, the number of its domain or of its value in data.task_column (-1 = none) in domain_names.
    sha256: of all images, decoded or encoded. skipped: reasons for images that were left out, one text each. blended:
    number of images with transparent pixels.
    """

    images: Images
    labels: np.ndarray
    domains: np.ndarray | None
    sha256: str
    skipped: tuple[str, ...] = ()
    blended: int = 0


@dataclass(frozen=True)
class Source:
    """Both splits with their names; mean and std per channel of the training images in 0..1 (std 0 if constant).

    notes: files and directories among the images that were not read. background: colour behind transparent
    images. is_size_found: whether the images' side was found in the data. resize: where images stay encoded, the
    shorter side in pixels of unaugmented ones before their centre is cropped; None: they are stored as pixels.
    test_fraction: of each class, where the test images were held out of the training split.
    """

    train: Split
    test: Split
    class_names: tuple[str, ...]
    domain_names: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fingerprint: str
    notes: tuple[str, ...] = ()
    background: str = "white"
    is_size_found: bool = False
    resize: int | None = None
    test_fraction: float | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes in both splits."""
        return len(self.class_names)

    @property
    def image_size(self) -> int:
        """Side of the square images in pixels."""
        return int(self.train.images.shape[-1])

    @property
    def store(self) -> str:
        """Value of data.store: pixels or files."""
        return "pixels" if self.resize is None else "files"

    def describe(self) -> list[str]:
        """Lines for the user on what was found in the images."""
        lines = [f"image size          {self.image_size} x {self.image_size}"]
        lines[0] += " (found in the data)" if self.is_size_found else ""
        if self.test_fraction is not None:
            held = f"{len(self.test.labels)} images of the training split"
            lines.append(f"held out            {held}, for evaluation (data.test_fraction {self.test_fraction:g})")
        if self.resize is not None:
            lines += _described([self.train.images, self.test.images], self.resize, self.image_size)
        if count := self.train.blended + self.test.blended:
            lines.append(f"transparent         {count} of the images, blended on {self.background} (data.background)")
        if skipped := self.train.skipped + self.test.skipped:
            lines.append(
                f"left out            {len(skipped)} of the images (data.broken=skip), the first: {skipped[0]}"
            )
        return lines

    def digest(self) -> str:
        """SHA-256 of names, labels, domains and images, regardless of their location."""
        found = hashlib.sha256(json.dumps([self.class_names, self.domain_names]).encode())
        for split in (self.train, self.test):
            found.update(f"{split.images.shape} {split.sha256}".encode() + np.ascontiguousarray(split.labels).tobytes())
            if split.domains is not None:
                found.update(np.ascontiguousarray(split.domains).tobytes())
            if split.skipped:
                found.update(f"{len(split.skipped)} left out".encode())
        return found.hexdigest()


def _described(images: list[Images], resize: int, size: int) -> list[str]:
    """Lines on images that stay encoded."""
    evaluated = f"evaluated: shorter side {resize}, centre {size} (eval.resize)"
    lines = [f"images from files   crops from the originals; {evaluated}"]
    shapes = [held.shapes for held in images if isinstance(held, Encoded)]
    if shapes:
        sides = np.concatenate(shapes)[:, :2]
        (low, left), (high, right) = sides.min(axis=0).tolist(), sides.max(axis=0).tolist()
        total = sum(int(held.lengths.sum()) for held in images if isinstance(held, Encoded))
        wide, tall = (
            str(least) if least == most else f"{least} to {most}" for least, most in ((left, right), (low, high))
        )
        lines.append(f"{'originals':19} {wide} x {tall} pixels, {total / 2**20:,.0f} MiB encoded")
    return lines


def undecoded(
    splits: dict[str, Undecoded], size: int, names: dict[str, list[str]], store: str, resize: int | None
) -> Source:
    """A source with everything but its images, which are black, of this side, and take no memory."""
    train, test = (
        Split(np.broadcast_to(np.uint8(0), (len(split.labels), 3, size, size)), split.labels, split.domains, sha256="")
        for split in (splits["train"], splits["test"])
    )
    half = (0.5, 0.5, 0.5)
    resize = (resize or evaluation_side(size)) if store == "files" else None
    return Source(train, test, tuple(names["class_names"]), tuple(names["domain_names"]), half, half, "", resize=resize)
