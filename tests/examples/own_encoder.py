"""An encoder of your own: three convolutions.

python train.py digits --encoder.name tests/examples/own_encoder.py:Tiny --encoder.width 16 --encoder.depth 2
"""

from itertools import pairwise
from typing import Any

from pydantic import Field
from torch import Tensor, nn

from kaizen.config.encoder import EncoderConfig
from kaizen.config.types import Count
from kaizen.model.networks.base import Encoder


class Block(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, out, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.convolution(x)).relu()


class Tiny(Encoder):
    class Settings(EncoderConfig):
        depth: Count = Field(2, description="number of convolutions, each of which halves the side")

    keys = ("width",)  # of EncoderConfig; any other key of it may not be given
    mixes_images = True  # because of BatchNorm
    block_names = (Block.__name__,)

    def __init__(self, config: Any, image_size: int | None) -> None:
        super().__init__(config, image_size)
        sizes = [3, *(config.width * 2**stage for stage in range(config.depth))]
        self.blocks = nn.Sequential(*(Block(*pair) for pair in pairwise(sizes)))
        self.feature_dim = sizes[-1]

    def forward(self, images: Tensor) -> Tensor:
        return self.blocks(images).mean(dim=(2, 3))
