"""VICReg (Bardes et al. 2022, arXiv 2105.04906): invariance, variance and covariance of both views.

Projector Linear-BN-ReLU-Linear-BN-ReLU-Linear; weights 25, 25, 1. Needs from other processes: the projections of the
global batch, gathered with gradient (variances, covariances).
"""

from typing import Literal

from pydantic import Field
from torch import Tensor

from kaizen.config.schema import MethodSettings
from kaizen.config.types import Count, NonNegative
from kaizen.losses import vicreg
from kaizen.model.methods.base import Method, Outputs
from kaizen.parallel import Batch


class VICReg(Method):
    class Settings(MethodSettings):
        name: Literal["vicreg"] = "vicreg"
        projector_out: Count = Field(2048, description="size of the projections")
        invariance: NonNegative = Field(25.0, description="weight of the distance of both views")
        variance: NonNegative = Field(25.0, description="weight of the hinge on each dimension's standard deviation")
        covariance: NonNegative = Field(1.0, description="weight of the covariances off the diagonal")

    distiller = "predictive_mse"
    pseudo_negatives = "predictive_mse"
    hidden_layers = 2

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        z1, z2 = (batch.gather(z) for z in outputs.projections)
        return vicreg(z1, z2, self.settings.invariance, self.settings.variance, self.settings.covariance)
