"""Aligns the classifier with the statistics of past classes, after a task and without a pass of the encoder.

The jointly trained classifier has seen few images of past classes. Here it takes some more steps on features: those of
the task's images, those of the memory's, and draws from the Gaussians of earlier classes, so that every class counts
alike (Zhang et al. 2023, SLCA, arXiv 2303.05118, section 3.3, for classes whose statistics were not carried).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kaizen.config.schema import ClassifierConfig
from kaizen.model.statistics import Statistics

BATCH = 64
"""Features per step; small, so that a task of few images has many steps."""
MEMORY_PART = 0.25
"""Part of an earlier class' features that its memory's images take, repeated; found on held-out training images."""


def align(
    classifier: nn.Module,
    current: tuple[Tensor, Tensor],
    remembered: tuple[Tensor, Tensor],
    statistics: Statistics,
    settings: ClassifierConfig,
    seed: int,
) -> None:
    """Train the classifier, in place, on real features and on draws from Gaussians; deterministic.

    Args:
        classifier: features (n, d) -> logits (n, classes), on their device.
        current, remembered: features (n, d) and labels int64 (n,) of the task's and of the memory's labelled images.
        statistics: of all classes seen.
        settings: align_passes and align_lr.
        seed: of the draws and of their order.
    """
    device = current[0].device
    missing = features_missing(statistics, current[1])
    repeated, drawn = memory_rows(statistics, missing, remembered[1])
    real = torch.cat([current[0], remembered[0][repeated]])
    targets = torch.cat([current[1], remembered[1][repeated], statistics.classes.to(device).repeat_interleave(drawn)])
    means = statistics.means.float().to(device).repeat_interleave(drawn, dim=0)
    spread, axes = torch.linalg.eigh(statistics.covariance)
    root = (axes * spread.clamp(min=0).sqrt()).T.float().to(device)
    # Features that are means of rectified maps have a least value, below which the encoder gives none.
    least = real.amin(dim=0) if len(real) else means.amin(dim=0) - math.inf
    generator = torch.Generator(device).manual_seed(seed % 2**63)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=settings.align_lr, weight_decay=0.0)
    parts = max(1, len(targets) // BATCH)
    for number in range(settings.align_passes):
        noise = torch.randn(means.shape, generator=generator, device=device)
        inputs = torch.cat([real, torch.maximum(means + noise @ root, least)])
        order = torch.randperm(len(targets), generator=generator, device=device)
        for place, rows in enumerate(order.tensor_split(parts), start=number * parts):
            for group in optimizer.param_groups:
                group["lr"] = settings.align_lr * (1 + math.cos(math.pi * place / (parts * settings.align_passes))) / 2
            loss = F.cross_entropy(classifier(inputs[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def features_missing(statistics: Statistics, labels: Tensor) -> Tensor:
    """Features of each class, int64 (C,), that bring it to the size of the task's mean class.

    A class of earlier tasks alone lacks that many, one of this task alone none, and one of both the part of its images
    that came before.

    Args:
        labels: int64 (n,) of the task's images; without any, each class gets the mean number of images of a class.
    """
    counts = statistics.counts.to(labels.device).double()
    now = (labels == statistics.classes.to(labels.device)[:, None]).sum(dim=1).double()
    size = now[now > 0].mean() if len(labels) else counts.mean()
    return (size * (1 - now / counts)).round().long()


def memory_rows(statistics: Statistics, missing: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the memory, repeated so that they are MEMORY_PART of what each class lacks, and the draws for the rest.

    Args:
        missing: int64 (C,), features that each class lacks.
        labels: int64 (m,) of the memory's images.

    Returns:
        int64 (k,), rows of the memory, and int64 (C,), draws of each class.
    """
    own = labels == statistics.classes.to(labels.device)[:, None]
    held = own.sum(dim=1)
    times = (MEMORY_PART * missing / held.clamp(min=1)).round().long().clamp(min=1) * (missing > 0)
    rows = torch.arange(len(labels), device=labels.device).repeat_interleave((times[:, None] * own).sum(dim=0))
    return rows, (missing - times * held).clamp(min=0)
