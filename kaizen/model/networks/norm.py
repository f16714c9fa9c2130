"""A BatchNorm and the operations that follow it, as fused kernels where the GPU has them."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TYPES = (torch.bfloat16, torch.float16, torch.float32)


class _Views:
    count = 1


@contextmanager
def views_apart(count: int) -> Iterator[None]:
    """Inside, maps hold the images of `count` views one after another, and each view has statistics of its own."""
    held, _Views.count = _Views.count, count
    try:
        yield
    finally:
        _Views.count = held


def takes_views_together(network: nn.Module, device: torch.device) -> bool:
    """Whether all BatchNorms of a network take the fused kernels on this device, which keep views apart.

    Only with KAIZEN_TRIAL=1, until `.ci/gpu` has shown that it is faster.
    """
    if os.environ.get("KAIZEN_TRIAL") != "1":
        return False
    if device.type != "cuda" or any(part._compiled_call_impl is not None for part in network.modules()):
        return False
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else torch.float32
    norms = [part for part in network.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    return all(_fits(norm) for norm in norms) and fuses(dtype, device)


def normalised(norm: nn.Module, x: Tensor, *, residual: Tensor | None = None, relu: bool = True) -> Tensor:
    """relu(norm(x) + residual) of maps (n, c, h, w), of several views inside `views_apart`.

    Args:
        norm: any norm; a BatchNorm that normalises by the batch takes our fused kernels on a single GPU.
        residual: maps of the same shape that are added; None: nothing.
        relu: whether ReLU follows.
    """
    if _can_fuse(norm, x) and fuses(x.dtype, x.device):
        from kaizen.model.networks.fused_norm import fused_batch_norm

        assert isinstance(norm, nn.BatchNorm2d)
        return fused_batch_norm(x, norm, residual=residual, relu=relu, views=_Views.count)
    y = norm(x) if _Views.count == 1 else torch.cat([norm(view) for view in x.chunk(_Views.count)])
    if residual is not None:
        y += residual
    return F.relu(y, inplace=True) if relu else y


def _can_fuse(norm: nn.Module, x: Tensor) -> bool:
    """Whether the fused kernels compute what this norm does with these maps; a compiler fuses by itself."""
    if x.device.type != "cuda" or torch.compiler.is_compiling() or not _fits(norm):
        return False
    return x.dtype in TYPES and x.is_contiguous(memory_format=torch.channels_last)


def _fits(norm: nn.Module) -> bool:
    """Whether the fused kernels compute what this norm does."""
    if type(norm) is not nn.BatchNorm2d:
        return False
    return (norm.training or norm.running_mean is None) and norm.affine and norm.momentum is not None


@lru_cache
def fuses(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the fused kernels can be compiled here and give what torch gives, tried once on a small map."""
    if torch.version.cuda is None:
        return False
    try:
        from kaizen.model.networks.fused_norm import fused_batch_norm

        with torch.enable_grad():
            maps = torch.randn(4, 16, 8, 8, generator=torch.Generator().manual_seed(0)).to(device, dtype)
            maps, found = maps.contiguous(memory_format=torch.channels_last), []
            for fused in (True, False):
                norm = nn.BatchNorm2d(16).to(device)
                x, added = (maps.clone().requires_grad_() for _ in range(2))
                if fused:
                    y = fused_batch_norm(x, norm, residual=added, views=2)
                    y = fused_batch_norm(y, norm, relu=False)
                else:
                    y = norm(F.relu(torch.cat([norm(view) for view in x.chunk(2)]) + added))
                y.backward(maps)
                held = [y.detach(), x.grad, added.grad, norm.weight.grad, norm.bias.grad]
                found.append([t.float() for t in (*held, norm.running_mean, norm.running_var) if t is not None])
            apart = max(float((one - other).norm() / other.norm()) for one, other in zip(*found, strict=True))
        problem = None if apart < 0.05 else f"they are {apart:.3g} from torch's"
    except Exception as error:  # a compiler that is missing, a GPU that Triton does not know
        problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if problem:
        warnings.warn(f"BatchNorm takes torch's kernels, as fused ones fail here ({problem})", stacklevel=2)
    return problem is None
