"""NNCLR (Dwibedi et al. 2021, arXiv 2104.14548): a queue's nearest neighbours of one view meet the other's predictions.

Projector Linear-BN-ReLU-Linear-BN-ReLU-Linear-BN, predictor Linear-BN-ReLU-Linear; temperature 0.2; the queue is only
looked up and gives no negatives. Needs from other processes: the predictions of the global batch, gathered with
gradient, and its first view's projections in global order, after the look-up (queue).
"""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kaizen.config.schema import MethodSettings
from kaizen.config.types import Count, Positive
from kaizen.losses import nearest_neighbour
from kaizen.model.methods.base import Method, Outputs
from kaizen.model.methods.queue import KeyQueue
from kaizen.model.networks.heads import forward_all, mlp
from kaizen.parallel import Batch


class NNCLR(Method):
    class Settings(MethodSettings):
        name: Literal["nnclr"] = "nnclr"
        projector_out: Count = Field(256, description="size of the projections")
        predictor_hidden: Count = Field(4096, description="hidden size of the predictor")
        temperature: Positive = Field(0.2, description="temperature of the contrastive loss")
        queue_size: Count = Field(65536, description="projections in the queue")

    distiller = "contrastive"
    hidden_layers = 2
    projector_form: ClassVar = {"norm": True, "last_norm": "affine"}

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        out = settings.projector_out
        self.predictor = mlp((out, settings.predictor_hidden, out), norm=True)
        self.queue = KeyQueue(settings.queue_size, out)

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        n1, n2 = (self.queue.nearest(z.detach()) for z in outputs.projections)
        p1, p2 = (batch.gather(p) for p in forward_all(self.predictor, outputs.projections))
        temperature, rows = self.settings.temperature, batch.rows(p1.device)
        first = nearest_neighbour(n1, p2, temperature, rows=rows)
        second = nearest_neighbour(n2, p1, temperature, rows=rows)
        return batch.share((first + second) / 2)

    def after_step(self, outputs: Outputs, batch: Batch) -> None:
        self.queue.push(F.normalize(batch.gather(outputs.projections[0]), dim=1))
