"""The two losses of LeJEPA: prediction of the global views, and SIGReg; see the package for their common rules."""

from collections.abc import Callable

import torch
from torch import Tensor

from kaizen.losses.basics import in_float32, promote


@in_float32
def view_prediction(views: Tensor, targets: int = 2) -> Tensor:
    """LeJEPA's prediction loss: each view meets the mean of its image's global views (arXiv 2511.08544).

    The mean squared difference over views, images and dimensions. The mean of the global views has a gradient as well.

    Args:
        views: embeddings (views, n, d), the global views first.
        targets: number of global views.
    """
    views = promote(views)
    return (views - views[:targets].mean(dim=0)).square().mean()


@in_float32
def sigreg(
    views: Tensor,
    directions: Tensor,
    knots: int = 17,
    extent: float = 3.0,
    rows: int | None = None,
    total: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> Tensor:
    """SIGReg: embeddings towards the isotropic Gaussian, by the Epps-Pulley statistic (arXiv 2511.08544).

    The statistic of a view's n images along a direction a compares their characteristic function with that of N(0, 1):

        n * integral of |1/n sum_j exp(i t a.z_j) - exp(-t^2/2)|^2 exp(-t^2/2) dt,  t from -extent to extent

    The integral is twice that over t >= 0, by the trapezoidal rule; the result is the mean over directions and views.

    Args:
        views: embeddings (views, n, d), the whole batch or the part of it that this process holds.
        directions: unit vectors (count, d), the same on every process.
        knots: points of the rule between 0 and `extent`.
        rows: images of the whole batch; None: n.
        total: sum of a tensor over the processes that hold the other parts, with gradient.
    """
    along, rows = promote(views) @ promote(directions).t(), rows or views.shape[1]
    t = torch.linspace(0, extent, knots, dtype=along.dtype, device=along.device)
    normal, angles = (-t.square() / 2).exp(), along[..., None] * t
    real, imaginary = total(torch.stack([angles.cos().sum(dim=1), angles.sin().sum(dim=1)])) / rows
    distance = (real - normal).square() + imaginary.square()
    return 2 * rows * torch.trapezoid(distance * normal, dx=extent / (knots - 1)).mean()
