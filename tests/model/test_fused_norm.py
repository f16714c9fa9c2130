"""The fused BatchNorm's kernels, run by Triton's interpreter on a CPU, against torch's operations."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

HERE = Path(__file__).parent


def compare() -> None:
    """Values, gradients and running statistics of one step, for maps of several sizes; run by the test below."""
    from kaizen.model.networks.fused_norm import fused_batch_norm

    torch.manual_seed(0)
    for n, c, side, residual, relu in (
        (5, 8, 6, True, True),
        (3, 70, 3, False, True),
        (40, 4, 30, True, True),
        (2, 4, 5, False, False),
        (4, 6, 9, True, False),
    ):
        x = (torch.randn(n, c, side, side) * 3 + 5).to(memory_format=torch.channels_last)
        added = torch.randn_like(x) if residual else None
        out = torch.randn_like(x)
        found = []
        norm = nn.BatchNorm2d(c)
        with torch.no_grad():
            norm.weight.uniform_(0.5, 2)
            norm.bias.normal_()
        for fused in (True, False):
            own, given = copy.deepcopy(norm), x.clone().requires_grad_()
            more = added.clone().requires_grad_() if added is not None else None
            if fused:
                y = fused_batch_norm(given, own, residual=more, relu=relu)
            else:
                y = own(given) if more is None else own(given) + more
                y = F.relu(y) if relu else y
            y.backward(out)
            held = [y, given.grad, own.weight.grad, own.bias.grad, own.running_mean, own.running_var]
            found.append([*held, own.num_batches_tracked, *([more.grad] if more is not None else [])])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-4)
        frozen = nn.BatchNorm2d(c, track_running_stats=False)
        y = fused_batch_norm(x, frozen, residual=added, relu=relu)
        expected = F.batch_norm(x, None, None, frozen.weight, frozen.bias, True) + (0 if added is None else added)
        torch.testing.assert_close(y, F.relu(expected) if relu else expected, rtol=2e-4, atol=2e-4)
    # Squares of a large mean do not cancel.
    far, norm = (torch.randn(40, 4, 12, 12) + 1000).to(memory_format=torch.channels_last), nn.BatchNorm2d(4)
    fused_batch_norm(far, norm)
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * far.double().var(dim=(0, 2, 3)).float(), rtol=1e-4, atol=0)


def test_the_kernels_do_what_torch_does() -> None:
    pytest.importorskip("triton")
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, __file__], cwd=HERE.parent, env=env, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]


if __name__ == "__main__":
    compare()
