"""LeJEPA (Balestriero & LeCun 2025, arXiv 2511.08544): each view predicts the global ones, SIGReg prevents collapse.

Projector Linear-BN-ReLU-Linear-BN-ReLU-Linear; 1024 directions drawn anew at each step, 17 knots from 0 to 3, as in the
authors' package; weight of SIGReg 0.05 (their minimal example: 0.02, 256 directions). The first two views are global,
views beyond them small crops. No twin, no stop-gradient. Needs from other processes: the sums of SIGReg, with
gradient. With gradient accumulation each part is tested for itself, and SIGReg, which grows with the number of images,
weighs less.

Its distiller is the squared error of its own prediction loss: embeddings that SIGReg keeps near N(0, I) have a scale.
"""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kaizen.config.schema import MethodSettings
from kaizen.config.types import Count, Positive, Probability
from kaizen.data.random import hash_rows, uniform
from kaizen.losses import sigreg, view_prediction
from kaizen.model.methods.base import Method, Outputs
from kaizen.parallel import Batch


def unit_directions(count: int, dim: int, key: int | Tensor, device: torch.device) -> Tensor:
    """The directions that belong to a key: float32 (count, dim), uniform on the sphere."""
    rows = hash_rows(key, torch.arange(count, device=device))
    first, second = uniform(rows, 2 * dim).chunk(2, dim=1)
    # Box and Muller's normal numbers; 1 - first is never 0.
    normal = (-2 * (1 - first).log()).sqrt() * (2 * math.pi * second).cos()
    return F.normalize(normal, dim=1)


class LeJEPA(Method):
    class Settings(MethodSettings):
        name: Literal["lejepa"] = "lejepa"
        sigreg_weight: Probability = Field(0.05, description="weight of SIGReg; the prediction has 1 minus it")
        directions: Count = Field(1024, description="random directions of a step that SIGReg looks along")
        knots: int = Field(17, ge=2, le=1024, description="points of SIGReg's integral between 0 and extent")
        extent: Positive = Field(3.0, description="where SIGReg's integral over frequencies ends")

    distiller = "predictive_mse"
    distill_weight = 1.0
    hidden_layers = 2
    most_views = 16

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        s, views = self.settings, torch.stack(outputs.projections)
        directions = unit_directions(s.directions, views.shape[2], batch.key, views.device).to(views.dtype)
        whole = sigreg(views, directions, s.knots, s.extent, batch.size, batch.group.sum_with_gradient)
        return (1 - s.sigreg_weight) * batch.share(view_prediction(views)) + s.sigreg_weight * whole
