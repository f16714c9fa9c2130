"""Logistic regression: against scikit-learn on real features, and against hand computations."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from kaizen.config.schema import Config
from kaizen.data.load import Stream
from kaizen.evaluation.evaluator import Evaluator
from kaizen.evaluation.readers import logistic
from kaizen.evaluation.readers.logistic import fit_probe, held_out
from kaizen.model.learner import Network
from kaizen.parallel import Parallel

Digits = tuple[Tensor, Tensor, Tensor, np.ndarray]


@pytest.fixture(scope="module")
def digits(config: Config, stream: Stream) -> Digits:
    """Features of an untrained network and labels: of the training images, task by task, and of the test images."""
    found = Evaluator(config, stream, Parallel())
    ids, test_ids = (np.concatenate([getattr(task, part) for task in stream.tasks]) for part in ("train", "test"))
    torch.manual_seed(0)
    sets = [(stream.source.train.images, ids), (stream.source.test.images, test_ids)]
    train, test = found._features(Network(config, 10), sets, lambda: None)
    return train, torch.from_numpy(stream.source.train.labels[ids]), test, stream.source.test.labels[test_ids]


@pytest.mark.parametrize(
    ("count", "weak"),
    [(580, False), (580, True), (1438, False), pytest.param(1438, True, marks=pytest.mark.slow)],
    ids=["two tasks-chosen", "two tasks-weak", "all-chosen", "all-weak"],
)
def test_the_probe_agrees_with_scikit_learn(
    count: int, weak: bool, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, labels, test, truth = digits
    if weak:  # where a solver that stops early is furthest from the minimum
        monkeypatch.setattr(logistic, "REGULARISATIONS", logistic.REGULARISATIONS[-1:])
    probe = fit_probe(train[:count], labels[:count], seed=0)
    assert probe.gradient <= logistic.TOLERANCE
    scaler = StandardScaler().fit(train[:count].double())
    theirs = LogisticRegression(C=1 / (probe.regularisation * count), max_iter=20000, tol=1e-7)
    theirs.fit(scaler.transform(train[:count].double()), labels[:count])
    mine, expected = probe.predict(test).numpy(), theirs.predict(scaler.transform(test.double()))
    assert float((expected == truth).mean()) > 0.6 * len(probe.classes) / 10, "features that separate the classes"
    assert abs((mine == truth).mean() - (expected == truth).mean()) <= 0.005
    assert (mine == expected).mean() > 0.99


def test_the_probe_worked_by_hand() -> None:
    features, labels = torch.tensor([[3.0], [5.0]]).repeat(10, 1), torch.tensor([7, 2]).repeat(10)
    probe = fit_probe(features, labels, seed=0)
    assert (probe.mean.item(), probe.std.item(), probe.regularisation) == (4, 1, 1), "the strongest of equals"
    assert probe.classes.tolist() == [2, 7]
    weight = probe.weights[0, 0].item()
    # At +-1 the minimum has weight x regularisation = 1 - probability of the true class.
    assert weight == pytest.approx(1 - 1 / (1 + math.exp(-2 * weight)), abs=2e-4)
    assert probe.weights[0].sum().item() == pytest.approx(0, abs=1e-9)
    assert probe.predict(torch.tensor([[3.9], [4.1], [99.0]])).tolist() == [7, 2, 2]


@pytest.mark.parametrize("seed", range(3))
def test_regularisation_follows_what_held_out_images_say(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(400) % 4
    signal = 3 * torch.nn.functional.one_hot(labels, 100).double()
    # With many features and wrong labels, weak regularisation learns the wrong labels by heart.
    wrong = torch.rand(400, generator=generator) < 0.4
    noisy_labels = torch.where(wrong, torch.randint(4, (400,), generator=generator), labels)
    features = signal + torch.randn(400, 100, generator=generator, dtype=torch.float64)
    noisy = fit_probe(features, noisy_labels, seed=0)
    # A class between two classes on a line is found only with weak regularisation.
    line = torch.rand(400, 1, generator=generator, dtype=torch.float64)
    clean = fit_probe(line, (line[:, 0] * 8).long(), seed=0)
    assert noisy.regularisation >= 0.1
    assert clean.regularisation <= 0.001


@given(st.lists(st.integers(0, 5), min_size=1, max_size=80), st.integers(0, 99))
def test_a_fifth_of_each_class_is_held_out(labels: list[int], seed: int) -> None:
    targets = torch.tensor(labels)
    held = held_out(targets, seed)
    assert torch.equal(held, held_out(targets, seed))
    for label in set(labels):
        count = labels.count(label)
        assert int(held[targets == label].sum()) == (max(count // 5, 1) if count > 1 else 0)


def test_another_seed_holds_out_other_images() -> None:
    targets = torch.zeros(50, dtype=torch.int64)
    assert not torch.equal(held_out(targets, 0), held_out(targets, 1))


@pytest.mark.parametrize("labels", [[3, 3, 3, 3], [0, 1, 2, 3], [1]])
def test_features_that_never_change_and_few_images_give_no_nan(labels: list[int]) -> None:
    features = torch.tensor([[0.0, 0.1, float(i)] for i in range(len(labels))])
    probe = fit_probe(features, torch.tensor(labels), seed=0)
    assert torch.isfinite(probe.weights).all()
    assert set(probe.predict(features).tolist()) <= set(labels)


def problem_of(images: int, width: int, classes: int, noise: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Standardised features with correlated columns, and labels; without noise the classes can be separated."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(width, width, generator=generator, dtype=torch.float64) * torch.logspace(0, -3, width)
    centres = torch.randn(classes, width, generator=generator, dtype=torch.float64)
    labels = torch.arange(images) % classes
    spread = torch.randn(images, width, generator=generator, dtype=torch.float64)
    return (centres[labels] + noise * spread) @ mixed, labels


@pytest.mark.parametrize("regularisation", [1.0, 1e-5])
@pytest.mark.parametrize(
    ("images", "width", "classes", "noise"),
    [(300, 20, 5, 2.0), (300, 20, 5, 0.01), (30, 50, 10, 1.0), (12, 4, 12, 1.0), (40, 3, 1, 1.0)],
    ids=["overlapping", "separable", "fewer images than features", "one image per class", "one class"],
)
def test_both_solvers_find_the_same_minimum(
    images: int, width: int, classes: int, noise: float, regularisation: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, labels = problem_of(images, width, classes, noise)
    monkeypatch.setattr(logistic, "REGULARISATIONS", (regularisation,))
    monkeypatch.setattr(logistic, "TOLERANCE", 1e-9)
    newton = fit_probe(features, labels, seed=0)
    monkeypatch.setattr(logistic, "NEWTON_NUMBERS", 0)
    lbfgs = fit_probe(features, labels, seed=0)
    assert newton.gradient <= 1e-8
    assert lbfgs.gradient <= 2e-6, "where rounding ends its line search"
    span = float(lbfgs.weights.abs().max()) + 1e-9
    assert float((newton.weights - lbfgs.weights)[:-1].abs().max()) <= (1e-3 if lbfgs.gradient <= 1e-8 else 0.05) * span
    assert torch.equal(newton.predict(features), lbfgs.predict(features))


def test_newtons_method_needs_no_more_than_some_images_for_its_preconditioner(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = problem_of(900, 20, 5, 1.0)
    monkeypatch.setattr(logistic, "REGULARISATIONS", (1e-4,))
    whole = fit_probe(features, labels, seed=0)
    monkeypatch.setattr(logistic, "NEWTON_ROWS", 100)
    part = fit_probe(features, labels, seed=0)
    assert max(whole.gradient, part.gradient) <= logistic.TOLERANCE
    assert torch.equal(whole.predict(features), part.predict(features))
    assert not torch.equal(whole.weights, part.weights)


def test_a_probe_has_the_same_bits_every_time() -> None:
    features, labels = problem_of(300, 20, 5, 1.0)
    one, other = (fit_probe(features, labels, seed=0) for _ in range(2))
    assert torch.equal(one.weights, other.weights)
