"""Losses of the classifier: cross-entropy to labels and to the old classifier; see the package for common rules."""

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
