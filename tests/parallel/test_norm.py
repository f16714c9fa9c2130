"""The BatchNorm over processes with a group of one: the results of torch's BatchNorm, for every allowed shape."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kaizen.parallel.norm
from kaizen.parallel import GlobalBatchNorm

SHAPES = {2: (6, 5), 3: (6, 5, 4), 4: (6, 5, 4, 3), 5: (6, 5, 2, 3, 2)}


@pytest.fixture(autouse=True)
def group_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kaizen.parallel.norm, "gather_alike", lambda local: local.detach()[None])


def results(norm: nn.Module, x: Tensor, weights: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    y = norm(x)
    (y * weights).sum().backward()
    assert x.grad is not None
    return [y.detach(), x.grad, *(p.grad for p in norm.parameters() if p.grad is not None), *norm.buffers()]


@pytest.mark.parametrize("dims", SHAPES)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("kind", ["float64", "float32", "bfloat16", "channels last", "transposed gradient"])
def test_a_group_of_one_gives_the_results_of_torchs_batch_norm(dims: int, affine: bool, kind: str) -> None:
    torch.manual_seed(dims)
    dtype = getattr(torch, kind, torch.float64)
    x, weights = (torch.randn(SHAPES[dims]).add(1).to(dtype) for _ in range(2))
    if kind == "channels last" and dims == 4:
        x = x.to(memory_format=torch.channels_last)
    if kind == "transposed gradient":
        weights = weights.transpose(0, -1).contiguous().transpose(0, -1)
    held: Any = torch.float32 if dtype == torch.bfloat16 else dtype
    ours = GlobalBatchNorm(5, affine=affine).to(held)
    kinds: Any = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
    theirs = kinds[dims](5, affine=affine).to(held)
    if affine:
        for norm in (ours, theirs):
            torch.manual_seed(1)
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
    limit = {torch.bfloat16: 2e-2, torch.float32: 1e-5}.get(dtype, 1e-12)
    for found, expected in zip(results(ours, x, weights), results(theirs, x, weights), strict=True):
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=limit, atol=limit)


def test_a_process_without_a_row_takes_part(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(4, 5)
    told = torch.cat([rows.mean(dim=0), rows.var(dim=0, unbiased=False), torch.tensor([4.0])])

    def gathered(local: Tensor) -> Tensor:
        return torch.stack([local, told if local.dim() == 1 else local])

    monkeypatch.setattr(kaizen.parallel.norm, "gather_alike", gathered)
    norm = GlobalBatchNorm(5)
    found = results(norm, rows[:0], rows[:0])
    assert [part.shape for part in found[:2]] == [(0, 5), (0, 5)]
    assert torch.allclose(norm.running_mean, rows.mean(dim=0) * 0.1)
