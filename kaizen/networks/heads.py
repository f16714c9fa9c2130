"""Heads: small MLPs on features or projections."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


def mlp(sizes: Sequence[int], *, norm: bool = False) -> nn.Sequential:
    """Linear layers with ReLU between them; with `norm`, BatchNorm before each ReLU.

    Args:
        sizes: input size, hidden sizes, output size, such as (512, 2048, 256); two sizes make one linear layer.
        norm: BatchNorm1d after every layer but the last.
    """
    layers: list[nn.Module] = []
    for index, (before, after) in enumerate(pairwise(sizes)):
        layers.append(nn.Linear(before, after))
        if index < len(sizes) - 2:
            layers += [nn.BatchNorm1d(after)] if norm else []
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def forget_running_statistics(module: nn.Module) -> None:
    """Make every BatchNorm normalise by the batch at hand, in train and eval mode alike, and keep no statistics."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.track_running_stats = False
            part.running_mean = part.running_var = part.num_batches_tracked = None


def forward_all(module: nn.Module, views: Sequence[Tensor]) -> list[Tensor]:
    """The module on each view in a call of its own, so that statistics of views are never pooled."""
    return [module(view) for view in views]
