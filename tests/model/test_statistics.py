"""Statistics of past classes: measured, merged, carried, saved and read, against NumPy and scikit-learn."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge

from kaizen.errors import ConfigError
from kaizen.model.statistics import (
    Map,
    Statistics,
    fit_map,
    memory_weights,
    statistics_bytes,
)

RANDOM = np.random.default_rng(0)
D = 6
MIXED = RANDOM.normal(size=(D, D))
LABELS = torch.tensor([3, 0, 3, 7, 0, -1, 7, 3] * 9)
FEATURES = torch.from_numpy(RANDOM.normal(size=(len(LABELS), D)) @ MIXED) + LABELS[:, None].double()


def numpy_statistics(features: torch.Tensor, labels: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, y = features.numpy(), labels.numpy()
    classes = np.unique(y[y >= 0])
    means = np.stack([x[y == c].mean(axis=0) for c in classes])
    rest = np.concatenate([x[y == c] - mean for c, mean in zip(classes, means, strict=True)])
    return classes, means, rest.T @ rest / (len(rest) - len(classes))


def assert_equal(found: Statistics, features: torch.Tensor, labels: torch.Tensor) -> None:
    classes, means, covariance = numpy_statistics(features, labels)
    assert found.classes.tolist() == classes.tolist()
    assert found.counts.tolist() == [int((labels == c).sum()) for c in classes]
    np.testing.assert_allclose(found.means, means, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.covariance, covariance, rtol=1e-9, atol=1e-12)


def test_means_and_the_covariance_within_classes_are_numpys() -> None:
    assert_equal(Statistics.measured(FEATURES, LABELS), FEATURES, LABELS)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, len(LABELS)))
def test_merged_parts_equal_the_whole_also_for_classes_of_both(cut: int) -> None:
    parts = [Statistics.measured(FEATURES[part], LABELS[part]) for part in (slice(cut), slice(cut, None))]
    assert_equal(parts[0].merged(parts[1]), FEATURES, LABELS)


def test_a_linear_map_carries_statistics_exactly() -> None:
    moved = FEATURES @ torch.from_numpy(MIXED) + 2.0
    carry = fit_map(FEATURES, moved, torch.ones(len(FEATURES)).double(), 1e-12)
    assert_equal(Statistics.measured(FEATURES, LABELS).carried(carry), moved, LABELS)


@pytest.mark.parametrize("ridge", [1e-3, 0.1, 10.0])
def test_the_map_is_a_ridge_regression_of_the_change(ridge: float) -> None:
    new = FEATURES @ torch.from_numpy(RANDOM.normal(size=(D, D))) + torch.from_numpy(RANDOM.normal(size=FEATURES.shape))
    weights = memory_weights(50, len(FEATURES) - 50, 0.7)
    carry = fit_map(FEATURES, new, weights, ridge)
    share = weights / weights.sum()
    variance = float((share[:, None] * (FEATURES - share @ FEATURES).square()).sum(0).mean())
    model = Ridge(alpha=ridge * variance, solver="cholesky")
    model.fit(FEATURES.numpy(), (new - FEATURES).numpy(), sample_weight=share.numpy())
    np.testing.assert_allclose(carry.weight, np.eye(D) + model.coef_.T, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(
        carry(FEATURES).numpy(), FEATURES.numpy() + model.predict(FEATURES.numpy()), rtol=1e-8, atol=1e-9
    )


def test_what_the_map_misses_on_remembered_images_moves_the_means_of_their_classes() -> None:
    held = Statistics.measured(FEATURES, LABELS)
    residuals, labels = torch.full((5, D), 2.0).double(), torch.tensor([0, 0, 0, 7, -1])
    moved = held.corrected(residuals, labels, 3.0).means - held.means
    torch.testing.assert_close(moved, torch.tensor([[1.0], [0.0], [0.5]]).double().expand(3, D))


def test_features_that_are_all_equal_are_mapped_by_their_shift() -> None:
    same = torch.ones(4, D).double()
    carry = fit_map(same, same + 3, torch.ones(4).double(), 0.01)
    torch.testing.assert_close(carry(same), same + 3)


def relative(weight: torch.Tensor, bias: torch.Tensor) -> np.ndarray:
    """A linear layer relative to the mean of its classes, which changes no decision."""
    layer = np.concatenate([np.asarray(weight), np.asarray(bias)[:, None]], axis=1)
    return layer - layer.mean(axis=0)


@pytest.mark.parametrize("shrinkage", [0.0, 0.02, 1.0])
def test_the_classifier_is_scikit_learns_lda(shrinkage: float) -> None:
    known = LABELS >= 0
    x, y = FEATURES[known].numpy(), LABELS[known].numpy()
    priors = np.bincount(y)[np.unique(y)] / len(y)
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage or None, priors=priors).fit(x, y)
    weight, bias = Statistics.measured(FEATURES, LABELS).classifier(shrinkage)
    # scikit-learn adds the log of the priors, by which it also weights the covariance; it divides by n, not by n - 3.
    expected = relative(model.coef_, model.intercept_ - np.log(priors)) * (len(y) - 3) / len(y)
    np.testing.assert_allclose(relative(weight, bias), expected, rtol=1e-8, atol=1e-10)


def test_a_feature_that_never_varies_decides_nothing() -> None:
    padded = torch.cat([FEATURES, torch.zeros(len(FEATURES), 1).double()], dim=1)
    plain = Statistics.measured(FEATURES, LABELS).classifier(0.0)
    weight, bias = Statistics.measured(padded, LABELS).classifier(0.0)
    torch.testing.assert_close(weight[:, :-1], plain[0])
    torch.testing.assert_close(bias, plain[1])
    assert weight[:, -1].abs().max() < 1e-12


def test_with_one_image_a_class_the_nearest_mean_decides() -> None:
    held = Statistics.measured(FEATURES[:4], torch.tensor([2, 0, 3, 9]))
    weight, bias = held.classifier(0.02)
    near = FEATURES[:4] + 0.01
    assert held.classes[(near @ weight.T + bias).argmax(dim=1)].tolist() == [2, 0, 3, 9]


def saved_and_read(held: Statistics, file: Path) -> Statistics:
    weight, bias = held.classifier(0.02)
    save_file(held.tensors() | {"weight": weight, "bias": bias}, file)
    return Statistics.read(file, held.means.shape[1])


def test_what_is_saved_is_read_back_to_the_precision_of_float16(tmp_path: Path) -> None:
    held = Statistics.measured(torch.cat([FEATURES, torch.ones(len(FEATURES), 1).double()], dim=1), LABELS)
    read = saved_and_read(held, tmp_path / "statistics.safetensors")
    assert read.classes.tolist() == held.classes.tolist()
    assert read.counts.tolist() == held.counts.tolist()
    torch.testing.assert_close(read.means, held.means, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(read.covariance, held.covariance, rtol=2e-3, atol=2e-3)
    kept = sum(t.numel() * t.element_size() for t in held.tensors().values())
    assert kept == statistics_bytes(3, D + 1)


@pytest.mark.parametrize("offset", [0.0, 1000.0], ids=["", "far from zero"])
@pytest.mark.parametrize("shrinkage", [0.001, 0.02])
def test_saving_changes_no_decision_of_correlated_features_of_few_images(
    shrinkage: float, offset: float, tmp_path: Path
) -> None:
    """64 features of rank 20, four of them dead, ten images of each of five classes: a singular covariance."""
    random = np.random.default_rng(1)
    labels = torch.arange(5).repeat(10)
    centres, mixing = random.normal(size=(5, 20)), random.normal(size=(20, 64))
    images = torch.from_numpy((centres[labels.numpy()] + 0.5 * random.normal(size=(50, 20))) @ mixing)
    images += 0.01 * torch.from_numpy(random.normal(size=(50, 64)))
    images[:, :4] = 0.0
    held = Statistics.measured(images + offset, labels)
    read = saved_and_read(held, tmp_path / "statistics.safetensors")
    assert torch.linalg.eigvalsh(read.covariance).min() > -1e-9
    for dead in (
        read,
        read.carried(Map(torch.eye(64).double().index_fill(1, torch.arange(8), 0), torch.zeros(64).double())),
    ):
        assert all(torch.isfinite(tensor).all() for tensor in dead.tensors().values())
    test = torch.from_numpy((centres[labels.numpy()] + 0.5 * random.normal(size=(50, 20))) @ mixing) + offset
    guesses = []
    for each in (held, read):
        weight, bias = (layer.float() for layer in each.classifier(shrinkage))
        guesses.append((test.float() @ weight.T + bias).argmax(dim=1))
    right = [float((guess == labels).double().mean()) for guess in guesses]
    assert right[0] > 0.7
    assert right[1] > right[0] - 0.05


def test_a_file_of_other_features_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "statistics.safetensors"
    saved_and_read(Statistics.measured(FEATURES, LABELS), file)
    with pytest.raises(ConfigError, match=r"statistics\.safetensors: centre has the shape \(6,\); allowed: \(8,\)"):
        Statistics.read(file, 8)


def test_without_a_label_there_is_nothing_and_it_merges_with_anything() -> None:
    none = Statistics.measured(FEATURES, torch.full_like(LABELS, -1))
    assert len(none.classes) == 0
    assert none.means.shape == (0, D)
    assert_equal(none.merged(Statistics.measured(FEATURES, LABELS)), FEATURES, LABELS)
    identity = fit_map(FEATURES, FEATURES, torch.ones(len(FEATURES)).double(), 0.01)
    assert len(none.carried(identity).classes) == 0


def test_remembered_images_together_weigh_their_share_of_the_current_ones() -> None:
    weights = memory_weights(40, 5, 0.5)
    assert weights[:40].tolist() == [1.0] * 40
    assert float(weights[40:].sum()) == pytest.approx(20)
    assert memory_weights(3, 0, 1.0).tolist() == [1.0] * 3
