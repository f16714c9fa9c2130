"""What the equations share: precision, norms, rows of both views."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

P = ParamSpec("P")
R = TypeVar("R")


def in_float32(function: Callable[P, R]) -> Callable[P, R]:
    """The function with autocast off, which would compute products of float32 tensors in a half type again."""

    @wraps(function)
    def computed(*args: P.args, **kwargs: P.kwargs) -> R:
        devices = {tensor.device.type for tensor in args if isinstance(tensor, Tensor)} or {"cpu"}
        with torch.autocast(devices.pop(), enabled=False):
            return function(*args, **kwargs)

    return computed


def promote(tensor: Tensor) -> Tensor:
    """Half types to float32; wider types as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def unit(rows: Tensor) -> Tensor:
    return F.normalize(promote(rows), dim=1)


def both_views(rows: Tensor | None, n: int, device: torch.device) -> Tensor:
    """Rows of the stacked views (2n, d) that belong to the images `rows` (m,)."""
    return torch.arange(2 * n, device=device) if rows is None else torch.cat([rows, rows + n]).to(device)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Mean cosine of the rows of (n, d) and (n, d)."""
    return (unit(a) * unit(b)).sum(dim=1).mean()
