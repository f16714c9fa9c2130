"""Aligns the classifier with the statistics of past classes, after a task and without a pass of the encoder.

The jointly trained classifier has seen few images of past classes. Here it takes some more steps on features: those of
the task's and the memory's images, and draws from the Gaussians of earlier classes, so that every class counts alike
(Zhang et al. 2023, SLCA, arXiv 2303.05118, section 3.3, for classes whose statistics were not carried).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kaizen.config.schema import ClassifierConfig
from kaizen.model.statistics import Statistics

BATCH = 64
"""Features per step; small, so that a task of few images has many steps."""


def align(
    classifier: nn.Module,
    features: Tensor,
    labels: Tensor,
    statistics: Statistics,
    *,
    current: Statistics,
    settings: ClassifierConfig,
    seed: int,
) -> None:
    """Train the classifier, in place, on real features and on draws from Gaussians; deterministic.

    Args:
        classifier: features (n, d) -> logits (n, classes), on their device.
        features, labels: (n, d) and int64 (n,) of the task's labelled images and of the memory's.
        statistics: of all classes seen; current: of the task's images alone.
        settings: align_passes and align_lr.
        seed: of the draws and of their order.
    """
    device = features.device
    generator = torch.Generator(device).manual_seed(seed % 2**63)
    missing = draws_missing(statistics, current)
    drawn_labels = statistics.classes.repeat_interleave(missing).to(device)
    means = statistics.means.float().to(device).repeat_interleave(missing.to(device), dim=0)
    spread, axes = torch.linalg.eigh(statistics.covariance)
    root = (axes * spread.clamp(min=0).sqrt()).T.float().to(device)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=settings.align_lr, weight_decay=0.0)
    count = len(labels) + len(drawn_labels)
    steps = max(1, count // BATCH) * settings.align_passes
    step = 0
    for _ in range(settings.align_passes):
        noise = torch.randn(means.shape, generator=generator, device=device)
        # Features are means of rectified maps; draws below zero are none that the encoder gives.
        inputs = torch.cat([features, (means + noise @ root).clamp(min=0)])
        targets = torch.cat([labels, drawn_labels])
        order = torch.randperm(count, generator=generator, device=device)
        for rows in order.tensor_split(max(1, count // BATCH)):
            for group in optimizer.param_groups:
                group["lr"] = settings.align_lr * (1 + math.cos(math.pi * step / steps)) / 2
            loss = F.cross_entropy(classifier(inputs[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1


def draws_missing(statistics: Statistics, current: Statistics) -> Tensor:
    """Draws of each class, int64 (C,), that bring it to the size of the task's mean class.

    A class of earlier tasks alone gets that many, one of this task alone none, and one of both the share of its images
    that came before.
    """
    if not len(current.classes):
        return torch.full_like(statistics.counts, int(statistics.counts.double().mean()))
    size = current.counts.double().mean()
    now = torch.zeros_like(statistics.counts)
    now[torch.searchsorted(statistics.classes, current.classes)] = current.counts
    return (size * (1 - now / statistics.counts)).round().long()
