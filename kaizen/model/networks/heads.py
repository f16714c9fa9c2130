"""Heads: small MLPs and prototypes on features or projections."""

from collections.abc import Callable, Sequence
from itertools import groupby, pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kaizen.model.networks.drop_path import dropping
from kaizen.model.networks.norm import takes_views_together, views_apart


def mlp(
    sizes: Sequence[int],
    *,
    norm: bool = False,
    bias: bool = True,
    last_norm: Literal["none", "affine", "plain"] = "none",
    activation: Callable[[], nn.Module] = lambda: nn.ReLU(inplace=True),
) -> nn.Sequential:
    """Linear layers with an activation between them.

    Args:
        sizes: input size, hidden sizes, output size, such as (512, 2048, 256); two sizes make one linear layer.
        norm: BatchNorm1d after every layer except the last.
        bias: whether the linear layers have one.
        last_norm: BatchNorm1d after the last layer too, with (affine) or without (plain) scale and shift.
        activation: builds the activation after every layer except the last.
    """
    layers: list[nn.Module] = []
    for index, (before, after) in enumerate(pairwise(sizes)):
        layers.append(nn.Linear(before, after, bias=bias))
        if index < len(sizes) - 2:
            layers += [nn.BatchNorm1d(after)] if norm else []
            layers.append(activation())
    if last_norm != "none":
        layers.append(nn.BatchNorm1d(sizes[-1], affine=last_norm == "affine"))
    return nn.Sequential(*layers)


class Prototypes(nn.Module):
    """Prototypes (count, dim): directions of unit length times one gain per row, learned or fixed at 1.

    Starts as the rows of a linear layer, uniform; a learned gain starts at its row's norm.
    """

    gain: Tensor

    def __init__(self, count: int, dim: int, *, learned_gain: bool = True) -> None:
        super().__init__()
        self.direction = nn.Parameter(nn.Linear(dim, count, bias=False).weight.detach().clone())
        gain = self.direction.detach().norm(dim=1, keepdim=True)
        if learned_gain:
            self.gain = nn.Parameter(gain)
        else:
            self.register_buffer("gain", torch.ones_like(gain), persistent=False)

    def weight(self) -> Tensor:
        """The prototypes (count, dim)."""
        return F.normalize(self.direction, dim=1) * self.gain

    def forward(self, vectors: Tensor) -> Tensor:
        """Scores (n, count) of vectors (n, dim)."""
        return vectors @ self.weight().t()


def forget_running_statistics(module: nn.Module) -> None:
    """Make every BatchNorm normalise by the current batch, in train and eval mode alike, and keep no statistics."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.track_running_stats = False
            part.running_mean = part.running_var = part.num_batches_tracked = None


def forward_all(module: nn.Module, views: Sequence[Tensor]) -> list[Tensor]:
    """The module on each view in a call of its own, so that statistics of views are never pooled."""
    return [module(view) for view in views]


def encode_all(encoder: nn.Module, views: Sequence[Tensor], keys: Tensor | None = None) -> list[Tensor]:
    """Features of each view; a GPU takes successive views of one size in one call, where their statistics stay apart.

    The results are the same to rounding; the GPU has fewer and larger kernels to run.

    Args:
        keys: int64 (n,), of the images, by which some skip branches of an encoder with stochastic depth; None: none do.
    """
    device = views[0].device
    # Only our ResNets tell their BatchNorms which images belong to which view.
    apart = getattr(encoder, "keeps_views_apart", False) and takes_views_together(encoder, device)
    alone = device.type != "cuda" or (encoder.mixes_images and not apart)
    features: list[Tensor] = []
    for _, alike in groupby(enumerate(views), key=lambda pair: pair[0] if alone else pair[1].shape):
        numbers, together = zip(*alike, strict=True)
        with views_apart(len(together)), dropping(encoder, keys, numbers):
            if len(together) == 1:
                features.append(encoder(together[0]))
            else:
                features += encoder(torch.cat(together)).chunk(len(together))
    return features
