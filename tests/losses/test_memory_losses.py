"""Losses on what a memory holds, in value and gradient, against NumPy written from the papers' equations."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kaizen import losses


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@given(st.integers(1, 9), st.integers(2, 6), st.integers(0, 10**6))
@settings(deadline=None, max_examples=50)
def test_the_cross_entropy_of_mixed_images_is_that_to_a_mixed_target(n: int, classes: int, seed: int) -> None:
    """Mixup defines the target as share x one-hot + (1 - share) x one-hot; a missing label leaves its part at zero."""
    rng = np.random.default_rng(seed)
    logits, labels, others = rng.normal(size=(n, classes)), *rng.integers(-1, classes, size=(2, n))
    shares, target = rng.beta(0.4, 0.4, size=n), np.zeros((n, classes))
    for i in range(n):
        if labels[i] >= 0:
            target[i, labels[i]] += shares[i]
        if others[i] >= 0:
            target[i, others[i]] += 1 - shares[i]
    own = torch.from_numpy(logits).requires_grad_()
    value = losses.mixed_cross_entropy(own, *map(torch.from_numpy, (labels, others, shares)))
    value.backward()
    assert own.grad is not None
    assert value.item() == pytest.approx(-2 * (target * np.log(softmax(logits))).sum(), rel=1e-6, abs=1e-9)
    expected = 2 * (target.sum(axis=1, keepdims=True) * softmax(logits) - target)
    np.testing.assert_allclose(own.grad.numpy(), expected, rtol=1e-5, atol=1e-7)


def test_with_all_labels_it_is_mixups_mean_and_without_any_it_is_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels, others = torch.randn(5, 4, generator=generator), torch.arange(5) % 4, torch.arange(5).flip(0) % 4
    mean = torch.nn.functional.cross_entropy
    expected = 0.3 * mean(logits, labels) + 0.7 * mean(logits, others)
    available = 10
    found = losses.mixed_cross_entropy(logits, labels, others, torch.full((5,), 0.3)) / available
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    none = torch.full((5,), -1)
    assert losses.mixed_cross_entropy(logits, none, none, torch.full((5,), 0.3)).item() == 0


@given(st.integers(0, 7), st.integers(1, 6), st.integers(0, 10**6))
@settings(deadline=None, max_examples=50)
def test_stored_logits_are_compared_by_their_squared_error(n: int, classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits, held = rng.normal(size=(2, n, classes))
    own, stored = torch.from_numpy(logits).requires_grad_(), torch.from_numpy(held).requires_grad_()
    value = losses.stored_logits_distillation(own, stored)
    value.backward()
    assert own.grad is not None
    assert stored.grad is None
    by_hand = sum((logits[i, c] - held[i, c]) ** 2 / classes for i in range(n) for c in range(classes))
    assert value.item() == pytest.approx(by_hand, rel=1e-9)
    np.testing.assert_allclose(own.grad.numpy(), 2 * (logits - held) / classes, rtol=1e-9)
