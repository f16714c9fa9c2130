"""Fashion-MNIST from Debian's package dataset-fashion-mnist, written as parquet.

usage: python tests/fashion.py DIR TRAIN_A_CLASS [TEST_A_CLASS]
"""

import gzip
import io
import sys
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

FILES = Path("/usr/share/datasets/fashion-mnist")
NAMES = ["top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"]


def read(prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (n, 28, 28) and labels (n,) of `train` or `t10k`."""
    images = gzip.decompress((FILES / f"{prefix}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((FILES / f"{prefix}-labels-idx1-ubyte.gz").read_bytes())
    return np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8, offset=8)


def write(folder: Path, train: int, test: int) -> str:
    """Write that many images of each class; returns the value of data.source."""
    folder.mkdir(parents=True, exist_ok=True)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    for prefix, split, count in (("train", "train", train), ("t10k", "test", test)):
        images, labels = read(prefix)
        chosen = np.sort(np.concatenate([np.flatnonzero(labels == c)[:count] for c in range(10)]))
        rows = {"image": [{"bytes": png(images[i]), "path": None} for i in chosen], "label": labels[chosen].tolist()}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")
    return f"parquet:{folder}"


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


if __name__ == "__main__":
    print(write(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 1000))
