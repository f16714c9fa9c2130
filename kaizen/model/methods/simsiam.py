"""SimSiam (Chen & He 2021, arXiv 2011.10566): predict the other view's projection, which is stopped.

Projector Linear-BN-ReLU-Linear-BN-ReLU-Linear-BN, the last BN without scale and shift; predictor Linear-BN-ReLU-Linear,
whose learning rate is constant; no biases before a BN. From other processes it needs only the mean.
"""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from kaizen.config.schema import MethodSettings
from kaizen.config.types import Count
from kaizen.losses import simsiam
from kaizen.model.methods.base import Method, Outputs
from kaizen.model.networks.heads import forward_all, mlp
from kaizen.parallel import Batch


class SimSiam(Method):
    class Settings(MethodSettings):
        name: Literal["simsiam"] = "simsiam"
        predictor_hidden: Count = Field(512, description="hidden size of the predictor")

    distiller = "predictive"
    pseudo_negatives = "predictive"
    constant_rate = ("predictor.",)
    hidden_layers = 2
    projector_form: ClassVar = {"norm": True, "bias": False, "last_norm": "plain"}

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        out, hidden = settings.projector_out, settings.predictor_hidden
        self.predictor = nn.Sequential(
            *mlp((out, hidden), bias=False, last_norm="affine"), nn.ReLU(inplace=True), nn.Linear(hidden, out)
        )

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        z1, z2 = outputs.projections
        p1, p2 = forward_all(self.predictor, [z1, z2])
        return batch.share((simsiam(p1, z2) + simsiam(p2, z1)) / 2)
