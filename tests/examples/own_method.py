"""Alignment and uniformity (Wang and Isola 2020, arXiv 2005.10242) as a method of your own.

python train.py digits --method.name tests/examples/own_method.py:AlignUniform --method.uniformity 0.5
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kaizen.config.schema import MethodSettings
from kaizen.config.types import NonNegative, Positive
from kaizen.model.methods.base import Method, Outputs
from kaizen.parallel import Batch


class AlignUniform(Method):
    """Views of one image lie close together, and all images spread over the sphere."""

    class Settings(MethodSettings):
        uniformity: NonNegative = Field(1.0, description="weight of the uniformity")
        sharpness: Positive = Field(2.0, description="t of exp(-t * squared distance)")

    distiller = "predictive"
    projector_form: ClassVar = {"norm": True}  # Linear - BatchNorm - ReLU - Linear

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        z1, z2 = (F.normalize(z, dim=1) for z in outputs.projections)
        # A mean over this process' images: `share` makes it a part of the global mean.
        align = batch.share((z1 - z2).square().sum(dim=1).mean())
        # Pairs need the images of all processes. What every process computes alike needs no `share`.
        spread = torch.stack([self._spread(batch.gather(z)) for z in (z1, z2)]).mean()
        return align + self.settings.uniformity * spread

    def _spread(self, z: Tensor) -> Tensor:
        n = len(z)
        kernel = (self.settings.sharpness * (2 * z @ z.T - 2)).exp()
        return ((kernel.sum() - n) / (n * (n - 1))).clamp_min(1e-12).log()
