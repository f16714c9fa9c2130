"""Arithmetic on lists of tensors, whole or sharded, in a few kernels."""

from collections.abc import Sequence

import torch
from torch import Tensor


def add_scaled_(tensors: list[Tensor], others: Sequence[Tensor], factor: Tensor) -> None:
    """Add factor () times others to tensors, in place; on a CPU with the same bits as for a Python number."""
    if factor.device.type == "cpu":
        for tensor, other in zip(tensors, others, strict=True):
            tensor.addcmul_(other, factor)
    else:
        torch._foreach_add_(tensors, torch._foreach_mul(list(others), factor))
