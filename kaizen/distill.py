"""Distillers of the features by name: what keeps the old encoder's knowledge.

Source: CaSSLe (Fini et al. 2022, arXiv 2112.04215). A distiller
compares the predictions h(z) of the student with the teacher's projections of the same views.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from kaizen.config import Config, DistillConfig
from kaizen.errors import ConfigError
from kaizen.losses import contrastive_distillation
from kaizen.methods import method_class
from kaizen.networks.heads import mlp
from kaizen.parallel import Batch


class Distiller(ABC):
    """A loss between the student's predictions and the teacher's projections, two views each."""

    default_weight: ClassVar[float] = 1.0

    def __init__(self, config: DistillConfig) -> None:
        self.config = config

    def build_predictor(self, dim: int) -> nn.Module:
        """The distillation predictor h: Linear - BatchNorm - ReLU - Linear, (n, dim) -> (n, dim)."""
        return mlp((dim, self.config.hidden, dim), norm=True)

    @abstractmethod
    def loss(self, predictions: list[Tensor], targets: list[Tensor], batch: Batch) -> Tensor:
        """This process' share of the loss, from its own rows (n, dim) a view; no gradient to the targets."""


class Contrastive(Distiller):
    """InfoNCE between predictions and teacher over both views of the global batch."""

    def loss(self, predictions: list[Tensor], targets: list[Tensor], batch: Batch) -> Tensor:
        p1, p2 = (batch.gather(p) for p in predictions)
        z1, z2 = (batch.gather(z) for z in targets)
        rows = batch.rows(p1.device)
        return batch.share(contrastive_distillation(p1, p2, z1, z2, self.config.temperature, rows=rows))


REGISTRY: dict[str, type[Distiller]] = {"contrastive": Contrastive}


def resolve_distiller(config: Config) -> DistillConfig:
    """The distiller's settings with `auto` and the default weight filled in.

    Raises:
        ConfigError: no such distiller.
    """
    distill = config.distill
    name = method_class(config.method.name).distiller if distill.name == "auto" else distill.name
    if name != "none" and name not in REGISTRY:
        raise ConfigError("distill.name", f"is {name!r}; allowed: auto, none, {', '.join(REGISTRY)}")
    weight = distill.weight
    if name == "none":
        weight = 0.0
    elif weight is None:
        weight = REGISTRY[name].default_weight
    return distill.model_copy(update={"name": name, "weight": weight})


def build_distiller(config: DistillConfig) -> Distiller | None:
    """The distiller of resolved settings, or None for `none`."""
    return None if config.name == "none" else REGISTRY[config.name](config)
