"""What is remembered of past classes besides images: means, counts and one covariance of the features.

After each task they are measured on the task's labelled images. Those of earlier classes follow the encoder by a linear
map, fitted between the encoder of the task before and the new one, on the task's images and those of the replay memory.
What the map misses on a class' remembered images corrects its mean. They give a classifier without training: linear
discriminant analysis (LDA).

The defaults were chosen on held-out training images of digits and Fashion-MNIST, on eleven runs with several encoders.
Their mean final accuracy with them is 77.8. Without the correction of means it is 77.5, with a ridge of 0.03 77.4, and
with a shrinkage of 0.08 77.6. Also tried: memory images of half or twice the weight (77.9, 77.6); the covariance of the
residuals added to the carried one (no change); a tenth of each class' own covariance (78.1); 15 % of the covariance
within the memory's classes (78.3); features of unit length (+0.4) or to the power 0.5 (-0.3). The true means and
covariance give 81.0.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kaizen.errors import ConfigError
from kaizen.run.tensors import read_tensors

FILE = "statistics"
"""Name (without suffix) of the file in a task-end directory."""
CHUNK = 4096
"""Rows that are in float64 at a time."""
JITTER = 1e-6
"""Added to the diagonal of a correlation, which a class of few images leaves singular."""


@dataclass(frozen=True)
class Map:
    """A linear map between the features of two encoders: x -> x @ weight + bias; weight (d, d), bias (d,)."""

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Features (n, d) of the encoder before -> features (n, d) of the new one."""
        return features.double() @ self.weight + self.bias


def fit_map(old: Tensor, new: Tensor, weights: Tensor, ridge: float) -> Map:
    """The map with the least weighted squared error plus ridge x the squared distance of its weight to the identity.

    Args:
        old, new: features (n, d) of the same images by two encoders, on the CPU; sums are in float64.
        weights: (n,), how much each image counts.
        ridge: in units of the mean variance of the old features; more of it trusts the identity more.
    """
    shares = weights / weights.sum()
    parts = list(zip(old.split(CHUNK), new.split(CHUNK), shares.split(CHUNK), strict=True))
    old_mean = torch.stack([share @ x.double() for x, _, share in parts]).sum(dim=0)
    new_mean = torch.stack([share @ y.double() for _, y, share in parts]).sum(dim=0)
    gram, moved = old_mean.new_zeros(2, len(old_mean), len(old_mean)).unbind()
    for x, y, share in parts:
        centred = x.double() - old_mean
        scaled = centred * share[:, None]
        gram += scaled.T @ centred
        moved += scaled.T @ (y.double() - new_mean - centred)
    identity = torch.eye(len(gram), dtype=gram.dtype)
    # Features that are all equal leave nothing to fit; the smallest positive number keeps the matrix regular.
    strength = ridge * gram.diagonal().mean() + torch.finfo(gram.dtype).tiny
    weight = identity + torch.linalg.solve(gram + strength * identity, moved)
    return Map(weight, new_mean - old_mean @ weight)


