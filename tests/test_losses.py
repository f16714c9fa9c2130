"""The equations: golden values and gradients, lightly as second opinion, slices, extreme inputs, half types."""

from typing import Any

import pytest
import torch
from golden_cases import cases, drawn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kaizen import losses

BUILT = ("nt_xent", "info_nce", "contrastive_distillation", "soft_label_distillation")
FLOAT64 = 1e-6
FLOAT32 = 1e-4


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, FLOAT64), (torch.float32, FLOAT32)])
@pytest.mark.parametrize("case", cases(*BUILT), ids=lambda case: f"{case['function']} {case['kwargs']}")
def test_golden_values_and_gradients(case: dict[str, Any], dtype: torch.dtype, tolerance: float) -> None:
    leaves, prepared = drawn(case, dtype)
    value = getattr(losses, case["function"])(*(prepared[name] for name in case["call"]), **case["kwargs"])
    value.backward()
    assert value.item() == pytest.approx(case["value"], rel=tolerance)
    for name, expected in case["grad"].items():
        gradient = leaves[name].grad
        assert gradient is not None
        assert gradient.norm().item() == pytest.approx(expected["l2"], rel=tolerance)
        absolute = tolerance * expected["l2"]
        assert gradient.sum().item() == pytest.approx(expected["sum"], rel=tolerance, abs=absolute)
        assert gradient.flatten()[:4].tolist() == pytest.approx(expected["first4"], rel=tolerance, abs=absolute)


@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
def test_nt_xent_is_lightlys(temperature: float) -> None:
    from lightly.loss import NTXentLoss

    z1, z2 = randn(9, 5, seed=1), randn(9, 5, seed=2)
    theirs = NTXentLoss(temperature=temperature)(z1, z2)
    assert losses.nt_xent(z1, z2, temperature).item() == pytest.approx(theirs.item(), rel=1e-9)


def test_labelled_cross_entropy_counts_labelled_rows_only() -> None:
    logits, labels = randn(5, 4), torch.tensor([2, -1, 0, -1, 3])
    expected = -sum(logits[i].log_softmax(0)[labels[i]] for i in (0, 2, 4))
    assert losses.labelled_cross_entropy(logits, labels).item() == pytest.approx(float(expected), rel=1e-12)
    assert losses.labelled_cross_entropy(logits, torch.full((5,), -1)).item() == 0.0


@given(st.integers(2, 9), st.integers(1, 8), st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_rows_of_slices_average_to_the_whole(n: int, cut: int, seed: int) -> None:
    cut = min(cut, n - 1)
    p1, p2, z1, z2 = (randn(n, 3, seed=4 * seed + i) for i in range(4))
    for loss, inputs in ((losses.nt_xent, (z1, z2)), (losses.contrastive_distillation, (p1, p2, z1, z2))):
        whole = loss(*inputs, 0.3)
        parts = [loss(*inputs, 0.3, rows=rows) * len(rows) for rows in torch.arange(n).split([cut, n - cut])]
        assert (sum(parts) / n).item() == pytest.approx(whole.item(), rel=1e-12)


@given(
    st.sampled_from([0.0, 1e-20, 1e-4, 1.0, 1e4, 1e15]),
    st.sampled_from([0.01, 0.2]),
    st.booleans(),
    st.integers(2, 5),
)
@settings(deadline=None)
def test_extreme_inputs_give_finite_values_and_gradients(
    scale: float, temperature: float, identical: bool, n: int
) -> None:
    inputs = [(randn(n, 6, seed=i).float() * scale) for i in range(4)]
    if identical:
        inputs = [x[:1].expand(n, 6).clone() for x in inputs]
    a, b, c, d = (x.requires_grad_() for x in inputs)
    for value in (
        losses.nt_xent(a, b, temperature),
        losses.contrastive_distillation(a, b, c.detach(), d.detach(), temperature),
        losses.soft_label_distillation(a, b, c.detach(), d.detach()),
    ):
        assert torch.isfinite(value)
        value.backward()
    assert all(torch.isfinite(x.grad).all() for x in (a, b) if x.grad is not None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_computed_in_float32(dtype: torch.dtype) -> None:
    a, b, c, d = (randn(6, 8, seed=i).to(dtype) for i in range(4))
    calls = {
        "nt_xent": (a, b, 0.1),
        "info_nce": (a, b, c, 0.1),
        "contrastive_distillation": (a, b, c, d, 0.1),
        "soft_label_distillation": (a, b, c, d),
    }
    for name, arguments in calls.items():
        value = getattr(losses, name)(*arguments)
        wide = [x.float() if isinstance(x, Tensor) else x for x in arguments]
        assert value.dtype == torch.float32
        assert torch.equal(value, getattr(losses, name)(*wide)), name
