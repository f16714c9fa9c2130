"""What the learner asks of an SSL method."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from kaizen.config.schema import MethodSettings
from kaizen.model.networks.heads import mlp
from kaizen.parallel import ONE_PROCESS, Batch, Group


class TwinSettings(MethodSettings):
    """Keys of methods with a momentum twin."""

    tau_base: float = Field(0.99, ge=0, le=1, description="momentum of the twin at the start of a task")
    tau_final: float = Field(1.0, ge=0, le=1, description="momentum of the twin at the end of a task")


@dataclass(frozen=True)
class TeacherOutputs:
    """Outputs of the frozen teacher for the local images, one tensor per view, without graph; logits may be none."""

    projections: list[Tensor]
    logits: list[Tensor]
    prototypes: Tensor | None = None
    """Its SSL prototypes (heads, k, d), for methods that have them."""
    features: list[Tensor] = field(default_factory=list)
    """Features (n, feature_dim) as its encoder gives them, perhaps in a half type."""


@dataclass(frozen=True)
class Outputs:
    """Outputs of a step's networks on this process, one tensor (n, d) per view."""

    projections: list[Tensor]
    twin: list[Tensor]
    """Outputs of the momentum twin for the views that `twin_views` names, without graph; empty without a twin."""
    labels: Tensor
    """int64 (n,), -1 = not available."""
    old: TeacherOutputs | None = None
    """Outputs of the teacher for the first two views, from task 1 on if there is a teacher."""
    features: list[Tensor] = field(default_factory=list)
    """Features (n, feature_dim) as the encoder gives them, perhaps in a half type; only `loss` gets them."""


class Method(nn.Module, ABC):
    """An SSL loss with the heads and the state (queues, prototypes, centres as buffers) that belong to it.

    The learner holds the method as a submodule: its parameters are trained, its parameters and buffers are saved under
    `method.` in method.safetensors and kept from task to task, except those that `of_one_task` names.
    """

    Settings: ClassVar[type[MethodSettings]] = MethodSettings
    """Its keys: a class that extends MethodSettings where it has more than those."""
    distill_weight: ClassVar[float | None] = None
    """What `distill.weight: null` stands for with the distiller below; None: the distiller's own default."""
    distiller: ClassVar[str] = "predictive"
    """The distiller that `distill.name: auto` takes; none: nothing is distilled."""
    pseudo_negatives: ClassVar[Literal["none", "batch", "queue", "predictive", "predictive_mse", "decorrelative"]] = (
        "none"
    )
    """The form of PNR that fits: negatives from the batch or from queues, or a distiller with negatives; none: none."""
    twin_views: ClassVar[tuple[int, ...]] = ()
    """Views that go through a momentum twin of the encoder, the projector and `twin_head`; none: no twin."""
    most_views: ClassVar[int] = 2
    of_one_task: ClassVar[tuple[str, ...]] = ()
    """Prefixes of the names of buffers that are dropped at a task's end."""
    constant_rate: ClassVar[tuple[str, ...]] = ()
    """Prefixes of the names of parameters whose learning rate stays constant."""
    has_prototypes: ClassVar[bool] = False
    takes_mixed: ClassVar[bool] = True
    """Whether it learns from images that are mixed with replay images, which count as images without a label."""
    distinct_replay: ClassVar[bool] = False
    """Whether no image of the memory may be in a step twice, as the loss would push its copies apart."""
    needs_labels: ClassVar[bool] = False
    """Whether it learns from labels alone."""
    hidden_layers: ClassVar[int] = 1
    projector_form: ClassVar[dict[str, Any]] = {"norm": True}
    """Hidden layers of the projector, and its form (see `mlp`)."""

    def __init__(self, settings: Any) -> None:
        super().__init__()
        self.settings = settings
        self.twin_head: nn.Module = nn.Identity()
        self.meets_old = False

    @classmethod
    def build_projector(cls, settings: Any, feature_dim: int) -> nn.Sequential:
        """The projector: features (n, feature_dim) -> projections (n, settings.projector_out)."""
        hidden = [settings.projector_hidden] * cls.hidden_layers
        return mlp((feature_dim, *hidden, settings.projector_out), **cls.projector_form)

    @abstractmethod
    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        """This process' share of the SSL loss: a scalar whose mean over processes is the loss of the global batch."""

    def counted(self, batch: Batch) -> int:
        """Number of images that the loss is a mean over, which weights the parts of a batch: all unless overridden."""
        return batch.size

    def distill_input(self, projections: Tensor) -> Tensor:
        """What the distiller compares, from projections (n, d): the projections as they are unless overridden."""
        return projections

    class_heads: ClassVar[tuple[str, ...]] = ()
    """Names of linear layers that have an output per class."""

    def build_heads(self, feature_dim: int, num_classes: int) -> None:
        """Make the heads on the encoder's features (n, feature_dim) or with an output per class of the stream.

        Called once, after the constructor.
        """
        return

    def meet_old_outputs(self) -> None:
        """Take the teacher's outputs as further negatives from now on, in methods that have negatives (see PNR)."""
        self.meets_old = True

    def queued_negatives(self) -> list[list[Tensor]]:
        """Queued negatives (k, d) for the rows of each of the two views, for methods that have them."""
        raise TypeError(f"{type(self).__name__} has no queued negatives")

    def needs_teacher(self) -> bool:
        """Whether the loss reads `outputs.old`, even without a distiller."""
        return self.meets_old

    def prototypes(self) -> Tensor:
        """The prototypes (heads, k, d) that a later task distils from, for methods that have them."""
        raise TypeError(f"{type(self).__name__} has no prototypes")

    @classmethod
    def check_task(cls, settings: Any, images: int, batch: int) -> None:
        """Raise a ConfigError if a task of so many training images, so many per step, does not fit; before any work."""
        return

    def begin_task(self, images: int) -> None:
        """Make room for the state of one task of that many images."""
        return

    def continue_from(self, projector: nn.Module) -> None:
        """Called at the beginning of task 1 with the projector that task 0 trained."""
        return

    def phase(self, epoch: int) -> Hashable:
        """The part of the method's state, other than tensors, that decides how the steps of an epoch are computed.

        Steps of one phase run the same operations on tensors of the same shapes, so that one of them can be recorded
        and replayed. A method whose operations change puts what they depend on here and reads it from `batch.phase`.
        """
        return None

    def schedule(self, epoch: int) -> tuple[float, ...]:
        """Numbers of the loss that change from epoch to epoch, which the loss reads from `batch.numbers`."""
        return ()

    def begin_epoch(self, key: int, fill: Callable[[], list[Tensor]], group: Group = ONE_PROCESS) -> None:
        """Called before each epoch; `fill` gives projections (images, d) of the task's images, one tensor per view."""
        return

    def after_backward(self, batch: Batch) -> None:
        """Drop gradients that the optimizer must not apply."""
        return

    def after_step(self, outputs: Outputs, batch: Batch) -> None:
        """Advance the method's state (queues, centres) once the optimizer has stepped; `outputs` carry no graph."""
        return

    def count_step(self, images: int) -> None:
        """Count a step on so many images of all processes, on the host; a replayed step calls nothing else."""
        return
