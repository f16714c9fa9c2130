"""Barlow Twins (Zbontar et al. 2021, arXiv 2103.03230): cross-correlation of both views towards the identity.

Projector Linear-BN-ReLU-Linear-BN-ReLU-Linear; off-diagonal weight 0.005, scale 0.025 (0.1 in the published recipes).
Needs from other processes: the projections of the global batch, gathered with gradient (means, variances, correlation).
"""

from typing import Literal

from pydantic import Field
from torch import Tensor

from kaizen.config.schema import MethodSettings
from kaizen.config.types import Count, NonNegative, Positive
from kaizen.losses import barlow_twins
from kaizen.model.methods.base import Method, Outputs
from kaizen.parallel import Batch


class Barlow(Method):
    class Settings(MethodSettings):
        name: Literal["barlow"] = "barlow"
        projector_out: Count = Field(2048, description="size of the projections")
        off_diagonal: NonNegative = Field(0.005, description="weight of the correlations off the diagonal")
        scale: Positive = Field(0.025, description="scale of the whole loss")

    distiller = "decorrelative"
    pseudo_negatives = "decorrelative"
    hidden_layers = 2

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        z1, z2 = (batch.gather(z) for z in outputs.projections)
        return barlow_twins(z1, z2, self.settings.off_diagonal, self.settings.scale)
