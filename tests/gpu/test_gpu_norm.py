"""The fused BatchNorm on a GPU against torch's, in the sizes of a ResNet."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kaizen.config.encoder import EncoderConfig
from kaizen.model.networks.encoders import build_encoder
from kaizen.model.networks.heads import encode_all, forward_all
from kaizen.model.networks.norm import fuses

pytest.importorskip("triton")
from kaizen.model.networks.fused_norm import fused_batch_norm

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("accelerate_anew")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("channels", "side"), [(64, 32), (128, 16), (512, 4), (24, 9)])
@pytest.mark.parametrize(("residual", "views"), [(False, 2), (True, 1), (True, 2)])
def test_the_fused_norm_is_torchs_to_rounding(
    dtype: torch.dtype, channels: int, side: int, residual: bool, views: int
) -> None:
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
            y = fused_batch_norm(given, own, residual=more if residual else None, views=views)
        else:
            y = torch.cat([own(view) for view in given.chunk(views)])
            y = F.relu(y + (more if residual else 0))
        y.backward(wide(out))
        assert given.grad is not None
        assert int(own.num_batches_tracked) == views
        found.append([y, given.grad, own.weight.grad, own.bias.grad, own.running_mean, own.running_var])
    loose = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    for one, other in zip(*found, strict=True):
        # Where rounding moves an output over ReLU's border its gradient is another one.
        gap = (one.double() - other.double()).norm() / other.double().norm()
        assert gap < loose


def test_views_of_one_call_are_those_of_a_call_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features, gradients and running statistics in float32, for two large views and three small ones."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setenv("KAIZEN_TRIAL", "1")
    torch.manual_seed(0)
    views = [torch.randn(24, 3, side, side, device="cuda") for side in (32, 32, 16, 16, 16)]
    views = [view.contiguous(memory_format=torch.channels_last) for view in views]
    encoder = build_encoder(EncoderConfig(width=16, stem="cifar")).cuda().to(memory_format=torch.channels_last)
    calls: list[int] = []
    encoder.register_forward_hook(lambda module, given, out: calls.append(len(out)))
    found = []
    for encode in (encode_all, forward_all):
        own = copy.deepcopy(encoder)
        features = encode(own, views)
        torch.cat(features).square().mean().backward()
        found.append([*features, *(p.grad for p in own.parameters()), *own.buffers()])
    assert calls == [48, 72, *[24] * 5]
    for one, other in zip(*found, strict=True):
        assert (one.double() - other.double()).norm() <= 1e-3 * other.double().norm()
