"""W-MSE (Ermolov et al. 2021, arXiv 2007.06346): distance of both views after whitening.

Projector Linear-BN-ReLU-Linear. The global batch is cut, after one permutation per step that both views share, into
slices of 128 rows; each is whitened by the Cholesky factor of its covariance. Needs from other processes: the
projections of the global batch, gathered with gradient.
"""

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from kaizen.config.schema import MethodSettings
from kaizen.config.types import Count, Probability
from kaizen.data.random import permutation
from kaizen.errors import ConfigError
from kaizen.losses import w_mse
from kaizen.model.methods.base import Method, Outputs
from kaizen.parallel import Batch


def whiten(rows: Tensor, eps: float) -> Tensor:
    """Rows (n, d) with mean 0 and covariance about the identity: L^-1 (x - mean), L L^T = (1 - eps) C + eps I.

    Computed in float64, as rounding in the covariance of large rows outgrows eps. A covariance that still has no
    factor gives rows that are not finite.
    """
    n, d = rows.shape
    wide = rows.double()
    centred = wide - wide.mean(dim=0)
    covariance = centred.t() @ centred / max(n - 1, 1)
    covariance = (1 - eps) * covariance + eps * torch.eye(d, dtype=wide.dtype, device=wide.device)
    # Unlike cholesky, this does not make the host wait to see whether it worked.
    factor, _ = torch.linalg.cholesky_ex(covariance)
    return torch.linalg.solve_triangular(factor, centred.t(), upper=False).t().to(rows.dtype)


class WMSE(Method):
    class Settings(MethodSettings):
        name: Literal["wmse"] = "wmse"
        projector_hidden: Count = Field(1024, description="hidden size of the projector")
        projector_out: Count = Field(64, description="size of the projections")
        whitening_size: Count = Field(128, description="rows whitened together; more than projector_out")
        whitening_eps: Probability = Field(1e-3, description="part of the identity in the covariance")

        @model_validator(mode="after")
        def _enough_rows(self) -> Self:
            if self.whitening_size <= self.projector_out:
                raise ValueError(
                    f"whitening_size is {self.whitening_size}; allowed: more than projector_out ({self.projector_out})"
                )
            return self

    distiller = "predictive_mse"

    @classmethod
    def check_task(cls, settings: Settings, images: int, batch: int) -> None:
        if batch <= settings.projector_out:
            problem = f"is {batch} in a task of {images} images; allowed: more than method.projector_out"
            raise ConfigError("optim.batch", f"{problem} ({settings.projector_out}), or whitening is meaningless")

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        order = permutation(batch.size, batch.key, outputs.projections[0].device)
        # A rest smaller than a slice joins the last slice.
        count = max(1, batch.size // self.settings.whitening_size)
        ends = [self.settings.whitening_size * (i + 1) for i in range(count - 1)]
        views = []
        for z in outputs.projections:
            slices = batch.gather(z)[order].tensor_split(ends)
            views.append(torch.cat([whiten(part, self.settings.whitening_eps) for part in slices]))
        return w_mse(views[0], views[1])
