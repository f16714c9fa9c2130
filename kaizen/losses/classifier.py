"""Losses of the classifier: to labels, to the old classifier and to stored logits; see the package for common rules."""

import torch
from torch import Tensor
from torch.nn import functional as F

from kaizen.losses.basics import in_float32, promote


@in_float32
def soft_label_distillation(logits1: Tensor, logits2: Tensor, teacher1: Tensor, teacher2: Tensor) -> Tensor:
    """Distil the old classifier: cross-entropy to its softmax, mean over rows and views (arXiv 2303.17235, eq. 4).

    Args:
        logits1, logits2: the student's logits (n, classes), one tensor per view.
        teacher1, teacher2: the old classifier's logits (n, classes), one tensor per view.
    """
    own, old = promote(torch.cat([logits1, logits2])), promote(torch.cat([teacher1, teacher2]))
    return F.cross_entropy(own, old.softmax(dim=1))


@in_float32
def labelled_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """SUM over rows of the cross-entropy to their labels; rows labelled -1 add nothing, so without labels it is 0.

    Args:
        logits: (n, classes).
        labels: int64 (n,), -1 = not available.
    """
    return F.cross_entropy(promote(logits), labels, ignore_index=-1, reduction="sum")


@in_float32
def mixed_cross_entropy(logits: Tensor, labels: Tensor, others: Tensor, shares: Tensor) -> Tensor:
    """Cross-entropy of mixed images to both their labels (mixup: Zhang et al. 2018, arXiv 1710.09412, section 2).

    SUM over rows of 2 x (share x cross-entropy to `labels` + (1 - share) x cross-entropy to `others`). Divided by the
    number of available labels, this is mixup's mean if all are, and labels that are missing (-1) add nothing.

    Args:
        logits: (n, classes).
        labels, others: int64 (n,), of the images of weights share and 1 - share; -1 = not available.
        shares: (n,), 0..1.
    """
    rows = promote(logits)
    first, second = (F.cross_entropy(rows, of, ignore_index=-1, reduction="none") for of in (labels, others))
    return 2 * (shares.to(rows.dtype) * first + (1 - shares).to(rows.dtype) * second).sum()


@in_float32
def stored_logits_distillation(logits: Tensor, stored: Tensor) -> Tensor:
    """SUM over rows of the mean over classes of (logits - stored)^2; without rows it is 0.

    Dark Experience Replay (Buzzega et al. 2020, arXiv 2004.07211, second term of eq. 6), where a mean over classes
    takes the place of the squared norm, as in the authors' code.

    Args:
        logits: the student's (n, classes), of replay images.
        stored: the logits (n, classes) that the memory holds for these images; no gradient reaches them.
    """
    return (promote(logits) - promote(stored).detach()).square().mean(dim=1).sum()
