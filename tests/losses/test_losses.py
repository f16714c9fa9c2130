"""The equations: golden values and gradients, lightly as second opinion, slices, extreme inputs, half types."""

import math
from typing import Any

import pytest
import torch
from golden_cases import CASES, drawn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from kaizen import losses

FLOAT64 = 1e-6
FLOAT32 = 1e-4


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def evaluate(case: dict[str, Any], given: dict[str, Tensor]) -> Tensor:
    """The case's function on its inputs."""
    kwargs = case["kwargs"]
    if case["function"] == "swapped_prediction":
        scores = [given[z] @ given["proto"].t() for z in ("z1", "z2")]
        assignments = [losses.sinkhorn_knopp(s, **case["sinkhorn"]) for s in scores]
        extra = case["extra"]
        assert assignments[0].sum().item() == pytest.approx(extra["assign0_sum"], rel=FLOAT32)
        assert assignments[0][0, :4].tolist() == pytest.approx(extra["assign0_row0_first4"], rel=FLOAT32)
        return losses.swapped_prediction(scores, assignments, **kwargs)
    if case["function"] == "dino":
        return losses.dino(given["s"], given["te"], torch.zeros(1, 16, dtype=given["s"].dtype), **kwargs)
    arguments = [torch.arange(8) % 3 if name == "labels" else given[name] for name in case["call"]]
    return getattr(losses, case["function"])(*arguments, **kwargs)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, FLOAT64), (torch.float32, FLOAT32)])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['function']} {case['kwargs']}")
def test_golden_values_and_gradients(case: dict[str, Any], dtype: torch.dtype, tolerance: float) -> None:
    leaves, given = drawn(case, dtype)
    value = evaluate(case, given)
    value.backward()
    assert value.item() == pytest.approx(case["value"], rel=tolerance)
    assert case["grad"]
    for name, expected in case["grad"].items():
        gradient = leaves[name].grad
        assert gradient is not None
        assert gradient.norm().item() == pytest.approx(expected["l2"], rel=tolerance)
        absolute = tolerance * expected["l2"]
        assert gradient.sum().item() == pytest.approx(expected["sum"], rel=tolerance, abs=absolute)
        assert gradient.flatten()[:4].tolist() == pytest.approx(expected["first4"], rel=tolerance, abs=absolute)


def test_dinos_centre_moves_as_in_the_golden_second_call() -> None:
    (case,) = (case for case in CASES if case["function"] == "dino")
    _, given = drawn(case, torch.float64)
    center = 0.1 * given["te"].detach().mean(dim=0, keepdim=True)
    assert center[0, :4].tolist() == pytest.approx(case["extra"]["center_after_1_first4"], rel=FLOAT64)
    value = losses.dino(given["s"], given["te"], center, **case["kwargs"])
    assert value.item() == pytest.approx(case["extra"]["second_call_value"], rel=FLOAT64)


@pytest.mark.parametrize("views", [2, 3, 5])
def test_dino_is_lightlys_with_and_without_small_crops(views: int) -> None:
    from lightly.loss import DINOLoss

    student, teacher = randn(4 * views, 5, seed=1), randn(8, 5, seed=2)
    theirs = DINOLoss(output_dim=5, warmup_teacher_temp=0.05, teacher_temp=0.05, student_temp=0.1).double()
    expected = theirs(list(teacher.chunk(2)), list(student.chunk(views)), epoch=50).item()
    ours = losses.dino(student, teacher, torch.zeros(1, 5, dtype=torch.float64), 0.1, 0.05)
    assert ours.item() == pytest.approx(expected, rel=1e-6)


def test_barlow_twins_is_lightlys() -> None:
    from lightly.loss import BarlowTwinsLoss

    z1, z2 = randn(9, 5, seed=1), randn(9, 5, seed=2)
    theirs = BarlowTwinsLoss(lambda_param=0.005)(z1, z2)
    assert losses.barlow_twins(z1, z2, 0.005, 1.0).item() == pytest.approx(theirs.item(), rel=1e-4)


def test_vicreg_is_lightlys_with_its_variance_halved() -> None:
    from lightly.loss import VICRegLoss

    z1, z2 = randn(9, 5, seed=1), randn(9, 5, seed=2)
    # There the variance term is the mean over views, here as published their sum; the covariance term likewise.
    theirs = VICRegLoss(lambda_param=25.0, mu_param=50.0, nu_param=1.0)(z1, z2)
    assert losses.vicreg(z1, z2, 25.0, 25.0, 1.0).item() == pytest.approx(theirs.item(), rel=1e-6)


