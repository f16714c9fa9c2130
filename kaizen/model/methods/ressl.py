"""ReSSL (Zheng et al. 2021, arXiv 2107.09282): a query's relations to a queue follow those of its weak view's key.

Projector Linear-ReLU-Linear, momentum twin; one direction: query = view 1, key = the twin's view 2, which recipes draw
weakly; temperatures 0.1 and 0.04. Needs from other processes: the keys of the global batch in global order (queue).
"""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kaizen.config.types import Count, Positive
from kaizen.losses import relational
from kaizen.model.methods.base import Method, Outputs, TwinSettings
from kaizen.model.methods.queue import KeyQueue
from kaizen.parallel import Batch


class ReSSL(Method):
    class Settings(TwinSettings):
        name: Literal["ressl"] = "ressl"
        projector_out: Count = Field(256, description="size of the projections")
        temperature: Positive = Field(0.1, description="temperature of the queries")
        temperature_key: Positive = Field(0.04, description="temperature of the keys, the lower one")
        queue_size: Count = Field(65536, description="keys in the queue")

    distiller = "contrastive"
    twin_views = (1,)
    projector_form: ClassVar = {}

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.queue = KeyQueue(settings.queue_size, settings.projector_out)

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        query, key = F.normalize(outputs.projections[0], dim=1), F.normalize(outputs.twin[0], dim=1)
        s = self.settings
        return batch.share(relational(query, key, self.queue.keys, s.temperature, s.temperature_key))

    def after_step(self, outputs: Outputs, batch: Batch) -> None:
        self.queue.push(F.normalize(batch.gather(outputs.twin[0]), dim=1))
