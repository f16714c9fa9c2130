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


class DropPath(nn.Module):
    """The end of a residual branch that a share `rate` of images skip.

    factors: float32 (n,) for the images of the current call, 0 where one skips the branch; None: none does. They are a
    tensor, as torch.compile compiles a block anew for every number that differs between blocks.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.factors: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The branch's output (n, ...): zero for images that skip it, else scaled up, so that its mean stays.

        Raises:
            ConfigError: the branch has not one row for each image.
        """
        if self.factors is None:
            return x
        if len(x) != len(self.factors):
            found = f"has {len(x)} rows for {len(self.factors)} images"
            raise ConfigError("encoder.drop_path", f"is above 0, but a branch of the encoder {found}; allowed: 0")
        return x * self.factors.to(x.dtype).view(-1, *(1 for _ in x.shape[1:]))


class DropPaths:
    """The branches of one encoder, in order, and their rates as a tensor for each device."""

    def __init__(self, branches: Sequence[DropPath]) -> None:
        self.branches, self._rates = branches, dict[torch.device, Tensor]()

    def factors(self, keys: Tensor, views: Sequence[int]) -> Tensor:
        """Factors (branches, n * views) for the images with keys int64 (n,), one view after the other."""
        # Kept: copying them to a GPU at each call would make the host wait for the device.
        if keys.device not in self._rates:
            self._rates[keys.device] = torch.tensor([branch.rate for branch in self.branches], device=keys.device)
        rates = self._rates[keys.device]
        draws = torch.cat([uniform(keys, len(self.branches), STREAM + view) for view in views])
        return ((draws >= rates) / (1 - rates)).t().contiguous()


def key_drop_paths(encoder: nn.Module) -> int:
    """Replace timm's DropPaths, which draw from torch's generator, in place; the number of branches that may drop."""
    for part in list(encoder.modules()):
        for name, child in list(part.named_children()):
            if type(child).__name__ == "DropPath" and type(child).__module__.startswith("timm."):
                rate = float(child.drop_prob)  # type: ignore[arg-type]
                setattr(part, name, DropPath(rate) if rate else nn.Identity())
    branches = [part for part in encoder.modules() if isinstance(part, DropPath)]
    if branches:
        encoder.keyed_drop_paths = DropPaths(branches)  # type: ignore[assignment]
    return len(branches)


@contextmanager
def dropping(encoder: nn.Module, keys: Tensor | None, views: Sequence[int]) -> Iterator[None]:
    """Calls of an encoder on these views of images, one view after the other, inside which images skip branches.

    Args:
        keys: int64 (n,), of the images; None: nothing is dropped.
        views: number of each view, on which the draws depend too.
    """
    paths: DropPaths | None = getattr(encoder, "keyed_drop_paths", None)
    if paths is None or keys is None:
        yield
        return
    try:
        for branch, factors in zip(paths.branches, paths.factors(keys, views).unbind(), strict=True):
            branch.factors = factors
        yield
    finally:
        for branch in paths.branches:
            branch.factors = None