@dataclass(frozen=True)
class Statistics:
    """Of C classes that were seen with labels, for features of size d, float64, on the CPU.

    classes: int64 (C,), ascending; counts: int64 (C,), images of each; means: (C, d); covariance: (d, d), within
    classes, the sum over all their images divided by their number minus C.
    """

    classes: Tensor
    counts: Tensor
    means: Tensor
    covariance: Tensor

    @staticmethod
    def measured(features: Tensor, labels: Tensor) -> "Statistics":
        """Statistics of features (n, d) and labels int64 (n,); images without a label (-1) are left out."""
        known = labels >= 0
        features, labels = features[known], labels[known]
        classes, places, counts = labels.unique(return_inverse=True, return_counts=True)
        means = torch.zeros(len(classes), features.shape[1], dtype=torch.float64)
        for x, place in zip(features.split(CHUNK), places.split(CHUNK), strict=True):
            means.index_add_(0, place, x.double())
        means /= counts[:, None]
        scatter = means.new_zeros(means.shape[1], means.shape[1])
        for x, place in zip(features.split(CHUNK), places.split(CHUNK), strict=True):
            rest = x.double() - means[place]
            scatter += rest.T @ rest
        return Statistics(classes, counts, means, scatter / _freedom(counts))

    def carried(self, carry: Map) -> "Statistics":
        """The statistics of the same images for the encoder that the map leads to."""
        covariance = carry.weight.T @ self.covariance @ carry.weight
        return Statistics(self.classes, self.counts, carry(self.means), covariance)

    def corrected(self, residuals: Tensor, labels: Tensor, prior: float) -> "Statistics":
        """The statistics with each mean moved by what the map missed on the class' remembered images.

        A class of n such images moves by n / (n + prior) of their mean residual.

        Args:
            residuals: (m, d), new features of the remembered images minus mapped ones; labels: int64 (m,).
            prior: images that speak for the map.
        """
        means = self.means.clone()
        for place, label in enumerate(self.classes.tolist()):
            own = residuals[labels == label]
            if len(own):
                means[place] += len(own) / (len(own) + prior) * own.mean(dim=0)
        return Statistics(self.classes, self.counts, means, self.covariance)

    def merged(self, other: "Statistics") -> "Statistics":
        """The statistics of both sets of images; a class of both has one mean, and its spread between them counts."""
        classes, places = torch.cat([self.classes, other.classes]).unique(return_inverse=True)
        counts, means = torch.cat([self.counts, other.counts]), torch.cat([self.means, other.means])
        total = torch.zeros_like(classes).index_add_(0, places, counts)
        weighted = means * counts[:, None]
        centre = means.new_zeros(len(classes), means.shape[1]).index_add_(0, places, weighted) / total[:, None]
        apart = (means - centre[places]) * counts.to(means.dtype).sqrt()[:, None]
        own, others = _freedom(self.counts) * self.covariance, _freedom(other.counts) * other.covariance
        return Statistics(classes, total, centre, (own + others + apart.T @ apart) / _freedom(total))

    def shrunk(self, shrinkage: float) -> Tensor:
        """The covariance (d, d) with that share of its mean variance on the diagonal in place of its own entries.

        Where no class varies, as with one image each, the identity.
        """
        identity = torch.eye(len(self.covariance), dtype=self.covariance.dtype)
        variance = self.covariance.diagonal().mean()
        if variance <= 0:
            return identity
        return (1 - shrinkage) * self.covariance + shrinkage * variance * identity

    def classifier(self, shrinkage: float) -> tuple[Tensor, Tensor]:
        """LDA with equal priors: weight (C, d) and bias (C,) of a linear layer on features.

        Fisher's rule for classes of one covariance S: w = S^-1 mean, b = -1/2 mean' w (Hastie et al. 2009, The Elements
        of Statistical Learning, eq. 4.10), with means and features relative to the mean of the means, so that no large
        numbers cancel. A direction in which no feature varies decides nothing.
        """
        if not len(self.classes):
            return self.means, self.means.sum(dim=1)
        centre, covariance = self.means.mean(dim=0), self.shrunk(shrinkage)
        means = self.means - centre
        factor, failed = torch.linalg.cholesky_ex(covariance)
        if failed or float(factor.diagonal().min() / factor.diagonal().max()) < JITTER:
            weight = means @ torch.linalg.pinv(covariance, hermitian=True)
        else:
            weight = torch.cholesky_solve(means.T, factor).T
        return weight, -0.5 * (weight * means).sum(dim=1) - weight @ centre

    def tensors(self) -> dict[str, Tensor]:
        """What is saved, in the fewest bytes that change no figure.

        float32 centre (the mean of the means) and deviations (d,); float16 means, relative to both; float16 factor, the
        lower Cholesky factor of the correlation, row by row: what is read back is positive definite, as no rounded
        covariance would be.
        """
        deviation = self.covariance.diagonal().clamp(min=0).sqrt()
        scale = torch.where(deviation > 0, deviation, 1.0)
        unit = _unit(deviation.float())
        centre = self.means.mean(dim=0) if len(self.means) else torch.zeros_like(deviation)
        correlation = (self.covariance / scale / scale[:, None]).fill_diagonal_(1 + JITTER)
        rows, columns = torch.tril_indices(*correlation.shape)
        return {
            "classes": self.classes,
            "counts": self.counts,
            "centre": centre.float(),
            "means": ((self.means - centre) / unit).half(),
            "deviation": deviation.float(),
            "factor": torch.linalg.cholesky(correlation)[rows, columns].half(),
        }

    @staticmethod
    def of(tensors: Mapping[str, Tensor]) -> "Statistics":
        """The statistics from saved tensors."""
        deviation, d = tensors["deviation"].double(), len(tensors["deviation"])
        rows, columns = torch.tril_indices(d, d)
        factor = deviation.new_zeros(d, d)
        factor[rows, columns] = tensors["factor"].double()
        factor *= deviation[:, None]
        means = tensors["means"].double() * _unit(tensors["deviation"]) + tensors["centre"].double()
        return Statistics(tensors["classes"], tensors["counts"], means, factor @ factor.T)

    @staticmethod
    def read(file: Path, features: int) -> "Statistics":
        """The statistics of a task-end directory, on the CPU.

        Args:
            features: size d of the encoder's features.

        Raises:
            ConfigError: the file is missing, damaged, or of features of another size.
        """
        return Statistics.of(read_checked(file, features))


def read_checked(file: Path, features: int) -> dict[str, Tensor]:
    """The tensors of a file of statistics, and of the layer made from them: weight (C, d) and bias (C,).

    Raises:
        ConfigError: the file is missing, damaged, or of features of another size.
    """
    tensors = read_tensors(file)
    c, d = len(tensors.get("classes", ())), features
    expected = {"classes": (c,), "counts": (c,), "centre": (d,), "means": (c, d), "deviation": (d,)}
    expected |= {"factor": (d * (d + 1) // 2,), "weight": (c, d), "bias": (c,)}
    for name, shape in expected.items():
        found = tuple(tensors[name].shape) if name in tensors else None
        if found != shape:
            raise ConfigError(str(file), f"{name} has the shape {found}; allowed: {shape}")
    return tensors


def statistics_bytes(classes: int, features: int) -> int:
    """Bytes of the statistics of so many classes that are kept from task to task."""
    halves = classes * features + features * (features + 1) // 2
    return 2 * halves + 8 * features + 16 * classes


def memory_weights(current: int, remembered: int, share: float) -> Tensor:
    """Weights (current + remembered,) of images for `fit_map`: all remembered ones weigh `share` x the current ones."""
    each = share * current / remembered if remembered else math.nan
    return torch.cat([torch.ones(current).double(), torch.full((remembered,), each).double()])


def _unit(deviation: Tensor) -> Tensor:
    """What means are saved in units of, float64 (d,): deviations, none so small that float16 overflows."""
    largest = float(deviation.max())
    return deviation.double().clamp(min=largest / 1000 or 1.0)


def _freedom(counts: Tensor) -> int:
    """Images of these classes minus a mean for each, at least 1."""
    return max(int(counts.sum()) - len(counts), 1)
