"""A distiller of your own: relations between images, as the teacher sees them (Park et al. 2019, arXiv 1904.05068).

python train.py digits --distill.name tests/examples/own_distiller.py:Relations --distill.power 2
"""

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kaizen.config.schema import DistillConfig
from kaizen.config.types import Positive
from kaizen.model.distillers import Distiller, Sides
from kaizen.parallel import Batch


class Relations(Distiller):
    """Cosines between all images of the global batch become those of the teacher."""

    class Settings(DistillConfig):
        power: Positive = Field(1.0, description="exponent of the differences between cosines")

    default_weight = 4.0

    def loss(self, sides: Sides, batch: Batch) -> Tensor:
        found = []
        for predictions, targets in zip(sides.predictions, sides.targets, strict=True):
            p, z = (F.normalize(batch.gather(rows), dim=1) for rows in (predictions, targets))
            found.append(((p @ p.T - z @ z.T).abs() + 1e-6).pow(self.config.power).mean())
        return torch.stack(found).mean()
