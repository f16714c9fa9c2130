"""DINO (Caron et al. 2021, arXiv 2104.14294): scores of each view follow the centred, sharpened twin's of the others.

Projector Linear-BN-GELU-Linear-BN-GELU-Linear to a bottleneck, L2-normalised, then a weight-normed layer of gain 1;
temperatures 0.1 and 0.04 to 0.07 over the first epochs of a task; views beyond the first two, which the twin sees, are
small crops. Needs from other processes: the sum of the twin's scores over the global batch, after the loss (centre).
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kaizen.config.types import Count, Positive
from kaizen.losses import dino
from kaizen.model.methods.base import Method, Outputs, TwinSettings
from kaizen.model.networks.heads import Prototypes
from kaizen.parallel import Batch

FROZEN, TRAINED = "last layer frozen", "last layer trained"
"""Phases."""


class _LastLayer(nn.Module):
    """Scores (n, k) of bottleneck outputs (n, d), which are L2-normalised first."""

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.prototypes = Prototypes(count, dim, learned_gain=False)

    def forward(self, bottleneck: Tensor) -> Tensor:
        return self.prototypes(F.normalize(bottleneck, dim=1))


class DINO(Method):
    class Settings(TwinSettings):
        name: Literal["dino"] = "dino"
        projector_out: Count = Field(256, description="size of the bottleneck")
        prototypes: Count = Field(4096, description="outputs of the last layer")
        temperature: Positive = Field(0.1, description="temperature of the student")
        teacher_temperature: tuple[Positive, Positive] = Field(
            (0.04, 0.07), description="of the twin: at the start and at the end of its rise"
        )
        teacher_temperature_epochs: Count = Field(50, description="epochs over which the twin's temperature rises")
        center_momentum: float = Field(0.9, ge=0, lt=1, description="momentum of the centre")
        freeze_epochs: int = Field(1, ge=0, description="first epochs of each task in which the last layer is frozen")

    distiller = "knowledge"
    twin_views = (0, 1)
    most_views = 16
    has_prototypes = True
    hidden_layers = 2
    projector_form: ClassVar = {"norm": True, "activation": nn.GELU}
    center: Tensor

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.twin_head = _LastLayer(settings.prototypes, settings.projector_out)
        self.register_buffer("center", torch.zeros(1, settings.prototypes))

    @classmethod
    def build_projector(cls, settings: Settings, feature_dim: int) -> nn.Sequential:
        projector = super().build_projector(settings, feature_dim)
        for layer in projector:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        return projector

    def prototypes(self) -> Tensor:
        return self.twin_head.prototypes.weight().detach()[None]  # type: ignore[union-attr,operator]

    def teacher_temperature(self, epoch: int) -> float:
        """The twin's temperature in an epoch of a task."""
        first, last = self.settings.teacher_temperature
        return first + (last - first) * min(1.0, epoch / max(1, self.settings.teacher_temperature_epochs - 1))

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        student = torch.cat([self.twin_head(z) for z in outputs.projections])
        assert batch.numbers is not None
        temperature = batch.numbers[0].to(student.dtype)
        return batch.share(dino(student, torch.cat(outputs.twin), self.center, self.settings.temperature, temperature))

    def phase(self, epoch: int) -> str:
        return FROZEN if epoch < self.settings.freeze_epochs else TRAINED

    def schedule(self, epoch: int) -> tuple[float, ...]:
        return (self.teacher_temperature(epoch),)

    def after_backward(self, batch: Batch) -> None:
        if batch.phase == FROZEN:
            self.twin_head.zero_grad()

    def after_step(self, outputs: Outputs, batch: Batch) -> None:
        scores = torch.cat(outputs.twin)
        mean = batch.group.sum(scores.sum(dim=0, keepdim=True)) / (len(outputs.twin) * batch.size)
        self.center.lerp_(mean.to(self.center.dtype), 1 - self.settings.center_momentum)
