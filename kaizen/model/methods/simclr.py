"""SimCLR (Chen et al. 2020, arXiv 2002.05709): NT-Xent over both views of the global batch.

Projector Linear-ReLU-Linear; temperature 0.1. Needs from other processes: the projections of the global batch, gathered
with gradient (negatives), and with PNR the teacher's.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from kaizen.config.schema import MethodSettings
from kaizen.config.types import Positive
from kaizen.losses import nt_xent
from kaizen.model.methods.base import Method, Outputs
from kaizen.parallel import Batch


class SimCLR(Method):
    class Settings(MethodSettings):
        name: Literal["simclr"] = "simclr"
        temperature: Positive = Field(0.1, description="temperature of NT-Xent")

    distiller = "contrastive"
    pseudo_negatives = "batch"
    projector_form: ClassVar = {}

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        z1, z2 = (batch.gather(z) for z in outputs.projections)
        old = None
        if self.meets_old and outputs.old is not None:
            old = torch.cat([batch.gather(z) for z in outputs.old.projections])
        return batch.share(nt_xent(z1, z2, self.settings.temperature, rows=batch.rows(z1.device), negatives=old))
