"""SwAV (Caron et al. 2020, arXiv 2006.09882): each view predicts the other large crops' prototype assignments.

Projector Linear-BN-ReLU-Linear, then L2-normalised; prototypes with learned gain; temperature 0.1, Sinkhorn-Knopp with
epsilon 0.05 and 3 rounds; views beyond the first two are small crops. Needs from other processes: sums over the
scores of the global batch (assignments) and its projections in global order, after the loss (queues).
"""

from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kaizen.config.schema import MethodSettings
from kaizen.config.types import Count, Positive
from kaizen.losses import sinkhorn_knopp, swapped_prediction
from kaizen.model.methods.base import Method, Outputs
from kaizen.model.methods.queue import GrowingQueue
from kaizen.model.networks.heads import Prototypes
from kaizen.parallel import Batch


class Phase(NamedTuple):
    """frozen: the prototypes stay; rows: of each queue that take part in the assignments."""

    frozen: bool
    rows: int


class SwAV(Method):
    class Settings(MethodSettings):
        name: Literal["swav"] = "swav"
        prototypes: Count = Field(3000, description="number of prototypes")
        temperature: Positive = Field(0.1, description="temperature of the predictions")
        epsilon: Positive = Field(0.05, description="entropy of the assignments")
        iterations: Count = Field(3, description="rounds of Sinkhorn-Knopp")
        queue_size: int = Field(3840, ge=0, description="projections in each of the two queues; 0: none")
        queue_epoch: int = Field(15, ge=0, description="epoch of a task from which the queues take part")
        freeze_epochs: int = Field(1, ge=0, description="first epochs of each task in which the prototypes are frozen")

    distiller = "knowledge"
    most_views = 16
    of_one_task = ("queues.",)
    has_prototypes = True

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.heads = Prototypes(settings.prototypes, settings.projector_out)
        size, out = settings.queue_size, settings.projector_out
        self.queues: Any = nn.ModuleList([GrowingQueue(size, out) for _ in range(2 if size else 0)])

    def prototypes(self) -> Tensor:
        return self.heads.weight().detach()[None]

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        scores = [self.heads(F.normalize(z, dim=1)) for z in outputs.projections]
        assignments = [self._assign(scores[v].detach(), v, batch) for v in range(2)]
        return batch.share(swapped_prediction(scores, assignments, self.settings.temperature))

    @torch.no_grad()
    def _assign(self, scores: Tensor, view: int, batch: Batch) -> Tensor:
        """Assignments of the local rows, balanced over the global batch and the queue, whose rows are then dropped."""
        mine, rows, group = scores, batch.size, batch.group
        assert isinstance(batch.phase, Phase)
        if batch.phase.rows:
            queue = self.queues[view].keys[: batch.phase.rows]
            mine, rows = torch.cat([scores, self.heads(queue[group.shard(len(queue))])]), rows + len(queue)
        s = self.settings
        return sinkhorn_knopp(mine, s.epsilon, s.iterations, rows, group.sum, group.max)[: len(scores)]

    def phase(self, epoch: int) -> Phase:
        joined = len(self.queues) > 0 and epoch >= self.settings.queue_epoch
        return Phase(epoch < self.settings.freeze_epochs, self.queues[0].filled() if joined else 0)

    def after_backward(self, batch: Batch) -> None:
        assert isinstance(batch.phase, Phase)
        if batch.phase.frozen:
            self.heads.zero_grad()

    def after_step(self, outputs: Outputs, batch: Batch) -> None:
        for view, queue in enumerate(self.queues):
            queue.push(F.normalize(batch.gather(outputs.projections[view]), dim=1))

    def count_step(self, images: int) -> None:
        for queue in self.queues:
            queue.count(images)
