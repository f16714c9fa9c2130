"""Nearest neighbours and nearest means: against scikit-learn, against loops, and against hand computations."""

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from kaizen.evaluation.readers import neighbours
from kaizen.evaluation.readers.neighbours import NearestMean, class_means, nearest_neighbours

Clusters = tuple[Tensor, Tensor, Tensor, np.ndarray]


@pytest.fixture(scope="module")
def clusters() -> Clusters:
    """Features of ten overlapping classes and labels: to learn from and to test."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(1800) % 10
    features = (torch.randn(10, 32, generator=generator)[labels] + torch.randn(1800, 32, generator=generator)).relu()
    return features[:1438], labels[:1438], features[1438:], labels[1438:].numpy()


@pytest.mark.parametrize("k", [1, 20])
def test_nearest_neighbours_agree_with_scikit_learn(
    k: int, clusters: Clusters, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, labels, test, truth = clusters
    theirs = KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    expected = theirs.fit(train, labels).predict(test)
    mine = nearest_neighbours(train, labels, test, k)
    assert abs((mine.numpy() == truth).mean() - (expected == truth).mean()) <= 0.005
    assert (mine.numpy() == expected).mean() > 0.99
    monkeypatch.setattr(neighbours, "SIMILARITIES", 10 * len(train))
    assert torch.equal(nearest_neighbours(train, labels, test, k), mine), "ten rows at a time"


@pytest.mark.parametrize(("k", "expected"), [(1, 4), (3, 4), (4, 0), (99, 0)])
def test_votes_worked_by_hand(k: int, expected: int) -> None:
    # Cosines 1, 0.96, 0.96, 0.8 with labels 4, 0, 0, 0: weights relative to the first 1, 0.565, 0.565, 0.057.
    train = torch.tensor([[2.0, 0.0], [0.96, 0.28], [0.96, -0.28], [0.4, 0.3]])
    labels = torch.tensor([4, 0, 0, 0]) if k > 3 else torch.tensor([4, 0, 1, 0])
    assert nearest_neighbours(train, labels, torch.tensor([[0.5, 0.0]]), k).tolist() == [expected]


@pytest.mark.parametrize(("weight", "expected"), [(0.52, 1), (0.48, 2)])
def test_a_vote_weighs_by_the_exponential_of_its_cosine_over_0_07(weight: float, expected: int) -> None:
    angle = math.acos(1 + 0.07 * math.log(weight))
    train = torch.tensor([[1.0, 0.0], *([math.cos(angle), sign * math.sin(angle)] for sign in (1, -1))])
    # Two such votes against one of weight 1.
    assert nearest_neighbours(train, torch.tensor([2, 1, 1]), torch.tensor([[3.0, 0.0]]), 20).tolist() == [expected]


def test_the_nearest_mean_is_that_of_icarl(clusters: Clusters) -> None:
    """Against loops over the paper's equation: argmin over classes of |phi(x) - mu|, all of length 1."""
    train, labels, test, truth = clusters
    train, labels = train[:97], torch.where(labels[:97] == 3, 12, labels[:97])
    means = {}
    for label in sorted(set(labels.tolist())):
        rows = [row / np.linalg.norm(row) for row in train[labels == label].double().numpy()]
        total = np.zeros(32)
        for row in rows:
            total += row
        mean = total / len(rows)
        means[label] = mean / np.linalg.norm(mean)
    reader = NearestMean("ncm")
    reader.means, reader.classes = class_means(train, labels)
    assert reader.classes.tolist() == sorted(means)
    np.testing.assert_allclose(reader.means.numpy(), np.stack(list(means.values())), atol=1e-6)
    expected = []
    for row in test.double().numpy():
        row = row / np.linalg.norm(row)
        expected.append(min(means, key=lambda label: float(np.square(row - means[label]).sum())))
    assert reader.predict(test).tolist() == expected
    assert (np.array(expected) == truth).mean() > 0.6
    assert class_means(0 * train[:2], labels[:2])[0].isfinite().all()
