"""A BatchNorm with what follows it, by fused kernels where a GPU has them."""

import warnings
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TYPES = (torch.bfloat16, torch.float16, torch.float32)


def normalised(norm: nn.Module, x: Tensor, *, residual: Tensor | None = None, relu: bool = True) -> Tensor:
    """relu(norm(x) + residual) of maps (n, c, h, w).

    Args:
        norm: any norm; a BatchNorm that normalises by the batch, alone on a GPU, takes kernels of our own.
        residual: maps of the same shape that are added; None: nothing.
        relu: whether ReLU follows.
    """
    if _fits(norm, x) and fuses(x.dtype, x.device):
        from kaizen.networks.fused_norm import fused_batch_norm

        assert isinstance(norm, nn.BatchNorm2d)
        return fused_batch_norm(x, norm, residual=residual, relu=relu)
    y = norm(x)
    if residual is not None:
        y += residual
    return F.relu(y, inplace=True) if relu else y


def _fits(norm: nn.Module, x: Tensor) -> bool:
    """Whether the fused kernels compute what this norm does with these maps; a compiler fuses by itself."""
    if type(norm) is not nn.BatchNorm2d or x.device.type != "cuda" or torch.compiler.is_compiling():
        return False
    by_batch = norm.training or norm.running_mean is None
    plain = norm.affine and norm.momentum is not None and x.dtype in TYPES
    return by_batch and plain and x.is_contiguous(memory_format=torch.channels_last)


@lru_cache
def fuses(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the fused kernels can be compiled here and give what torch gives, tried once on a small map."""
    if torch.version.cuda is None:
        return False
    try:
        from kaizen.networks.fused_norm import fused_batch_norm

        with torch.enable_grad():
            maps = torch.randn(4, 16, 8, 8, generator=torch.Generator().manual_seed(0)).to(device, dtype)
            maps, found = maps.contiguous(memory_format=torch.channels_last), []
            for fused in (True, False):
                norm, given = nn.BatchNorm2d(16).to(device), maps.clone().requires_grad_()
                y = fused_batch_norm(given, norm, residual=maps) if fused else F.relu(norm(given) + maps)
                y.backward(maps)
                assert given.grad is not None
                found.append([y.float(), given.grad.float(), norm.running_var])
            apart = max(float((one - other).abs().max()) for one, other in zip(*found, strict=True))
        problem = None if apart < 0.1 else f"they are {apart:.3g} from torch's"
    except Exception as error:  # a compiler that is missing, a GPU that Triton does not know
        problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if problem:
        warnings.warn(f"BatchNorm takes torch's kernels, as fused ones fail here ({problem})", stacklevel=2)
    return problem is None
