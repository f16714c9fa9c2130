"""A view operation of your own: random erasing (Zhong et al. 2020, arXiv 1708.04896) of a grey square.

python train.py digits --views.extra tests/examples/own_operation.py:Erase
"""

import torch
from torch import Tensor

from kaizen.data.operations import ViewOperation


class Erase(ViewOperation):
    draws = 4  # whether, side, top and left

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        size = images.shape[-1]
        chosen, side, top, left = draws.T[:, :, None]
        side = (0.1 + 0.3 * side) * size
        pixels = torch.arange(size, device=images.device)
        rows, columns = (
            (pixels >= first * (size - side)) & (pixels < first * (size - side) + side) for first in (top, left)
        )
        erased = rows[:, None, :, None] & columns[:, None, None, :] & (chosen < 0.5)[:, :, None, None]
        return torch.where(erased, 127.5, images)