def test_negative_cosine_is_lightlys() -> None:
    from lightly.loss import NegativeCosineSimilarity

    p, z = randn(9, 5, seed=1), randn(9, 5, seed=2)
    theirs = NegativeCosineSimilarity()(p, z).item()
    assert losses.simsiam(p, z).item() == pytest.approx(theirs, rel=1e-9)
    assert losses.byol(p, z).item() == pytest.approx(2 + 2 * theirs, rel=1e-9)


def test_swapped_prediction_is_lightlys_swav() -> None:
    from lightly.loss import SwaVLoss

    large, small = [randn(8, 6, seed=i) for i in range(2)], [randn(8, 6, seed=i) for i in (2, 3)]
    theirs = SwaVLoss(temperature=0.1, sinkhorn_iterations=3, sinkhorn_epsilon=0.5)(large, small)
    assignments = [losses.sinkhorn_knopp(scores, 0.5, 3) for scores in large]
    ours = losses.swapped_prediction([*large, *small], assignments, 0.1)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)


@given(st.integers(2, 30), st.integers(1, 12), st.integers(0, 50))
@settings(deadline=None, max_examples=40)
def test_sinkhorn_balances_prototypes_and_gives_each_row_one_assignment(n: int, k: int, seed: int) -> None:
    assignments = losses.sinkhorn_knopp(randn(n, k, seed=seed), 0.5, 60)
    assert torch.allclose(assignments.sum(dim=1), torch.ones(n, dtype=torch.float64))
    assert torch.allclose(assignments.sum(dim=0), torch.full((k,), n / k, dtype=torch.float64), rtol=1e-2)
    shifted = losses.sinkhorn_knopp(randn(n, k, seed=seed) + 1e4, 0.05, 3)
    assert torch.isfinite(shifted).all()


def test_sup_con_without_labels_is_nt_xent_and_with_one_label_for_all_has_no_negatives() -> None:
    z1, z2 = randn(7, 5, seed=1), randn(7, 5, seed=2)
    unlabelled = losses.sup_con(z1, z2, torch.full((7,), -1), 0.2)
    assert unlabelled.item() == pytest.approx(losses.nt_xent(z1, z2, 0.2).item(), rel=1e-12)
    same = torch.ones(4, 3, dtype=torch.float64)
    found = losses.sup_con(same, same, torch.zeros(4, dtype=torch.int64), 0.2)
    assert found.item() == pytest.approx(math.log(7), rel=1e-9)


