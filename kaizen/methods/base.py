"""What the learner asks of an SSL method."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from kaizen.config import MethodSettings
from kaizen.parallel import Batch


@dataclass(frozen=True)
class Outputs:
    """What one step's networks gave on this process, a tensor (n, d) a view."""

    projections: list[Tensor]
    twin: list[Tensor] | None = None
    """Projections of the momentum twin, without graph; None for methods without one."""


class Method(nn.Module, ABC):
    """An SSL loss with the heads and the state (queues, prototypes, centres as buffers) that belong to it.

    The learner holds the method as a submodule: its parameters are trained, its parameters and buffers are saved under
    `method.` in method.safetensors and kept over tasks.
    """

    Settings: ClassVar[type[MethodSettings]]
    uses_twin: ClassVar[bool] = False
    distiller: ClassVar[str]
    """The distiller that `distill.name: auto` takes."""

    def __init__(self, settings: Any) -> None:
        super().__init__()
        self.settings = settings

    @staticmethod
    @abstractmethod
    def build_projector(settings: Any, feature_dim: int) -> nn.Module:
        """The projector: features (n, feature_dim) -> projections (n, settings.projector_out)."""

    @abstractmethod
    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        """This process' share of the SSL loss: a scalar whose mean over processes is the loss of the global batch."""

    def distill_input(self, projections: Tensor) -> Tensor:
        """What the distiller compares, from projections (n, d): the projections as they are unless overridden."""
        return projections

    def after_step(self, outputs: Outputs, batch: Batch) -> None:
        """Advance the method's state (queues, centres) once the optimiser has stepped; `outputs` carry no graph."""
        return
