"""The fused BatchNorm on a GPU against torch's, in the sizes of a ResNet."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kaizen.model.networks.norm import fuses

pytest.importorskip("triton")
from kaizen.model.networks.fused_norm import fused_batch_norm

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("accelerate_anew")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("channels", "side"), [(64, 32), (128, 16), (512, 4), (24, 9)])
@pytest.mark.parametrize("residual", [False, True])
def test_the_fused_norm_is_torchs_to_rounding(dtype: torch.dtype, channels: int, side: int, residual: bool) -> None:
    assert fuses(dtype, torch.device("cuda"))
    torch.manual_seed(0)
    maps = [torch.randn(96, channels, side, side, device="cuda") * 2 + 1 for _ in range(3)]
    x, added, out = (m.to(dtype).contiguous(memory_format=torch.channels_last) for m in maps)
    norm = nn.BatchNorm2d(channels).cuda()
    found = []
    for fused in (True, False):
        # In float64 the other way, from the same rounded numbers.
        own, wide = copy.deepcopy(norm), (lambda t: t) if fused else (lambda t: t.double())
        own = own if fused else own.double()
        given, more = wide(x.clone()).requires_grad_(), wide(added.clone()).requires_grad_()
        if fused:
            y = fused_batch_norm(given, own, residual=more if residual else None)
        else:
            y = F.relu(own(given) + (more if residual else 0))
        y.backward(wide(out))
        assert given.grad is not None
        found.append([y, given.grad, own.weight.grad, own.bias.grad, own.running_mean, own.running_var])
    loose = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    for one, other in zip(*found, strict=True):
        # Where rounding moves an output over ReLU's border its gradient is another one.
        gap = (one.double() - other.double()).norm() / other.double().norm()
        assert gap < loose
