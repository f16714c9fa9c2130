"""LARS, schedules and parameter groups: golden values, compared with torch's SGD."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from golden_cases import SCHEDULES
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kaizen.cli.resolve import parse_arguments, resolve
from kaizen.model.learner import Learner
from kaizen.training.optim import (
    LARS,
    add_scaled_,
    build_optimizer,
    momentum_tau,
    parameter_groups,
    set_rates,
    warmup_cosine,
)

SHAPES = {
    "enc.conv.weight": (2, 3, 3, 3),
    "enc.bn.weight": (4,),
    "enc.bn.bias": (4,),
    "enc.fc.weight": (4, 5),
    "cls.weight": (3, 4),
    "cls.bias": (3,),
    "zero.weight": (2, 2),
}


def test_lars_takes_the_golden_steps() -> None:
    golden, rng = SCHEDULES["lars"]["clipTrue_excludeTrue"], np.random.RandomState(777)
    drawn = {name: rng.randn(*shape).astype(np.float32) * (name != "zero.weight") for name, shape in SHAPES.items()}
    params = {name: torch.from_numpy(value.astype(np.float64)).requires_grad_() for name, value in drawn.items()}
    for name, p in params.items():
        assert p.detach().flatten().tolist() == pytest.approx(golden["init"][name], rel=1e-6, abs=1e-12)
    body = [p for name, p in params.items() if not name.startswith("cls")]
    head = [p for name, p in params.items() if name.startswith("cls")]
    groups = [{"params": body, "lr": 1.0, "weight_decay": 1e-5}, {"params": head, "lr": 0.1, "weight_decay": 0.0}]
    optimizer = LARS(groups, lr=1.0, momentum=0.9, eta=0.02, clip=True, exclude_1d=True)
    for step in golden["steps"]:
        for p in params.values():
            p.grad = torch.from_numpy(rng.randn(*p.shape).astype(np.float32) * np.float32(step["grad_scale"])).double()
        optimizer.step()
        for name, p in params.items():
            # The expected values were computed in float32.
            assert p.detach().flatten().tolist() == pytest.approx(step["params"][name], rel=2e-6, abs=2e-6), name


def test_lars_with_a_tiny_ratio_and_no_exclusion_follows_the_formula() -> None:
    p = torch.tensor([3.0, 4.0], dtype=torch.float64, requires_grad=True)
    g, eta, decay, lr = torch.tensor([0.6, 0.8], dtype=torch.float64), 0.02, 0.1, 2.0
    p.grad = g.clone()
    LARS([p], lr=lr, momentum=0.9, weight_decay=decay, eta=eta, clip=False, exclude_1d=False).step()
    s = eta * 5 / (1 + decay * 5 + 1e-8)
    start = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert torch.allclose(p.detach(), start - lr * s * (g + decay * start))
    assert torch.equal(p.grad, g), "gradients are unchanged"


def test_lars_on_one_dimensional_parameters_is_torchs_sgd_without_decay() -> None:
    ours, theirs = (nn.Parameter(torch.arange(4.0) - 1) for _ in range(2))
    pair = LARS([ours], lr=0.3, weight_decay=0.5), torch.optim.SGD([theirs], lr=0.3, momentum=0.9)
    for step in range(4):
        for p, optimizer in zip((ours, theirs), pair, strict=True):
            p.grad = torch.full((4,), 0.1 * step - 0.15)
            optimizer.step()
    assert torch.allclose(ours, theirs, atol=1e-7)


def test_a_rate_of_zero_is_no_step() -> None:
    p = nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([p], lr=0.0)
    p.grad = torch.ones(2, 2)
    optimizer.step()
    assert torch.equal(p.detach(), torch.ones(2, 2))
    assert not optimizer.state


def test_parameters_without_gradient_are_left_alone() -> None:
    p, q = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    p.grad = torch.ones(2, 2)
    LARS([p, q], lr=0.1).step()
    assert torch.equal(q.detach(), torch.ones(2, 2))
    assert not torch.equal(p.detach(), torch.ones(2, 2))


def test_rates_equal_the_golden_schedule() -> None:
    (golden,) = SCHEDULES["lr_schedule"]
    for base, expected in (
        (golden["base_lr"], golden["lr_by_epoch"]),
        (golden["second_group_base_lr"], golden["second_group_lr_by_epoch"]),
    ):
        start = min(golden["warmup_start_lr"], base)
        found = [
            warmup_cosine(s, golden["max_epochs"], golden["warmup_epochs"], base, start, golden["eta_min"])
            for s in range(len(expected))
        ]
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_tau_equals_the_golden_values() -> None:
    for case in SCHEDULES["momentum_tau"]:
        found = momentum_tau(case["cur_step"], case["max_steps"], case["base"], case["final"])
        assert found == pytest.approx(case["tau"], rel=1e-12)


@given(st.integers(1, 400), st.integers(0, 399), st.floats(1e-4, 10), st.floats(0, 1e-4))
def test_rates_rise_then_fall_between_their_bounds(steps: int, warmup: int, base: float, minimum: float) -> None:
    warmup, start = min(warmup, steps - 1), min(0.003, base)
    rates = [warmup_cosine(s, steps, warmup, base, start, minimum) for s in range(steps)]
    low = min(start, minimum) if warmup > 1 else minimum
    assert all(low - 1e-12 <= rate <= base + 1e-12 for rate in rates)
    peak = warmup if warmup > 1 else 0
    assert math.isclose(rates[peak], base)
    assert all(a <= b + 1e-12 for a, b in pairwise(rates[: peak + 1]))
    assert all(a >= b for a, b in pairwise(rates[peak:]))


def test_every_trained_parameter_is_in_one_group_with_its_rate_and_decay() -> None:
    config = resolve(*parse_arguments(["digits", "--encoder.width", "4", "--method.projector_hidden", "8"]))[1]
    model = Learner(config, 10, None)
    groups = {group["name"]: group for group in parameter_groups(model, 0.5, 0.1, 1e-3)}
    assert {name: (g["lr"], g["base_lr"], g["weight_decay"]) for name, g in groups.items()} == {
        "body": (0.5, 0.5, 1e-3),
        "body_plain": (0.5, 0.5, 0.0),
        "classifier": (0.1, 0.1, 0.0),
    }
    placed = [id(p) for group in groups.values() for p in group["params"]]
    assert sorted(placed) == sorted(id(p) for p in model.parameters())
    assert {id(p) for p in groups["classifier"]["params"]} == {id(p) for p in model.classifier.parameters()}
    assert all(p.ndim > 1 for p in groups["body"]["params"])


def test_one_dimensional_parameters_are_decayed_and_adapted_where_the_key_says_so() -> None:
    """The weights after one step, each written from its optimizer's equation; `plain` ones stay apart."""
    lr, classifier_lr, decay, eta = 0.5, 0.1, 1e-2, 0.02

    def model() -> nn.ModuleDict:
        torch.manual_seed(0)
        return nn.ModuleDict({"norm": nn.LayerNorm(4), "token": nn.LayerNorm(4), "classifier": nn.Linear(4, 2)})

    for name in ("sgd", "lars", "adamw"):
        module = model()
        plain = ("token.weight", "token.bias")
        groups = parameter_groups(module, lr, classifier_lr, decay, (), plain, exclude_1d=False)
        assert [group["name"] for group in groups] == ["body", "body_plain", "classifier"]
        optimizer = build_optimizer(name, groups, 0.9, eta, lr)
        with torch.no_grad():
            module["norm"].bias.fill_(0.3)
        before = {key: p.detach().clone() for key, p in module.named_parameters()}
        for p in module.parameters():
            p.grad = torch.linspace(0.1, 0.7, p.numel()).view_as(p)
        gradients = {key: p.grad.clone() for key, p in module.named_parameters()}
        optimizer.step()
        for key, p in module.named_parameters():
            rate = classifier_lr if key.startswith("classifier") else lr
            own = decay if key.startswith("norm") else 0.0
            w, g = before[key], gradients[key]
            if name == "adamw":
                expected = w - rate * own * w - rate * g.sign()
            else:
                step = g + own * w
                if name == "lars" and key not in plain:
                    s = eta * w.norm() / (g.norm() + own * w.norm() + 1e-8)
                    step = step * min(float(s) / rate, 1.0)
                expected = w - rate * step
            torch.testing.assert_close(p.detach(), expected, rtol=1e-5, atol=1e-6, msg=f"{name} {key}")


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
def test_optimizers_lower_a_loss_by_their_groups(name: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    optimizer = build_optimizer(name, parameter_groups(model, 0.02, 0.02, 1e-4), 0.9, 0.02, 0.02)
    x, losses = torch.randn(16, 3, generator=torch.Generator().manual_seed(0)), []
    for _ in range(30):
        loss = (model(x) - x.sum(dim=1, keepdim=True)).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]


def test_lars_takes_a_tensor_for_a_rate_and_gives_the_same_bits_on_a_cpu() -> None:
    ends = []
    for as_tensor in (False, True):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(37, 19), nn.Linear(19, 3))
        optimizer = build_optimizer("lars", parameter_groups(module, 0.3, 0.1, 1e-3), 0.9, 0.02, 0.3)
        for step in range(4):
            module(torch.randn(8, 37)).square().mean().backward()
            rates = [0.3 / (step + 1)] * len(optimizer.param_groups)
            if as_tensor:
                set_rates(optimizer, torch.tensor(rates, dtype=torch.float64), rates)
            else:
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        ends.append([p.detach().clone() for p in module.parameters()])
    for one, other in zip(*ends, strict=True):
        assert torch.equal(one, other)


def test_a_twin_follows_by_a_tensor_as_by_a_number_on_a_cpu() -> None:
    twin, student, follow = torch.randn(1003), torch.randn(1003), 1 - 0.9912345
    expected = torch.lerp(twin, student, follow)
    add_scaled_([twin], [student - twin], torch.tensor(follow))
    assert torch.equal(twin, expected)
