"""DeepCluster v2 (Caron et al. 2020, arXiv 2006.09882, appendix D): cross-entropy to k-means of the last projections.

Projector Linear-BN-ReLU-Linear, then L2-normalised; several heads of prototypes, which are the centroids of spherical
k-means on a memory of each current image's latest projections, made anew before each epoch; temperature 0.1. Needs from
other processes: the projections and places of the global batch, after the step (memory), and sums over clusters.
"""

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kaizen.config.schema import MethodSettings
from kaizen.config.types import Count, Positive
from kaizen.data.random import fold, permutation
from kaizen.errors import ConfigError
from kaizen.losses import deepcluster
from kaizen.model.methods.base import Method, Outputs
from kaizen.parallel import ONE_PROCESS, Batch, Group

SUMMED = 4096
"""Points summed per chunk."""


@torch.no_grad()
def spherical_kmeans(
    points: Tensor, centroids: Tensor, iterations: int, group: Group = ONE_PROCESS
) -> tuple[Tensor, Tensor]:
    """Centroids (k, d) and assignments int64 (n,) of unit points (n, d); an empty cluster keeps its centroid.

    Points and assignments are this process' part; centroids are computed from the points of all processes.
    """
    for _ in range(iterations):
        nearest = (points @ centroids.t()).argmax(dim=1)
        # Sums by products, as adding by index is in no fixed order on a GPU.
        sums = torch.zeros_like(centroids)
        for some, of in zip(points.split(SUMMED), nearest.split(SUMMED), strict=True):
            sums += F.one_hot(of, len(centroids)).to(some.dtype).t() @ some
        found = group.sum(torch.bincount(nearest, minlength=len(centroids)))[:, None] > 0
        centroids = torch.where(found, F.normalize(group.sum(sums), dim=1), centroids)
    return centroids, (points @ centroids.t()).argmax(dim=1)


class DeepClusterV2(Method):
    class Settings(MethodSettings):
        name: Literal["deepclusterv2"] = "deepclusterv2"
        prototypes: Count = Field(3000, description="clusters of each head; no more than a task has images")
        heads: Count = Field(3, description="independent clusterings")
        temperature: Positive = Field(0.1, description="temperature of the predictions")
        iterations: Count = Field(10, description="rounds of k-means")

    distiller = "knowledge"
    of_one_task = ("memory", "assignments")
    has_prototypes = True
    centroids: Tensor
    memory: Tensor
    assignments: Tensor

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        shape = (settings.heads, settings.prototypes, settings.projector_out)
        self.register_buffer("centroids", F.normalize(torch.randn(shape), dim=2))

    def prototypes(self) -> Tensor:
        return self.centroids

    @classmethod
    def check_task(cls, settings: Settings, images: int, batch: int) -> None:
        if settings.prototypes > images:
            problem = f"is {settings.prototypes}; allowed: at most {images}, the training images of a task"
            raise ConfigError("method.prototypes", problem)

    def begin_task(self, images: int) -> None:
        like = self.centroids
        self.register_buffer("memory", like.new_zeros(2, images, like.shape[2]))
        self.register_buffer("assignments", torch.full((len(like), images), -1, device=like.device))

    @torch.no_grad()
    def begin_epoch(self, key: int, fill: Callable[[], list[Tensor]], group: Group = ONE_PROCESS) -> None:
        if not self.memory.any():
            self.memory.copy_(F.normalize(torch.stack(fill()), dim=2))
        for head in range(len(self.centroids)):
            points = self.memory[head % 2]
            first = permutation(len(points), fold(key, head))[: self.settings.prototypes].to(points.device)
            mine = points[group.shard(len(points))]
            centroids, nearest = spherical_kmeans(mine, points[first], self.settings.iterations, group)
            self.centroids[head], self.assignments[head] = centroids, group.gather(nearest, group.sizes(len(points)))

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        unit = torch.stack([F.normalize(z, dim=1) for z in outputs.projections])
        scores = torch.einsum("vnd,hkd->hvnk", unit, self.centroids.to(unit.dtype))
        places = self._places(batch)
        targets = torch.where(places >= 0, self.assignments[:, places.clamp(min=0)], -1)
        # Replay images have no target, so the mean is over the current ones, and so is this process' share of it.
        local = (places >= 0).sum().to(scores.dtype)
        return deepcluster(scores, targets, self.settings.temperature) * local * (batch.world / batch.current)

    def counted(self, batch: Batch) -> int:
        return batch.current

    def after_step(self, outputs: Outputs, batch: Batch) -> None:
        places = batch.gather(self._places(batch))[: batch.current]  # the rest is replay
        for view, z in enumerate(outputs.projections):
            unit = F.normalize(batch.gather(z)[: batch.current], dim=1)
            self.memory[view, places] = unit.to(self.memory.dtype)

    def _places(self, batch: Batch) -> Tensor:
        assert batch.places is not None
        return batch.places
