"""Losses of the continual baselines against loops that are written from the papers' equations, in numpy."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from kaizen import losses

Rows = NDArray[np.float64]
T = 0.3


def rows(count: int, seed: int, dim: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=generator, dtype=torch.float64) * 3


def cos(a: Rows, b: Rows) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def pick(anchor: Rows, positive: Rows, negatives: list[Rows]) -> float:
    """-log of the positive's share among itself and the negatives."""
    exps = [np.exp(cos(anchor, other) / T) for other in (positive, *negatives)]
    return float(-np.log(exps[0] / sum(exps)))


def pnr_ssl(z1: Rows, z2: Rows, old1: Rows, old2: Rows) -> float:
    """PNR, first term, SimCLR: negatives of the batch, pseudo-negatives of the old model for the batch."""
    z, old, found = (z1, z2), (old1, old2), []
    for view in (0, 1):
        for i in range(len(z1)):
            places = [(v, j) for v in (0, 1) for j in range(len(z1)) if (v, j) != (view, i)]
            negatives = [z[v][j] for v, j in places if (v, j) != (1 - view, i)] + [old[v][j] for v, j in places]
            found.append(pick(z[view][i], z[1 - view][i], negatives))
    return float(np.mean(found))


def pnr_distillation(p1: Rows, p2: Rows, z1: Rows, z2: Rows, old1: Rows, old2: Rows) -> float:
    """PNR, second term, SimCLR: negatives of the old model, pseudo-negatives of the new one."""
    p, z, old, found = (p1, p2), (z1, z2), (old1, old2), []
    for view in (0, 1):
        for i in range(len(z1)):
            places = [(v, j) for v in (0, 1) for j in range(len(z1)) if (v, j) != (view, i)]
            negatives = [old[v][j] for v, j in places] + [z[v][j] for v, j in places]
            found.append(pick(p[view][i], old[view][i], negatives))
    return float(np.mean(found))


def osiris_cross(z1: Rows, z2: Rows, u1: Rows, u2: Rows) -> float:
    z, others = (z1, z2), [*u1, *u2]
    return float(np.mean([pick(z[v][i], z[1 - v][i], others) for v in (0, 1) for i in range(len(z1))]))


def osiris_distillation(z1: Rows, z2: Rows, old1: Rows, old2: Rows) -> float:
    new, old, found = (z1, z2), (old1, old2), []
    for a, b in ((new, old), (old, new)):
        for view in (0, 1):
            for i in range(len(z1)):
                others = [b[v][j] for v in (0, 1) for j in range(len(z1)) if j != i]
                found.append(pick(a[view][i], b[view][i], others))
    return float(np.mean(found))


def pfr(p1: Rows, p2: Rows, f1: Rows, f2: Rows) -> float:
    pairs = [*zip(p1, f1, strict=True), *zip(p2, f2, strict=True)]
    return float(np.mean([-cos(p, f) for p, f in pairs]))


CASES: dict[str, tuple[Callable[..., Tensor], Callable[..., float], tuple[int, ...], tuple[int, ...]]] = {
    "pnr ssl": (
        lambda z1, z2, o1, o2: losses.nt_xent(z1, z2, T, negatives=torch.cat([o1, o2])),
        pnr_ssl,
        (5, 5, 5, 5),
        (0, 1, 2, 3),
    ),
    "pnr distillation": (
        lambda *given: losses.pseudo_negative_distillation(*given, T),
        pnr_distillation,
        (4,) * 6,
        (0, 1, 2, 3, 4, 5),
    ),
    "osiris cross": (lambda *given: losses.cross_task(*given, T), osiris_cross, (5, 5, 3, 3), (0, 1, 2, 3)),
    "osiris distillation": (
        lambda *given: losses.instance_distillation(*given, T),
        osiris_distillation,
        (5, 5, 5, 5),
        (0, 1, 2, 3),
    ),
    "pfr": (losses.feature_distillation, pfr, (5, 5, 5, 5), (0, 1)),
}
"""Per loss: the function, a loop from its equation, sizes of its inputs, and the inputs that get a gradient."""


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_those_of_the_equation(name: str) -> None:
    """The gradient of the loop comes from central differences."""
    function, loop, sizes, trained = CASES[name]
    given = [rows(size, seed).requires_grad_() for seed, size in enumerate(sizes)]
    value = function(*given)
    value.backward()
    plain = [tensor.detach().numpy().copy() for tensor in given]
    assert value.item() == pytest.approx(loop(*plain), rel=1e-12)
    for number, tensor in enumerate(given):
        if number not in trained:
            assert tensor.grad is None, "a target"
            continue
        assert tensor.grad is not None
        numeric = np.zeros_like(plain[number])
        for place in np.ndindex(*numeric.shape):
            ends = []
            for step in (1e-6, -1e-6):
                moved = [array.copy() for array in plain]
                moved[number][place] += step
                ends.append(loop(*moved))
            numeric[place] = (ends[0] - ends[1]) / 2e-6
        assert tensor.grad.numpy() == pytest.approx(numeric, rel=1e-5, abs=1e-8)


@given(st.integers(2, 9), st.integers(1, 8), st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_rows_of_slices_average_to_the_whole(n: int, cut: int, seed: int) -> None:
    cut = min(cut, n - 1)
    six = [rows(n, 6 * seed + i) for i in range(6)]
    pair, old, others = six[:2], torch.cat(six[2:4]), [rows(3, seed + 7), rows(3, seed + 8)]
    calls: list[Callable[[Tensor | None], Tensor]] = [
        lambda which: losses.nt_xent(six[0], six[1], T, rows=which, negatives=old),
        lambda which: losses.pseudo_negative_distillation(*six, temperature=T, rows=which),
        lambda which: losses.cross_task(*pair, *others, temperature=T, rows=which),
        lambda which: losses.instance_distillation(*six[:4], temperature=T, rows=which),
    ]
    for call in calls:
        parts = [call(which) * len(which) for which in torch.arange(n).split([cut, n - cut])]
        assert (sum(parts) / n).item() == pytest.approx(call(None).item(), rel=1e-12)


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e4])
def test_extreme_inputs_give_finite_values_and_gradients(scale: float) -> None:
    given = [(rows(4, seed).float() * scale).requires_grad_() for seed in range(6)]
    for function, _, sizes, _ in CASES.values():
        value = function(*given[: len(sizes)])
        assert torch.isfinite(value)
        value.backward()
    assert all(torch.isfinite(tensor.grad).all() for tensor in given if tensor.grad is not None)
