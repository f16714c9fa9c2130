"""Aligns the classifier with the statistics of past classes, after a task and without a pass of the encoder.

The jointly trained classifier has seen few images of past classes. Here it takes some more steps on features, in which
every class counts alike: those of the task's images, and for earlier classes those of the memory's images and draws
from their Gaussians, as SLCA does (Zhang et al. 2023, arXiv 2303.05118, section 3.3) for an encoder that barely moves.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kaizen.config.schema import ClassifierConfig
from kaizen.model.statistics import Statistics

BATCH = 128
"""Features per step. Steps and rate were chosen on held-out training images of digits and Fashion-MNIST, on eight runs:
mean final accuracy 81.0 with 1000 steps at 0.0025, 80.4 with 600, 80.8 with 1000 at 0.005; LDA gives 80.6."""
MEMORY_PART = 0.25
"""Part of an earlier class' features that come from its images in the memory, if it has any."""


@dataclass(frozen=True)
class Pool:
    """Features (n, d) and their rows by class: those of class c are rows[first[c] : first[c] + count[c]]."""

    features: Tensor
    rows: Tensor
    first: Tensor
    count: Tensor

    @staticmethod
    def of(features: Tensor, labels: Tensor, classes: Tensor) -> "Pool":
        """The features with labels int64 (n,), for classes int64 (C,), ascending."""
        places = torch.searchsorted(classes, labels)
        count = torch.bincount(places, minlength=len(classes))
        return Pool(features, places.argsort(stable=True), count.cumsum(0) - count, count)

    def pick(self, classes: Tensor, chance: Tensor) -> Tensor:
        """A feature of each class index (n,), by chances in [0, 1); any feature for a class that has none here."""
        if not len(self.features):
            return self.features.new_zeros(len(classes), self.features.shape[1])
        place = self.first[classes] + (chance * self.count[classes]).long()
        return self.features[self.rows[place.clamp(max=len(self.rows) - 1)]]


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
        settings: align_steps and align_lr.
        seed: of the draws.
    """
    device = current[0].device
    classes = statistics.classes.to(device)
    now, past = (Pool.of(*part, classes) for part in (current, remembered))
    # A class of this task and of earlier ones has real features as far as its images are of this task.
    real = now.count / statistics.counts.to(device)
    memory = torch.where(past.count > 0, real + (1 - real) * MEMORY_PART, real)
    means = statistics.means.float().to(device)
    root = _root(statistics.covariance).float().to(device)
    # Features of rectified maps are never negative.
    rectified = bool((torch.cat([current[0], remembered[0]]) >= 0).all()) and bool(len(current[0]) + len(remembered[0]))
    generator = torch.Generator(device).manual_seed(seed % 2**63)
    # Adam's steps do not follow the scale of features: meanwhile the first layer reads them in units of their spread.
    scale = float(statistics.covariance.diagonal().mean().sqrt()) or 1.0
    first = next(layer for layer in classifier.modules() if isinstance(layer, nn.Linear))
    first.weight.data *= scale
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=settings.align_lr, weight_decay=0.0)
    for step in range(settings.align_steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.align_lr * (1 + math.cos(math.pi * step / settings.align_steps)) / 2
        which = torch.randint(len(classes), (BATCH,), generator=generator, device=device)
        kind, chance = torch.rand(2, BATCH, generator=generator, device=device)
        drawn = means[which] + torch.randn(BATCH, means.shape[1], generator=generator, device=device) @ root
        inputs = drawn.clamp(min=0) if rectified else drawn
        inputs = torch.where((kind < memory[which])[:, None], past.pick(which, chance), inputs)
        inputs = torch.where((kind < real[which])[:, None], now.pick(which, chance), inputs)
        loss = F.cross_entropy(classifier(inputs / scale), classes[which])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    first.weight.data /= scale


def _root(covariance: Tensor) -> Tensor:
    """The square root (d, d) of a covariance, by which rows of independent numbers are multiplied."""
    spread, axes = torch.linalg.eigh(covariance)
    return (axes * spread.clamp(min=0).sqrt()).T
