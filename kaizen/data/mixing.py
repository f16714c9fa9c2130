"""LUMP: each current image is mixed with an image of the memory (Madaan et al. 2022, arXiv 2110.06976).

Mixup (Zhang et al. 2018, arXiv 1710.09412) between the present and the past. As in the authors' code, one share is
drawn per step, and both views of an image get the same share and the same partner.
"""

import numpy as np
from torch import Tensor

from kaizen.data.random import MASK


def draw_share(alpha: float, key: int) -> float:
    """The part of the current images in a step, from Beta(alpha, alpha), as a function of the step's key.

    It is drawn on the host: the device half of a step cannot draw until a number fits.
    """
    return float(np.random.Generator(np.random.Philox(key=key & MASK)).beta(alpha, alpha))


def mix(images: Tensor, share: Tensor) -> Tensor:
    """share x current + (1 - share) x remembered, (n, ...), of views [current ; remembered] (2n, ...); share: ()."""
    current, remembered = images.chunk(2)
    return share.to(images.dtype) * current + (1 - share).to(images.dtype) * remembered
