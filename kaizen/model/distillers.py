"""Distillers of the features by name: losses that keep what the old encoder knew.

Source: CaSSLe (Fini et al. 2022, arXiv 2112.04215). A distiller
compares the predictions h(z) of the student with the teacher's projections of the same views.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from kaizen import losses
from kaizen.config.schema import Config, DistillConfig
from kaizen.errors import ConfigError
from kaizen.model.methods import REGISTRY as METHODS
from kaizen.model.methods import method_class
from kaizen.model.networks.heads import Prototypes, mlp
from kaizen.parallel import Batch

OFF_DIAGONAL, SCALE = 0.005, 0.1
"""Of the decorrelative distiller, as published."""


@dataclass(frozen=True)
class Sides:
    """What a distiller compares on this process.

    predictions, targets: rows (n, d) of student and teacher, one tensor per view, no gradient to the targets;
    predictor: the distillation predictor; prototypes: the teacher's (heads, k, d), for methods that have them.
    """

    predictions: list[Tensor]
    targets: list[Tensor]
    predictor: nn.Module
    prototypes: Tensor | None


class Distiller(ABC):
    """A loss between the student's predictions and the teacher's projections, two views each."""

    default_weight: ClassVar[float] = 1.0
    default_temperature: ClassVar[float] = 0.2
    needs_prototypes: ClassVar[bool] = False

    def __init__(self, config: DistillConfig) -> None:
        self.config = config
        self.temperature = config.temperature or self.default_temperature

    def build_predictor(self, dim: int, heads: int, prototypes: int) -> nn.Module:
        """The distillation predictor h: Linear - BatchNorm - ReLU - Linear, (n, dim) -> (n, dim)."""
        return mlp((dim, self.config.hidden, dim), norm=True)

    @abstractmethod
    def loss(self, sides: Sides, batch: Batch) -> Tensor:
        """This process' share of the loss."""


class Contrastive(Distiller):
    """InfoNCE between predictions and teacher over both views of the global batch."""

    def loss(self, sides: Sides, batch: Batch) -> Tensor:
        p1, p2, z1, z2 = (batch.gather(rows) for rows in (*sides.predictions, *sides.targets))
        rows = batch.rows(p1.device)
        return batch.share(losses.contrastive_distillation(p1, p2, z1, z2, self.temperature, rows=rows))


class Predictive(Distiller):
    """BYOL's loss, direction student to teacher."""

    def loss(self, sides: Sides, batch: Batch) -> Tensor:
        return batch.share(losses.predictive_distillation(*sides.predictions, *sides.targets))


class PredictiveMSE(Distiller):
    """Mean squared error."""

    default_weight = 25.0

    def loss(self, sides: Sides, batch: Batch) -> Tensor:
        return batch.share(losses.predictive_mse_distillation(*sides.predictions, *sides.targets))


class Decorrelative(Distiller):
    """Barlow Twins' loss between student and teacher over the global batch."""

    def loss(self, sides: Sides, batch: Batch) -> Tensor:
        p1, p2, z1, z2 = (batch.gather(rows) for rows in (*sides.predictions, *sides.targets))
        return losses.decorrelative_distillation(p1, p2, z1, z2, OFF_DIAGONAL, SCALE)


class _PrototypePredictor(nn.Module):
    """A distillation predictor with prototypes of the student's own, trained for this distiller."""

    def __init__(self, predictor: nn.Module, dim: int, heads: int, prototypes: int) -> None:
        super().__init__()
        self.predictor = predictor
        self.heads = nn.ModuleList([Prototypes(prototypes, dim) for _ in range(heads)])

    def forward(self, rows: Tensor) -> Tensor:
        return self.predictor(rows)


class Knowledge(Distiller):
    """Cross-entropy between scores on prototypes of the student's own and on the teacher's; mean over heads."""

    default_temperature = 0.1
    needs_prototypes = True

    def build_predictor(self, dim: int, heads: int, prototypes: int) -> nn.Module:
        return _PrototypePredictor(super().build_predictor(dim, heads, prototypes), dim, heads, prototypes)

    def loss(self, sides: Sides, batch: Batch) -> Tensor:
        assert isinstance(sides.predictor, _PrototypePredictor)
        assert sides.prototypes is not None
        p1, p2, z1, z2 = *sides.predictions, *sides.targets
        found = [
            losses.prototype_distillation(p1, p2, z1, z2, own.weight(), old, self.temperature)
            for own, old in zip(sides.predictor.heads, sides.prototypes, strict=True)
            if isinstance(own, Prototypes)
        ]
        return batch.share(torch.stack(found).mean())


REGISTRY: dict[str, type[Distiller]] = {
    "contrastive": Contrastive,
    "predictive": Predictive,
    "predictive_mse": PredictiveMSE,
    "decorrelative": Decorrelative,
    "knowledge": Knowledge,
}


def resolve_distiller(config: Config) -> DistillConfig:
    """The distiller's settings with `auto` and the default weight filled in.

    Raises:
        ConfigError: no such distiller.
    """
    distill = config.distill
    name = method_class(config.method.name).distiller if distill.name == "auto" else distill.name
    if name == "none":
        return distill.model_copy(update={"name": name, "weight": 0.0})
    if name not in REGISTRY:
        raise ConfigError("distill.name", f"is {name!r}; allowed: auto, none, {', '.join(REGISTRY)}")
    kind = REGISTRY[name]
    if kind.needs_prototypes and not method_class(config.method.name).has_prototypes:
        fitting = [method for method in METHODS if method_class(method).has_prototypes]
        other = method_class(config.method.name).distiller
        problem = f"is {name!r}, which needs a method with prototypes ({', '.join(fitting)})"
        raise ConfigError("distill.name", f"{problem}; allowed with {config.method.name}: {other} and all the rest")
    weight = kind.default_weight if distill.weight is None else distill.weight
    temperature = distill.temperature or kind.default_temperature
    return distill.model_copy(update={"name": name, "weight": weight, "temperature": temperature})


def build_distiller(config: DistillConfig) -> Distiller | None:
    """The distiller of resolved settings, or None for `none`."""
    return None if config.name == "none" else REGISTRY[config.name](config)
