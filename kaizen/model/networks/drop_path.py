"""Stochastic depth (Huang et al. 2016, arXiv 1603.09382): in training, each image skips some residual branches.

Which ones follows from the image's key, so that a resumed run and other numbers of processes repeat them. Only calls
inside `dropping` drop anything, and these are the student's. Teacher, momentum twin and evaluation use all branches.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kaizen.data.random import uniform
from kaizen.errors import ConfigError

STREAM = 1 << 20
"""The first view's stream of random numbers, far from those of the views themselves."""


class Draws:
    """What the branches of one encoder share: how many there are, and the random numbers of the current call.

    rows: float32 (n, branches) in [0, 1), or None where nothing is dropped.
    """

    def __init__(self) -> None:
        self.branches = 0
        self.rows: Tensor | None = None


class DropPath(nn.Module):
    """The end of a residual branch that a share `rate` of images skip; `place` is its column of the random numbers."""

    def __init__(self, rate: float, draws: Draws) -> None:
        super().__init__()
        self.rate, self.draws, self.place = rate, draws, draws.branches
        draws.branches += 1

    def forward(self, x: Tensor) -> Tensor:
        """The branch's output (n, ...): zero for images that skip it, else scaled up, so that its mean stays.

        Raises:
            ConfigError: the branch has not one row for each image.
        """
        rows = self.draws.rows
        if rows is None:
            return x
        if len(x) != len(rows):
            problem = f"is above 0, but a branch of the encoder has {len(x)} rows for {len(rows)} images; allowed: 0"
            raise ConfigError("encoder.drop_path", problem)
        kept = (rows[:, self.place] >= self.rate).to(x.dtype) / (1 - self.rate)
        return x * kept.view(-1, *(1 for _ in x.shape[1:]))


def key_drop_paths(encoder: nn.Module) -> int:
    """Replace timm's DropPaths, which draw from torch's generator, in place; the number of branches that may drop."""
    draws = getattr(encoder, "drop_path_draws", None) or Draws()
    for part in list(encoder.modules()):
        for name, child in list(part.named_children()):
            if type(child).__name__ == "DropPath" and type(child).__module__.startswith("timm."):
                rate = float(child.drop_prob)  # type: ignore[arg-type]
                setattr(part, name, DropPath(rate, draws) if rate else nn.Identity())
    if draws.branches:
        encoder.drop_path_draws = draws  # type: ignore[assignment]
    return draws.branches


@contextmanager
def dropping(encoder: nn.Module, keys: Tensor | None, views: Sequence[int]) -> Iterator[None]:
    """Calls of an encoder on these views of images, one view after the other, inside which images skip branches.

    Args:
        keys: int64 (n,), of the images; None: nothing is dropped.
        views: number of each view, on which the draws depend too.
    """
    draws: Draws | None = getattr(encoder, "drop_path_draws", None)
    if draws is None or keys is None:
        yield
        return
    draws.rows = torch.cat([uniform(keys, draws.branches, STREAM + view) for view in views])
    try:
        yield
    finally:
        draws.rows = None
