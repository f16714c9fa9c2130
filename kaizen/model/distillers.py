"""Distillers of the features by name: losses that keep what the old encoder knew.

Sources: CaSSLe (Fini et al. 2022, arXiv 2112.04215), PFR (Gomez-Villa et al. 2022, arXiv 2112.15022), PNR (Cha et al.
2024, arXiv 2306.05101). A distiller compares predictions h(z) that the student makes from its projections or features
with those of the teacher for the same views.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kaizen import losses
from kaizen.config.schema import Config, DistillConfig
from kaizen.errors import ConfigError
from kaizen.model.methods import REGISTRY as METHODS
from kaizen.model.methods import method_class
from kaizen.model.methods.base import Method
from kaizen.model.networks.heads import Prototypes, mlp
from kaizen.parallel import Batch
from kaizen.plugins import installed, is_code, own_class, unknown

OFF_DIAGONAL, SCALE = 0.005, 0.1
"""Of the decorrelative distiller, as published."""
NEGATIVE_WEIGHTS = {"predictive": 0.5, "decorrelative": 1.0, "predictive_mse": 23 / 25}
"""Of PNR's pseudo-negatives by form, in units of the distiller's weight, as published for CIFAR-100."""


@dataclass(frozen=True)
class Sides:
    """What a distiller compares on this process.

    predictions, inputs: the student's rows (n, d) and what they were predicted from, one tensor per view; targets: the
    teacher's rows, to which no gradient flows; predictor: the distillation predictor; method: the student's SSL method;
    prototypes: the teacher's (heads, k, d), for methods that have them.
    """

    predictions: list[Tensor]
    inputs: list[Tensor]
    targets: list[Tensor]
    predictor: nn.Module
    method: Method
    prototypes: Tensor | None


class Distiller(ABC):
    """A loss between the student's predictions and the teacher's outputs, two views each."""

    Settings: ClassVar[type[DistillConfig]] = DistillConfig
    """Keys of section `distill`: a class that extends DistillConfig where it has more than those."""
    reads: ClassVar[Literal["projections", "features"]] = "projections"
    """What is predicted: the teacher's projections from the student's, or features of the encoder from features."""
    gives_negatives: ClassVar[bool] = False
    """Whether the SSL loss takes the teacher's outputs as further negatives (see `Method.meet_old_outputs`)."""
    default_weight: ClassVar[float] = 1.0
    default_temperature: ClassVar[float] = 0.2
    needs_prototypes: ClassVar[bool] = False

    def __init__(self, config: DistillConfig) -> None:
        self.config = config
        self.temperature = config.temperature or self.default_temperature

    def build_predictor(self, dim: int, heads: int, prototypes: int) -> nn.Module:
        """The distillation predictor h: Linear - BatchNorm - ReLU - Linear, (n, dim) -> (n, dim)."""
        return mlp((dim, self.config.hidden, dim), norm=True)

    @classmethod
    def weight_with(cls, method: type[Method]) -> float:
        """The weight that `distill.weight: null` stands for."""
        return cls.default_weight

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


class PFR(Distiller):
    """Projected functional regularization: a temporal projection of the features predicts the old encoder's.

    The authors' script, whose Barlow Twins loss is scaled by 0.1, has the weight 1.
    """

    default_weight = 25.0
    reads = "features"

    def loss(self, sides: Sides, batch: Batch) -> Tensor:
        return batch.share(losses.feature_distillation(*sides.predictions, *sides.targets))


