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
APPLIED = ["apply_norm", "apply_gradient"]


def compare() -> None:
    """Values, gradients and running statistics of one step, for maps of several sizes; run by the test below."""
    from kaizen.model.networks import fused_norm
    from kaizen.model.networks.fused_norm import fused_batch_norm

    # The interpreter takes long, and with tiles this small, small maps have several steps in each of several parts.
    fused_norm.ROWS, fused_norm.PARTS = 16, 8
    torch.manual_seed(0)
    for n, c, side, residual, relu, views in (
        (5, 8, 6, True, True, 1),
        (3, 70, 3, False, True, 1),
        (6, 4, 10, True, True, 1),
        (2, 4, 5, False, False, 1),
        (4, 6, 9, True, False, 1),
        (8, 20, 5, True, True, 2),
        (6, 4, 8, False, True, 3),
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
                y = fused_batch_norm(given, own, residual=more, relu=relu, views=views)
            else:
                y = torch.cat([own(view) for view in given.chunk(views)])
                y = y if more is None else y + more
                y = F.relu(y) if relu else y
            y.backward(out)
            held = [y, given.grad, own.weight.grad, own.bias.grad, own.running_mean, own.running_var]
            found.append([*held, own.num_batches_tracked, *([more.grad] if more is not None else [])])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-4)
        frozen = nn.BatchNorm2d(c, track_running_stats=False)
        y = fused_batch_norm(x, frozen, residual=added, relu=relu, views=views)
        alone = [F.batch_norm(view, None, None, frozen.weight, frozen.bias, True) for view in x.chunk(views)]
        expected = torch.cat(alone) + (0 if added is None else added)
        torch.testing.assert_close(y, F.relu(expected) if relu else expected, rtol=2e-4, atol=2e-4)
    # Squares of a large mean do not cancel.
    far, norm = (torch.randn(10, 4, 12, 12) + 1000).to(memory_format=torch.channels_last), nn.BatchNorm2d(4)
    fused_batch_norm(far, norm)
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * far.double().var(dim=(0, 2, 3)).float(), rtol=1e-4, atol=0)


def test_the_kernels_do_what_torch_does() -> None:
    pytest.importorskip("triton")
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, __file__], cwd=HERE.parent, env=env, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_kernels_compile_for_an_h100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, to its machine code; for two views, with sums that read ahead and without."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from kaizen.model.networks import norm_kernels as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types = dict.fromkeys(("x", "y", "dy", "dx", "residual", "dresidual"), "*bf16") | {"batches": "*i64"}
    types |= dict.fromkeys(("pixels", "channels", "steps", "count"), "i32") | {"momentum": "fp32", "eps": "fp32"}
    for stages in (1, 3):
        fixed = {"ROWS": 128, "STAGES": stages, "PARTS": 128, "VIEWS": 2, "TRACKED": True, "ADDED": True, "RELU": True}
        for name in (
            "sum_moments",
            "merge_moments",
            "apply_norm",
            "sum_gradients",
            "merge_gradients",
            "apply_gradient",
        ):
            kernel = getattr(kernels, name)
            given = {name: fixed[name] for name in kernel.arg_names if name in fixed}
            signature = {name: "constexpr" if name in fixed else types.get(name, "*fp32") for name in kernel.arg_names}
            constants = {(kernel.arg_names.index(name),): value for name, value in given.items()}
            source = ASTSource(kernel, signature=signature, constexprs=constants)
            built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
            assert built.asm["cubin"]


if __name__ == "__main__":
    compare()
