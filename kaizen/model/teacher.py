"""The two networks that are never trained themselves: the frozen teacher and the momentum twin."""

import copy
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kaizen.config.schema import Config
from kaizen.losses import promote
from kaizen.model.learner import Learner, Network, last_layer
from kaizen.model.methods.base import TeacherOutputs
from kaizen.model.networks.heads import encode_all, forget_running_statistics, forward_all
from kaizen.parallel import Parallel, add_scaled_, check_alike, local
from kaizen.run.tensors import load_into, read_tensors


def read_network(snapshot: Path, config: Config) -> Network:
    """Encoder, projector and classifier of a task-end snapshot, on the CPU; with as many classes as it was saved with.

    Raises:
        ConfigError: the file is missing, damaged, or of other networks.
    """
    parts = ("encoder.", "projector.", "classifier.")
    tensors = {name: tensor for name, tensor in read_tensors(snapshot).items() if name.startswith(parts)}
    last = tensors.get(f"{last_layer(config)}.bias")
    network = Network(config, 1 if last is None else len(last))
    load_into(network, tensors, parts, snapshot)
    return network


class Teacher:
    """The network as it stood at the end of the task before, read from that task's snapshot and frozen.

    With `teacher.batchnorm: batch` it normalises by the batch at hand; its own running statistics never change. With
    `labels.fraction: 0` its classifier has learned nothing, so it gives no logits, and neither does it where stored
    logits take their place.
    """

    def __init__(
        self, snapshot: Path, config: Config, num_classes: int, parallel: Parallel, prototypes: Tensor | None = None
    ) -> None:
        self.prototypes = prototypes
        self.network = parallel.placed(read_network(snapshot, config)).requires_grad_(False).eval()
        self._num_classes = num_classes
        self._reads = config.labels.fraction > 0 and config.classifier.distill == "soft_label"
        if config.teacher.batchnorm == "batch":
            forget_running_statistics(self.network)
            # Without running statistics a BatchNorm does the same in both modes. SyncBatchNorm is the exception: it
            # communicates with the other processes only in train mode.
            self.network.train()
        if config.teacher.shard:
            parallel.spread(self.network, self.network.encoder.block_names)

    @torch.no_grad()
    def __call__(self, views: list[Tensor]) -> TeacherOutputs:
        """Views (n, 3, h, w) -> features, projections (n, d) and classifier logits (n, classes) of each."""
        features = encode_all(self.network.encoder, views)
        projections = forward_all(self.network.projector, features)
        logits = forward_all(self.network.classifier, features) if self._reads else []
        said = [promote(z) for z in projections], [self._widened(promote(g)) for g in logits]
        return TeacherOutputs(*said, self.prototypes, features)

    def _widened(self, logits: Tensor) -> Tensor:
        """Logits (n, classes) with those of classes that came later, to which it gives no probability."""
        later = self._num_classes - logits.shape[1]
        return F.pad(logits, (0, later), value=float("-inf")) if later else logits


class MomentumTwin(nn.Module):
    """Exponential moving average of encoder, projector and the method's head (He et al. 2020, arXiv 1911.05722).

    Parameters follow the student; BatchNorm runs in train mode on the twin's own batches, with buffers of its own.
    """

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(learner.encoder)
        self.projector = copy.deepcopy(learner.projector)
        self.head = copy.deepcopy(learner.method.twin_head)
        self.requires_grad_(False).train()
        self.follow(learner)

    def follow(self, learner: Learner) -> None:
        """Take a student's parameters, as they stand or as they are sharded, for the twin's to follow."""
        followed = (learner.encoder, learner.projector, learner.method.twin_head)
        students = [parameter for module in followed for parameter in module.parameters()]
        own = list(self.parameters())
        check_alike(own, students)
        self._pairs = ([local(p) for p in own], [local(p) for p in students])

    @torch.no_grad()
    def forward(self, views: list[Tensor]) -> list[Tensor]:
        """Views (n, 3, h, w) -> outputs of projector and head (n, d), float32 or wider."""
        projections = forward_all(self.projector, encode_all(self.encoder, views))
        # The student's head belongs to its loss, which is computed in float32 or wider.
        with torch.autocast(views[0].device.type, enabled=False):
            return forward_all(self.head, [promote(z) for z in projections])

    @torch.no_grad()
    def update(self, follow: Tensor) -> None:
        """Move every parameter: (1 - follow) x twin + follow x student; follow: a tensor () on their device."""
        own, students = self._pairs
        add_scaled_(own, torch._foreach_sub(students, own), follow.to(own[0].dtype))
