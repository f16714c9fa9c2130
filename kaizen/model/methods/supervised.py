"""Supervised learning (Marczak et al. 2024, arXiv 2311.13321): cross-entropy to the labels trains the encoder.

The reference for the SSL methods: with a projector between features and loss, thrown away afterwards, features learned
from labels transfer and last as well as theirs. Projector Linear-BN-ReLU-Linear, 4096/512, then a linear layer over all
classes of the stream, both kept from task to task; images without a label add nothing. The classifier still reads
the features. Needs from other processes: nothing.

As in the paper, the distiller is PFR, on the features. There each task has a projector and a head of its own, over the
classes of the task alone, and no memory.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kaizen.config.schema import MethodSettings
from kaizen.config.types import Count
from kaizen.losses import labelled_cross_entropy
from kaizen.model.methods.base import Method, Outputs
from kaizen.model.networks.heads import forward_all
from kaizen.parallel import Batch


class Supervised(Method):
    class Settings(MethodSettings):
        name: Literal["supervised"] = "supervised"
        projector_hidden: Count = Field(4096, description="hidden size of the projector")
        projector_out: Count = Field(512, description="size of the projections")

    distiller = "pfr"
    needs_labels = True
    takes_mixed = False
    class_heads = ("head",)

    def build_heads(self, feature_dim: int, num_classes: int) -> None:
        self.head = nn.Linear(self.settings.projector_out, num_classes)

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        scores = forward_all(self.head, outputs.projections)
        sums = torch.stack([labelled_cross_entropy(view, outputs.labels) for view in scores])
        return batch.share_labelled(sums.mean())

    def counted(self, batch: Batch) -> int:
        return batch.labelled
