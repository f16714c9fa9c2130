"""The effective rank of features."""

import numpy as np
import pytest
import torch

from kaizen.evaluation import features as features_module
from kaizen.evaluation.features import rankme


def test_rankme_is_the_exponential_of_the_entropy_of_singular_values() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(40, 7, generator=generator) * torch.arange(7)
    values = np.linalg.svd(features.double().numpy(), compute_uv=False)
    shares = values[:6] / values.sum()
    assert rankme(features) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-9)
    assert rankme(3 * torch.eye(5)) == pytest.approx(5)
    assert rankme(torch.ones(9, 4)) == pytest.approx(1, abs=1e-6), "one direction, whatever rounding adds"
    assert rankme(torch.randn(2, 50, generator=generator)) < 2.001
    assert rankme(torch.zeros(9, 4)) == 0


def test_rankme_of_many_images_looks_at_evenly_spaced_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features_module, "RANK_IMAGES", 5)
    rows = torch.eye(12)
    assert rankme(rows) == pytest.approx(4), "every third"
    assert rankme(rows[:10]) == pytest.approx(5)
