"""Losses between the student's predictions and the teacher's projections; see the package for their common rules."""

import torch
from torch import Tensor
from torch.nn import functional as F

from kaizen.losses.basics import both_views, in_float32, promote, unit
from kaizen.losses.ssl import barlow_twins, byol


@in_float32
def contrastive_distillation(
    p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor, temperature: float, rows: Tensor | None = None
) -> Tensor:
    """CaSSLe's contrastive distillation: the same image and view in student and teacher (arXiv 2112.04215, eq. 5).

    The mean of both directions, over the 2n x 2n cosines of predictions and teacher outputs; nothing is masked out.

    Args:
        p1, p2: predictions (n, d) of the student's distillation predictor, one tensor per view.
        z1, z2: the teacher's projections (n, d), one tensor per view.
        temperature: divides the cosines.
        rows: int64 (m,), images whose rows count; None: all n.
    """
    p, z = unit(torch.cat([p1, p2])), unit(torch.cat([z1, z2]))
    anchors = both_views(rows, len(p1), p.device)
    forward = F.cross_entropy(p[anchors] @ z.t() / temperature, anchors)
    backward = F.cross_entropy(z[anchors] @ p.t() / temperature, anchors)
    return (forward + backward) / 2


@in_float32
def predictive_distillation(p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
    """CaSSLe with BYOL's loss: mean over views of 2 - 2 cos of predictions and teacher outputs (n, d)."""
    return (byol(p1, z1) + byol(p2, z2)) / 2


@in_float32
def predictive_mse_distillation(p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
    """CaSSLe with VICReg's invariance: mean over views of the squared error of predictions and teacher (n, d)."""
    return (F.mse_loss(promote(p1), promote(z1).detach()) + F.mse_loss(promote(p2), promote(z2).detach())) / 2


@in_float32
def decorrelative_distillation(
    p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor, off_diagonal: float, scale: float
) -> Tensor:
    """CaSSLe with Barlow Twins' loss: mean over views, predictions against teacher outputs (n, d); see barlow_twins."""
    return (barlow_twins(p1, z1, off_diagonal, scale) + barlow_twins(p2, z2, off_diagonal, scale)) / 2


@in_float32
def prototype_distillation(
    p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor, prototypes: Tensor, teacher_prototypes: Tensor, temperature: float
) -> Tensor:
    """CaSSLe's knowledge distillation on prototypes, mean over views (Fini et al. 2022, arXiv 2112.04215).

    Args:
        p1, p2: predictions (n, d) of the student, one tensor per view, in any norm.
        z1, z2: the teacher's projections (n, d), one tensor per view, in any norm.
        prototypes: (k, d), the student's own for this purpose, as they are.
        teacher_prototypes: (k, d), the teacher's, as they are.
        temperature: divides both sides' scores.
    """
    p, z = unit(torch.cat([p1, p2])), unit(torch.cat([z1, z2])).detach()
    targets = (z @ promote(teacher_prototypes).t() / temperature).softmax(dim=1).detach()
    return F.cross_entropy(p @ promote(prototypes).t() / temperature, targets)
