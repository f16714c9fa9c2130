"""LUMP: each current image is mixed with an image of the memory (Madaan et al. 2022, arXiv 2110.06976).

Mixup (Zhang et al. 2018, arXiv 1710.09412) between the present and the past. Both views of an image have the same
partner and the same share.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kaizen.data.random import MASK


class Mixing(NamedTuple):
    """How shares are drawn: from Beta(alpha, alpha), one for each image or one for all images of a step."""

    alpha: float
    per_image: bool

    def shares(self, key: int, count: int) -> Tensor:
        """Parts of `count` current images, float64 (count,) in 0..1, as a function of the step's key.

        They are drawn on the host: the device half of a step cannot draw until a number fits.
        """
        generator = np.random.Generator(np.random.Philox(key=key & MASK))
        drawn = torch.from_numpy(generator.beta(self.alpha, self.alpha, size=count if self.per_image else 1))
        return drawn.expand(count).contiguous()


def mix(images: Tensor, weights: Tensor) -> Tensor:
    """Sums (n, ...) of current and remembered images, from [current ; remembered] (2n, ...) and weights (2n,)."""
    weights = weights.to(images.dtype).view(-1, *[1] * (images.dim() - 1))
    current, remembered = (images * weights).chunk(2)
    return current + remembered
