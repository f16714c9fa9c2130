"""Supervised contrastive learning (Khosla et al. 2020, arXiv 2004.11362): NT-Xent whose positives share a label.

An image without a label is a class of its own. Projector Linear-ReLU-Linear; temperature 0.1. Needs from other
processes: projections, gathered with gradient, and labels of the global batch.
"""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from kaizen.config.schema import MethodSettings
from kaizen.config.types import Positive
from kaizen.losses import sup_con
from kaizen.model.methods.base import Method, Outputs
from kaizen.parallel import Batch


class SupCon(Method):
    class Settings(MethodSettings):
        name: Literal["supcon"] = "supcon"
        temperature: Positive = Field(0.1, description="temperature of the contrastive loss")

    distiller = "contrastive"
    projector_form: ClassVar = {}

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        z1, z2 = (batch.gather(z) for z in outputs.projections)
        labels, rows = batch.gather(outputs.labels), batch.rows(z1.device)
        return batch.share(sup_con(z1, z2, labels, self.settings.temperature, rows=rows))
