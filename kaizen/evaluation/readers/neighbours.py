"""Readers by cosine: weighted nearest neighbours, and the nearest mean of a class."""

import torch
from torch import Tensor
from torch.nn import functional as F

from kaizen.evaluation.readers.base import Check, Evidence, Reader

TEMPERATURE = 0.07
SIMILARITIES = 2**24
"""Maximum number of similarities in memory at a time."""


class Neighbours(Reader):
    """Vote of the nearest training images of the tasks seen."""

    sees = "seen"

    def fit(self, evidence: Evidence) -> None:
        """Keep the images."""
        self.evidence = evidence

    def predict(self, features: Tensor) -> Tensor:
        """The class with most votes."""
        train, labels = self.evidence.images(self.sees)
        return nearest_neighbours(train, labels, features, self.evidence.config.eval.knn_k, self.evidence.check)


class NearestMean(Reader):
    """The nearest mean of a class in the replay memory (iCaRL: Rebuffi et al. 2017, arXiv 1611.07725, algorithm 1)."""

    sees = "memory"

    def fit(self, evidence: Evidence) -> None:
        """Compute the means."""
        self.means, self.classes = class_means(*evidence.images(self.sees))

    def predict(self, features: Tensor) -> Tensor:
        """The class of the largest cosine to its mean."""
        return self.classes[(F.normalize(features, dim=1) @ self.means.T).argmax(dim=1)]


def class_means(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Means (c, d) of the normalised features (n, d) of each class, normalised again, and the classes int64 (c,)."""
    classes, targets = labels.to(features.device).unique(return_inverse=True)
    members = F.one_hot(targets, len(classes)).to(features.dtype)
    # A sum and a mean have the same direction.
    return F.normalize(members.T @ F.normalize(features, dim=1), dim=1), classes


def nearest_neighbours(train: Tensor, labels: Tensor, test: Tensor, k: int, check: Check = lambda: None) -> Tensor:
    """Labels int64 (m,) that the k nearest of train (n, d) with labels int64 (n,) vote for, for each of test (m, d).

    Nearest by cosine, votes weighted by exp(cosine / 0.07) (Wu et al. 2018, arXiv 1805.01978); k is cut to n. `check`
    is called before each chunk, and may raise.
    """
    train, labels = F.normalize(train, dim=1), labels.to(train.device)
    k, classes = min(k, len(train)), int(labels.max()) + 1
    guesses = []
    for part in F.normalize(test, dim=1).split(max(1, SIMILARITIES // len(train))):
        check()
        cosines, neighbours = (part @ train.T).topk(k, dim=1)
        # Subtracting 1 in the exponent changes no vote's share and keeps the sums small.
        votes = cosines.new_zeros(len(part), classes)
        votes.scatter_add_(1, labels[neighbours], ((cosines - 1) / TEMPERATURE).exp())
        guesses.append(votes.argmax(dim=1))
    return torch.cat(guesses)