class PNR(Distiller):
    """Pseudo-negatives, in the form that the method asks for.

    Methods with negatives (batch, queue): the teacher's outputs are negatives in the SSL loss too, and the student's
    are negatives here. Methods without: the teacher's output for the image's other view is pushed away.
    """

    gives_negatives = True

    @classmethod
    def weight_with(cls, method: type[Method]) -> float:
        return PredictiveMSE.default_weight if method.pseudo_negatives == "predictive_mse" else cls.default_weight

    def loss(self, sides: Sides, batch: Batch) -> Tensor:
        (p1, p2), (z1, z2), form = sides.predictions, sides.targets, sides.method.pseudo_negatives
        if form == "batch":
            p1, p2, z1, z2, s1, s2 = (batch.gather(row) for row in (p1, p2, z1, z2, *sides.inputs))
            which = batch.rows(p1.device)
            found = losses.pseudo_negative_distillation(p1, p2, s1, s2, z1, z2, self.temperature, rows=which)
            return batch.share(found)
        if form == "queue":
            p1, p2, z1, z2 = (F.normalize(row, dim=1) for row in (p1, p2, z1, z2))
            negatives1, negatives2 = sides.method.queued_negatives()
            first = losses.info_nce(p1, z1, negatives1, self.temperature)
            return batch.share((first + losses.info_nce(p2, z2, negatives2, self.temperature)) / 2)
        if form == "decorrelative":
            other = batch.share(losses.feature_distillation(p1, p2, z2, z1))
            p1, p2, z1, z2 = (batch.gather(row) for row in (p1, p2, z1, z2))
            kept = losses.decorrelative_distillation(p1, p2, z1, z2, OFF_DIAGONAL, SCALE)
        else:
            compare = losses.predictive_mse_distillation if form == "predictive_mse" else losses.predictive_distillation
            kept, other = batch.share(compare(p1, p2, z1, z2)), batch.share(compare(p1, p2, z2, z1))
        weight = self.config.negative_weight
        return kept - (NEGATIVE_WEIGHTS[form] if weight is None else weight) * other


REGISTRY: dict[str, type[Distiller]] = {
    "contrastive": Contrastive,
    "predictive": Predictive,
    "predictive_mse": PredictiveMSE,
    "decorrelative": Decorrelative,
    "knowledge": Knowledge,
    "pfr": PFR,
    "pnr": PNR,
}


def distiller_class(name: str) -> type[Distiller]:
    """The class of the distiller of that name, ours or the user's own.

    Raises:
        ConfigError: no such distiller, or an own one that cannot be loaded.
    """
    if name in REGISTRY:
        return REGISTRY[name]
    if is_code(name) or name in installed("distill.name"):
        return own_class("distill.name", name)
    raise ConfigError("distill.name", unknown("distill.name", name, ["auto", "none", *REGISTRY]))


def resolve_distiller(config: Config) -> DistillConfig:
    """The distiller's settings with `auto` and the default weight filled in.

    Raises:
        ConfigError: no such distiller.
    """
    distill, method = config.distill, method_class(config.method.name)
    name = method.distiller if distill.name == "auto" else distill.name
    if distill.negative_weight is not None and (name != "pnr" or method.pseudo_negatives not in NEGATIVE_WEIGHTS):
        allowed = ", ".join(found for found in METHODS if method_class(found).pseudo_negatives in NEGATIVE_WEIGHTS)
        problem = f"is {distill.negative_weight:g}, but applies to distill.name pnr with {allowed}"
        raise ConfigError("distill.negative_weight", f"{problem}; allowed with {config.method.name} and {name}: null")
    if name == "none":
        return distill.model_copy(update={"name": name, "weight": 0.0})
    kind = distiller_class(name)
    if kind.needs_prototypes and not method.has_prototypes:
        fitting = [found for found in METHODS if method_class(found).has_prototypes]
        problem = f"is {name!r}, which needs a method with prototypes ({', '.join(fitting)})"
        allowed = f"{method.distiller} and all the rest"
        raise ConfigError("distill.name", f"{problem}; allowed with {config.method.name}: {allowed}")
    if kind.gives_negatives and method.pseudo_negatives == "none":
        fitting = [found for found in METHODS if method_class(found).pseudo_negatives != "none"]
        problem = f"is {name!r}, which is defined for method.name {', '.join(fitting)}"
        raise ConfigError("distill.name", f"{problem}; allowed with {config.method.name}: {method.distiller}, none")
    default = method.distill_weight if name == method.distiller else None
    default = kind.weight_with(method) if default is None else default
    weight = default if distill.weight is None else distill.weight
    temperature = distill.temperature or kind.default_temperature
    return distill.model_copy(update={"name": name, "weight": weight, "temperature": temperature})


def build_distiller(config: DistillConfig) -> Distiller | None:
    """The distiller of resolved settings, or None for `none`."""
    return None if config.name == "none" else distiller_class(config.name)(config)