def test_deepcluster_without_an_assignment_is_zero_and_ignores_rows_without_one() -> None:
    scores = randn(3, 2, 4, 5)
    assert losses.deepcluster(scores, torch.full((3, 4), -1), 0.1).item() == 0
    some = torch.tensor([[1, -1, 2, -1]] * 3)
    kept = losses.deepcluster(scores[:, :, [0, 2]], some[:, [0, 2]], 0.1)
    assert losses.deepcluster(scores, some, 0.1).item() == pytest.approx(kept.item(), rel=1e-12)


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
    labels = torch.arange(n) % 3 - 1
    for loss, inputs in (
        (losses.nt_xent, (z1, z2)),
        (losses.sup_con, (z1, z2, labels)),
        (losses.contrastive_distillation, (p1, p2, z1, z2)),
    ):
        whole = loss(*inputs, 0.3)
        parts = [loss(*inputs, 0.3, rows=rows) * len(rows) for rows in torch.arange(n).split([cut, n - cut])]
        assert (sum(parts) / n).item() == pytest.approx(whole.item(), rel=1e-12)
    parts = [
        losses.nearest_neighbour(z1[rows], z2, 0.3, rows=rows) * len(rows)
        for rows in torch.arange(n).split([cut, n - cut])
    ]
    assert (sum(parts) / n).item() == pytest.approx(losses.nearest_neighbour(z1, z2, 0.3).item(), rel=1e-12)


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
    unit = [F.normalize(x, dim=1) for x in (a, b, c)]
    old = c.detach(), d.detach()
    for value in (
        losses.nt_xent(a, b, temperature),
        losses.sup_con(a, b, torch.arange(n) // 2 - 1, temperature),
        losses.info_nce(*unit, temperature),
        losses.relational(*unit, temperature, temperature / 2),
        losses.nearest_neighbour(old[0], b, temperature),
        losses.byol(a, b),
        losses.simsiam(a, b),
        losses.w_mse(a, b),
        losses.barlow_twins(a, b, 0.005, 0.1),
        losses.swapped_prediction(unit, [losses.sinkhorn_knopp(x, 0.05, 3) for x in unit[:2]], temperature),
        losses.dino(torch.cat(unit[:2]), torch.cat(unit[:2]), torch.zeros(1, 6), temperature, temperature),
        losses.deepcluster(torch.stack(unit[:2])[None], torch.arange(n)[None] % 6, temperature),
        losses.contrastive_distillation(a, b, *old, temperature),
        losses.predictive_distillation(a, b, *old),
        losses.decorrelative_distillation(a, b, *old, 0.005, 0.1),
        losses.prototype_distillation(a, b, *old, unit[2], unit[2].detach(), temperature),
        losses.soft_label_distillation(unit[0], unit[1], *old),
    ):
        assert torch.isfinite(value)
        value.backward(retain_graph=True)
    assert all(torch.isfinite(x.grad).all() for x in (a, b) if x.grad is not None)


def small_call(name: str, dtype: torch.dtype) -> Tensor:
    """A loss on small inputs of a type."""
    a, b, c, d = (randn(6, 8, seed=i).to(dtype) for i in range(4))
    calls: dict[str, tuple[Any, ...]] = {
        "nt_xent": (a, b, 0.1),
        "sup_con": (a, b, torch.arange(6) % 3, 0.1),
        "info_nce": (a, b, c, 0.1),
        "relational": (a, b, c, 0.1, 0.04),
        "nearest_neighbour": (a, b, 0.1),
        "byol": (a, b),
        "simsiam": (a, b),
        "barlow_twins": (a, b, 0.005, 0.1),
        "vicreg": (a, b, 25.0, 25.0, 1.0),
        "w_mse": (a, b),
        "view_prediction": (torch.stack([a, b, c]),),
        "sigreg": (torch.stack([a, b]), F.normalize(c, dim=1)),
        "sinkhorn_knopp": (a, 0.05, 3),
        "swapped_prediction": ([a, b], [c.softmax(dim=1), d.softmax(dim=1)], 0.1),
        "deepcluster": (torch.stack([a, b])[None], torch.arange(6)[None], 0.1),
        "dino": (a, b, c[:1], 0.1, 0.04),
        "contrastive_distillation": (a, b, c, d, 0.1),
        "predictive_distillation": (a, b, c, d),
        "predictive_mse_distillation": (a, b, c, d),
        "decorrelative_distillation": (a, b, c, d, 0.005, 0.1),
        "prototype_distillation": (a, b, c, d, c, d, 0.1),
        "soft_label_distillation": (a, b, c, d),
        "cross_task": (a, b, c, d, 0.1),
        "feature_distillation": (a, b, c, d),
        "instance_distillation": (a, b, c, d, 0.1),
        "pseudo_negative_distillation": (a, b, c, d, c + a, d + b, 0.1),
        "labelled_cross_entropy": (a, torch.arange(6)),
        "mixed_cross_entropy": (a, torch.arange(6), torch.arange(6).flip(0), torch.linspace(0, 1, 6)),
        "stored_logits_distillation": (a, b),
    }
    assert set(calls) | {"promote"} == set(losses.__all__)
    return getattr(losses, name)(*calls[name])


@pytest.mark.parametrize("name", [name for name in losses.__all__ if name != "promote"])
def test_half_types_and_autocast_are_computed_in_float32(name: str) -> None:
    exact = small_call(name, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(small_call(name, torch.float32), exact)
    for dtype in (torch.bfloat16, torch.float16):
        value = small_call(name, dtype)
        assert value.dtype == torch.float32 or name == "swapped_prediction"
        assert torch.allclose(value.float(), exact, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1.0, 1e4])
def test_vicreg_and_squared_errors_are_finite(scale: float) -> None:
    a, b, c, d = (randn(5, 6, seed=i).float().mul(scale).requires_grad_() for i in range(4))
    value = losses.vicreg(a, b, 25.0, 25.0, 1.0) + losses.predictive_mse_distillation(a, b, c, d)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(a.grad).all()


def test_vicreg_beyond_float32_is_infinite_and_not_undefined() -> None:
    huge = losses.vicreg(randn(5, 6, seed=1).float() * 1e10, randn(5, 6, seed=2).float() * 1e10, 25.0, 25.0, 1.0)
    assert huge == float("inf")
