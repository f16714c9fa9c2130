"""Osiris (Zhang et al. 2024, arXiv 2404.19132): plasticity, consolidation across tasks and stability, each by itself.

NT-Xent of the current images on the projector; on a second projector, the cross-task loss between current and replay
images, and stability: NT-Xent of the replay images (Osiris-R) or distillation of the old encoder on the current ones
(Osiris-D). Both projectors Linear-ReLU-Linear; temperature 0.1. Without a memory only the first of the three remains.
Needs from other processes: outputs of both projectors for the global batch, gathered with gradient (negatives).
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kaizen.config.schema import MethodSettings
from kaizen.config.types import NonNegative, Positive
from kaizen.losses import cross_task, instance_distillation, nt_xent, promote
from kaizen.model.methods.base import Method, Outputs
from kaizen.model.networks.heads import forward_all
from kaizen.parallel import Batch


class Osiris(Method):
    class Settings(MethodSettings):
        name: Literal["osiris"] = "osiris"
        temperature: Positive = Field(0.1, description="temperature of all three contrastive losses")
        stability: Literal["replay", "distill"] = Field(
            "replay",
            description="replay: contrast the replay images among themselves (Osiris-R); distill: the old encoder's "
            "features of the current images (Osiris-D)",
        )
        consolidation: NonNegative = Field(0.5, description="weight of the cross-task loss and of stability, each")

    distiller = "none"
    projector_form: ClassVar = {}
    takes_mixed = False
    distinct_replay = True
    second: nn.Sequential

    def build_heads(self, feature_dim: int, num_classes: int) -> None:
        self.second = self.build_projector(self.settings, feature_dim)

    def continue_from(self, projector: nn.Module) -> None:
        # The second projector was not trained in task 0, where there is no memory.
        self.second.load_state_dict(projector.state_dict())

    def needs_teacher(self) -> bool:
        return self.settings.stability == "distill"

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        current, replay = batch.current_alone(), batch.replay_alone()
        count, temperature = current.sizes[batch.rank], self.settings.temperature
        z1, z2 = (current.gather(z[:count]) for z in outputs.projections)
        rows = current.rows(z1.device)
        plasticity = current.share(nt_xent(z1, z2, temperature, rows=rows))
        if not batch.replay:
            # Gradients of zero, which DDP expects from every parameter; they are dropped after the backward pass.
            return plasticity + 0.0 * torch.stack([p.sum() for p in self.second.parameters()]).sum()
        heads = forward_all(self.second, [promote(f) for f in outputs.features])
        s1, s2 = (current.gather(s[:count]) for s in heads)
        u1, u2 = (replay.gather(s[count:]) for s in heads)
        old_rows = replay.rows(z1.device)
        forward = current.share(cross_task(s1, s2, u1, u2, temperature, rows=rows))
        backward = _share(replay, cross_task(u1, u2, s1, s2, temperature, rows=old_rows))
        if self.settings.stability == "replay":
            stability = _share(replay, nt_xent(u1, u2, temperature, rows=old_rows))
        else:
            assert outputs.old is not None
            old = forward_all(self.second, [promote(f[:count]) for f in outputs.old.features])
            o1, o2 = (current.gather(o) for o in old)
            stability = current.share(instance_distillation(s1, s2, o1, o2, temperature, rows=rows))
        return plasticity + self.settings.consolidation * ((forward + backward) / 2 + stability)

    def counted(self, batch: Batch) -> int:
        return batch.current

    def after_backward(self, batch: Batch) -> None:
        if not batch.replay:
            for parameter in self.second.parameters():
                parameter.grad = None


def _share(batch: Batch, local_mean: Tensor) -> Tensor:
    """`batch.share` for a batch of which this process may hold no image: then 0 instead of the mean of nothing."""
    return batch.share(local_mean) if batch.sizes[batch.rank] else 0.0 * local_mean.nan_to_num()
