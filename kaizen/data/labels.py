"""Selects the available training labels, for the semi-supervised setting."""

import numpy as np

from kaizen.data.random import Purpose, fold, permutation


def visible_labels(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """The labels int64 (n,), -1 = none, with all except a fraction (0 to 1) per class replaced by -1.

    Each class keeps round(fraction x its images) labels, at least one if the fraction is above 0. With one seed a
    larger fraction keeps every label that a smaller one keeps.
    """
    visible = np.full_like(labels, -1)
    for label in np.unique(labels[labels >= 0]).tolist():
        ids = np.flatnonzero(labels == label)
        keep = max(1, round(fraction * len(ids))) if fraction > 0 else 0
        kept = ids[permutation(len(ids), fold(seed, Purpose.LABELS, label)).numpy()[:keep]]
        visible[kept] = label
    return visible
