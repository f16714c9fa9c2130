"""Losses between the student's predictions and the teacher's projections; see the package for their common rules."""

import torch
from torch import Tensor
from torch.nn import functional as F

from kaizen.losses.basics import both_views, in_float32, promote, unit
from kaizen.losses.ssl import barlow_twins, byol, simsiam


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
def pseudo_negative_distillation(
    p1: Tensor,
    p2: Tensor,
    z1: Tensor,
    z2: Tensor,
    old1: Tensor,
    old2: Tensor,
    temperature: float,
    rows: Tensor | None = None,
) -> Tensor:
    """PNR's distillation of the InfoNCE family (Cha et al. 2024, arXiv 2306.05101, regularization term of SimCLR).

    Each prediction finds the teacher's output for its image and view among all teacher outputs, and among the student's
    projections of the rest of the batch, which are its pseudo-negatives.

    Args:
        p1, p2: predictions (n, d) of the student's distillation predictor, one tensor per view, in any norm.
        z1, z2: the student's projections (n, d), from which the predictions were made; the gradient reaches them.
        old1, old2: the teacher's projections (n, d).
        temperature: divides the cosines.
        rows: int64 (m,), images whose rows count; None: all n.
    """
    p, z, old = (unit(torch.cat(pair)) for pair in ((p1, p2), (z1, z2), (old1, old2)))
    anchors = both_views(rows, len(p1), p.device)
    # The projection that a prediction was made from is no negative of it.
    others = (p[anchors] @ z.t() / temperature).scatter(1, anchors[:, None], float("-inf"))
    return F.cross_entropy(torch.cat([p[anchors] @ old.t() / temperature, others], dim=1), anchors)


@in_float32
def instance_distillation(
    z1: Tensor, z2: Tensor, old1: Tensor, old2: Tensor, temperature: float, rows: Tensor | None = None
) -> Tensor:
    """Osiris-D's stability: InfoNCE of one head on new and old features (Zhang et al. 2024, arXiv 2404.19132, L_past).

    The mean of both directions. The positive is the same image and view; the other view of the same image is masked
    out, on both sides; all other images of the batch are negatives.

    Args:
        z1, z2: the head's outputs (n, d) on the encoder's features, one tensor per view, in any norm.
        old1, old2: its outputs (n, d) on the old encoder's features; the gradient reaches them, as the head is trained.
        temperature: divides the cosines.
        rows: int64 (m,), images whose two rows count; None: all n.
    """
    n = len(z1)
    z, old = unit(torch.cat([z1, z2])), unit(torch.cat([old1, old2]))
    anchors = both_views(rows, n, z.device)
    twin = ((anchors + n) % (2 * n))[:, None]
    forward = (z[anchors] @ old.t() / temperature).scatter(1, twin, float("-inf"))
    backward = (old[anchors] @ z.t() / temperature).scatter(1, twin, float("-inf"))
    return (F.cross_entropy(forward, anchors) + F.cross_entropy(backward, anchors)) / 2


@in_float32
def feature_distillation(p1: Tensor, p2: Tensor, f1: Tensor, f2: Tensor) -> Tensor:
    """PFR: mean over views of the negative cosine of predicted and old features (Gomez-Villa et al. 2022).

    Source: arXiv 2112.15022, the regularization loss with temporal projection.

    Args:
        p1, p2: predictions (n, d) that a temporal projection makes of the encoder's features, one tensor per view.
        f1, f2: the old encoder's features (n, d); no gradient reaches them.
    """
    return (simsiam(p1, f1) + simsiam(p2, f2)) / 2


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
