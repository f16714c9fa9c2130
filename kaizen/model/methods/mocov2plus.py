"""MoCo v2+ (He et al. 2020, arXiv 1911.05722; Chen et al. 2020, arXiv 2003.04297; both views symmetric).

The negatives of each view's queries are a queue of earlier keys of the other view, made by a momentum twin.
Needs from other processes: the keys of the global batch in global order, after the loss (queue). With PNR, two more
queues hold the teacher's outputs, whose keys are negatives as well.
"""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kaizen.config.types import Count, Positive
from kaizen.losses import info_nce
from kaizen.model.methods.base import Method, Outputs, TwinSettings
from kaizen.model.methods.queue import KeyQueue
from kaizen.parallel import Batch


class MoCoV2Plus(Method):
    class Settings(TwinSettings):
        name: Literal["mocov2plus"] = "mocov2plus"
        temperature: Positive = Field(0.1, description="temperature of InfoNCE")
        queue_size: Count = Field(65536, description="keys in each of the two queues")
        tau_final: float = Field(0.999, ge=0, le=1, description="momentum of the twin at the end of a task")

    distiller = "contrastive"
    twin_views = (0, 1)
    pseudo_negatives = "queue"
    of_one_task = ("old_queue",)
    projector_form: ClassVar = {}

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.queue1 = KeyQueue(settings.queue_size, settings.projector_out)
        self.queue2 = KeyQueue(settings.queue_size, settings.projector_out)

    def meet_old_outputs(self) -> None:
        super().meet_old_outputs()
        # Of the present teacher alone: they begin anew in each task. The authors' code keeps those of earlier teachers.
        self.old_queue1 = KeyQueue(self.settings.queue_size, self.settings.projector_out)
        self.old_queue2 = KeyQueue(self.settings.queue_size, self.settings.projector_out)

    def queued_negatives(self) -> list[list[Tensor]]:
        if not self.meets_old:
            return [[self.queue2.keys], [self.queue1.keys]]
        return [[self.queue2.keys, self.old_queue2.keys], [self.queue1.keys, self.old_queue1.keys]]

    def distill_input(self, projections: Tensor) -> Tensor:
        return F.normalize(projections, dim=1)

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        q1, q2 = (F.normalize(z, dim=1) for z in outputs.projections)
        k1, k2 = (F.normalize(z, dim=1) for z in outputs.twin)
        # A query's negatives are earlier keys of its key's view: q1 meets k2, so its negatives are in queue 2.
        negatives1, negatives2 = self.queued_negatives()
        first = info_nce(q1, k2, negatives1, self.settings.temperature)
        second = info_nce(q2, k1, negatives2, self.settings.temperature)
        return batch.share(0.5 * (first + second))

    def after_step(self, outputs: Outputs, batch: Batch) -> None:
        for queue, keys in zip((self.queue1, self.queue2), outputs.twin, strict=True):
            queue.push(F.normalize(batch.gather(keys), dim=1))
        if self.meets_old and outputs.old is not None:
            for queue, rows in zip((self.old_queue1, self.old_queue2), outputs.old.projections, strict=True):
                queue.push(F.normalize(batch.gather(rows), dim=1))
