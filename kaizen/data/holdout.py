"""Chooses the training images that are held out for evaluation where data have no test split."""

import numpy as np
import torch

from kaizen.data.random import Purpose, fold, hash_rows


def held_out(labels: np.ndarray, fraction: float) -> np.ndarray:
    """Which images are held out, bool (n,), of those with these labels, int64 (n,), -1 = none.

    Of each class with two or more images round(fraction x its images) are, at least one and never all: those whose row
    numbers have the lowest hashes. A larger fraction holds out every image that a smaller one does.
    """
    hashes = hash_rows(fold(Purpose.HOLDOUT), torch.arange(len(labels))).numpy()
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels[labels >= 0]).tolist():
        rows = np.flatnonzero(labels == label)
        count = min(max(1, round(fraction * len(rows))), len(rows) - 1)
        held[rows[np.argsort(hashes[rows], kind="stable")[:count]]] = True
    return held
