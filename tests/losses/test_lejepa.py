"""LeJEPA's losses against sums written out from the paper, and against lightly's."""

import cmath
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kaizen import losses
from kaizen.model.methods.lejepa import unit_directions


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def epps_pulley(numbers: list[float], knots: int, extent: float) -> float:
    """The statistic of real numbers, by the trapezoidal rule over all of [-extent, extent]."""
    n, step = len(numbers), extent / (knots - 1)
    total = 0.0
    for k in range(-(knots - 1), knots):
        t = k * step
        empirical = sum(cmath.exp(1j * t * x) for x in numbers) / n
        height = abs(empirical - math.exp(-t * t / 2)) ** 2 * math.exp(-t * t / 2)
        total += height * step * (0.5 if abs(k) == knots - 1 else 1.0)
    return n * total


@pytest.mark.parametrize(("knots", "extent"), [(17, 3.0), (2, 1.0), (9, 5.0)])
def test_sigreg_is_the_mean_statistic_of_views_and_directions(knots: int, extent: float) -> None:
    views, directions = randn(3, 7, 5, seed=1), F.normalize(randn(4, 5, seed=2), dim=1)
    values = [epps_pulley((view @ a).tolist(), knots, extent) for view in views for a in directions]
    found = losses.sigreg(views, directions, knots, extent)
    assert found.item() == pytest.approx(sum(values) / len(values), rel=1e-12)


def test_the_gradients_are_those_of_differences() -> None:
    directions = F.normalize(randn(3, 4, seed=2), dim=1)
    views = randn(3, 5, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: losses.sigreg(rows, directions), views)
    assert torch.autograd.gradcheck(losses.view_prediction, views)


def test_the_prediction_is_the_mean_square_to_the_mean_of_the_global_views() -> None:
    views = randn(4, 3, 2, seed=1)
    by_hand = 0.0
    for view in views.tolist():
        for image in range(3):
            for k in range(2):
                centre = (views[0, image, k].item() + views[1, image, k].item()) / 2
                by_hand += (view[image][k] - centre) ** 2
    assert losses.view_prediction(views).item() == pytest.approx(by_hand / (4 * 3 * 2), rel=1e-12)
    every = losses.view_prediction(views, targets=4)
    assert every.item() == pytest.approx(views.var(dim=0, correction=0).mean().item(), rel=1e-12)


def test_both_are_lightlys() -> None:
    from lightly.loss import LeJEPALoss

    views, directions = randn(5, 9, 6, seed=1), F.normalize(randn(8, 6, seed=2), dim=1)
    theirs = LeJEPALoss(lambda_param=0.05, sigreg_num_vectors=8).double()
    theirs.sigreg._generate_unit_vectors = lambda *args: directions.t()
    ours = 0.95 * losses.view_prediction(views) + 0.05 * losses.sigreg(views, directions)
    # Its frequencies are rounded to float32.
    expected = theirs(local_proj=views[2:], global_proj=views[:2]).item()
    assert ours.item() == pytest.approx(expected, rel=1e-6)


def test_parts_with_their_sums_give_the_whole() -> None:
    views, directions = randn(2, 9, 5, seed=1), F.normalize(randn(4, 5, seed=2), dim=1)
    held: list[Tensor] = []
    for part in views.split([4, 5], dim=1):
        losses.sigreg(part, directions, rows=9, total=lambda sums: held.append(sums) or sums)
    one = losses.sigreg(views[:, :4], directions, rows=9, total=lambda sums: held[0] + held[1])
    assert one.item() == pytest.approx(losses.sigreg(views, directions).item(), rel=1e-12)


def test_a_gaussian_is_lower_than_a_collapse_a_shift_or_another_shape() -> None:
    directions = F.normalize(randn(64, 6, seed=2), dim=1)
    even = randn(200, 50, 6, seed=1)
    least = losses.sigreg(even, directions).item()
    # In expectation the integral of (1 - exp(-t^2)) exp(-t^2/2), whatever the number of images.
    expected = math.sqrt(2 * math.pi) - math.sqrt(2 * math.pi / 3)
    assert least == pytest.approx(expected, rel=0.05)
    for other in (even * 0, even * 0.5, even + 0.5, even.sign(), even[:, :1].expand(-1, 50, -1)):
        assert losses.sigreg(other, directions).item() > 1.3 * least
    small, large = (losses.sigreg(torch.zeros(1, n, 6), directions.float()).item() for n in (10, 1000))
    assert large == pytest.approx(100 * small, rel=1e-5), "it grows with the batch, as in the paper"


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1.0, 1e4, 1e15])
def test_extreme_embeddings_give_finite_values_and_gradients(scale: float) -> None:
    views = (randn(2, 5, 6).float() * scale).requires_grad_()
    value = losses.sigreg(views, F.normalize(randn(4, 6, seed=2).float(), dim=1)) + losses.view_prediction(views)
    value.backward()
    assert torch.isfinite(value)
    assert views.grad is not None
    assert torch.isfinite(views.grad).all()


def test_directions_are_unit_vectors_of_the_key_alone_and_spread_evenly() -> None:
    first = unit_directions(4000, 6, 5, torch.device("cpu"))
    assert torch.equal(first, unit_directions(4000, 6, torch.tensor(5), torch.device("cpu")))
    assert not torch.equal(first, unit_directions(4000, 6, 6, torch.device("cpu")))
    assert torch.allclose(first.norm(dim=1), torch.ones(4000))
    assert first.mean(dim=0).abs().max() < 0.03
    assert torch.allclose(first.t() @ first / 4000, torch.eye(6) / 6, atol=0.02)
    assert first.pow(4).mean().item() == pytest.approx(3 / (6 * 8), rel=0.05), "as on a sphere, not in a cube"
