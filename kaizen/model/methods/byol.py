"""BYOL (Grill et al. 2020, arXiv 2006.07733): predict the momentum twin's projection of the other view.

Projector and predictor Linear-BN-ReLU-Linear; the SUM of both directions; tau 0.99 to 1. From other
processes it needs only the mean over the global batch.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor

from kaizen.config.types import Count
from kaizen.losses import byol
from kaizen.model.methods.base import Method, Outputs, TwinSettings
from kaizen.model.networks.heads import forward_all, mlp
from kaizen.parallel import Batch


class BYOL(Method):
    class Settings(TwinSettings):
        name: Literal["byol"] = "byol"
        projector_hidden: Count = Field(4096, description="hidden size of the projector")
        projector_out: Count = Field(256, description="size of the projections")
        predictor_hidden: Count = Field(512, description="hidden size of the predictor")

    distiller = "predictive"
    pseudo_negatives = "predictive"
    twin_views = (0, 1)

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        out = settings.projector_out
        self.predictor = mlp((out, settings.predictor_hidden, out), norm=True)

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        p1, p2 = forward_all(self.predictor, outputs.projections)
        k1, k2 = outputs.twin
        return batch.share(byol(p1, k2) + byol(p2, k1))
