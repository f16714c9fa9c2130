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
    Statistics,
    fit_map,
    images_within,
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
    return classes, means, np.cov(rest.T, bias=True)


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
    map = fit_map(FEATURES, moved, torch.ones(len(FEATURES)).double(), 1e-12)
    assert_equal(Statistics.measured(FEATURES, LABELS).carried(map), moved, LABELS)


@pytest.mark.parametrize("ridge", [1e-3, 0.1, 10.0])
def test_the_map_is_a_ridge_regression_of_the_change(ridge: float) -> None:
    new = FEATURES @ torch.from_numpy(RANDOM.normal(size=(D, D))) + torch.from_numpy(RANDOM.normal(size=FEATURES.shape))
    weights = memory_weights(50, len(FEATURES) - 50, 0.7)
    map = fit_map(FEATURES, new, weights, ridge)
    share = weights / weights.sum()
    variance = float((share[:, None] * (FEATURES - share @ FEATURES).square()).sum(0).mean())
    model = Ridge(alpha=ridge * variance, solver="cholesky")
    model.fit(FEATURES.numpy(), (new - FEATURES).numpy(), sample_weight=share.numpy())
    np.testing.assert_allclose(map.weight, np.eye(D) + model.coef_.T, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(
        map(FEATURES).numpy(), FEATURES.numpy() + model.predict(FEATURES.numpy()), rtol=1e-8, atol=1e-9
    )


def test_what_the_map_misses_on_remembered_images_moves_the_means_of_their_classes() -> None:
    held = Statistics.measured(FEATURES, LABELS)
    residuals, labels = torch.full((5, D), 2.0).double(), torch.tensor([0, 0, 0, 7, -1])
    moved = held.corrected(residuals, labels, 3.0).means - held.means
    torch.testing.assert_close(moved, torch.tensor([[1.0], [0.0], [0.5]]).double().expand(3, D))


def test_features_that_are_all_equal_are_mapped_by_their_shift() -> None:
    same = torch.ones(4, D).double()
    map = fit_map(same, same + 3, torch.ones(4).double(), 0.01)
    torch.testing.assert_close(map(same), same + 3)


@pytest.mark.parametrize("shrinkage", [0.0, 0.02, 1.0])
def test_the_classifier_is_scikit_learns_lda(shrinkage: float) -> None:
    known = LABELS >= 0
    x, y = FEATURES[known].numpy(), LABELS[known].numpy()
    priors = np.bincount(y)[np.unique(y)] / len(y)
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage or None, priors=priors).fit(x, y)
    weight, bias = Statistics.measured(FEATURES, LABELS).classifier(shrinkage)
    np.testing.assert_allclose(weight, model.coef_, rtol=1e-8, atol=1e-10)
    # scikit-learn adds the log of the priors, by which it also weights the covariance; ours are equal.
    np.testing.assert_allclose(bias, model.intercept_ - np.log(priors), rtol=1e-8, atol=1e-10)


def test_a_feature_that_never_varies_decides_nothing() -> None:
    padded = torch.cat([FEATURES, torch.zeros(len(FEATURES), 1).double()], dim=1)
    plain = Statistics.measured(FEATURES, LABELS).classifier(0.0)
    weight, bias = Statistics.measured(padded, LABELS).classifier(0.0)
    torch.testing.assert_close(weight[:, :-1], plain[0])
    torch.testing.assert_close(bias, plain[1])
    assert weight[:, -1].abs().max() < 1e-12


def test_what_is_saved_is_read_back_to_the_precision_of_float16(tmp_path: Path) -> None:
    held = Statistics.measured(torch.cat([FEATURES, torch.ones(len(FEATURES), 1).double()], dim=1), LABELS)
    save_file(held.tensors(), tmp_path / "statistics.safetensors")
    read = Statistics.read(tmp_path / "statistics.safetensors", D + 1)
    assert read.classes.tolist() == held.classes.tolist()
    assert read.counts.tolist() == held.counts.tolist()
    torch.testing.assert_close(read.means, held.means, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(read.covariance, held.covariance, rtol=2e-3, atol=2e-3)
    kept = sum(t.numel() * t.element_size() for t in held.tensors().values())
    assert kept == statistics_bytes(3, D + 1)


def test_a_file_of_other_features_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "statistics.safetensors"
    save_file(Statistics.measured(FEATURES, LABELS).tensors(), file)
    with pytest.raises(ConfigError, match=r"statistics\.safetensors: means has the shape \(3, 6\); allowed: \(3, 8\)"):
        Statistics.read(file, 8)


def test_without_a_label_there_is_nothing_and_it_merges_with_anything() -> None:
    none = Statistics.measured(FEATURES, torch.full_like(LABELS, -1))
    assert len(none.classes) == 0
    assert none.means.shape == (0, D)
    assert_equal(none.merged(Statistics.measured(FEATURES, LABELS)), FEATURES, LABELS)
    identity = fit_map(FEATURES, FEATURES, torch.ones(len(FEATURES)).double(), 0.01)
    assert len(none.carried(identity).classes) == 0


def test_a_budget_pays_statistics_first() -> None:
    assert images_within(1000, 100, None, D) == 10
    assert images_within(1000, 100, 3, D) == (1000 - statistics_bytes(3, D)) // 100
    assert images_within(10, 100, 3, D) == 0


def test_remembered_images_together_weigh_their_share_of_the_current_ones() -> None:
    weights = memory_weights(40, 5, 0.5)
    assert weights[:40].tolist() == [1.0] * 40
    assert float(weights[40:].sum()) == pytest.approx(20)
    assert memory_weights(3, 0, 1.0).tolist() == [1.0] * 3
