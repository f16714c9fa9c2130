"""The equations: pure functions of tensors that are already gathered, each returning a scalar.

Half types are promoted to float32, wider types are left alone. Where a loss compares every row with every other one,
`rows` names the rows of the global batch whose mean is wanted (all of them by default), so that a process computes its
own rows against global columns and nothing of size global x global is built.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def nt_xent(z1: Tensor, z2: Tensor, temperature: float, rows: Tensor | None = None) -> Tensor:
    """Normalised-temperature cross-entropy: each row of either view is told from all others (arXiv 2002.05709, eq. 1).

    Args:
        z1, z2: projections (n, d) of both views, in any norm.
        temperature: divides the cosines.
        rows: int64 (m,), images whose two rows count; None: all n.
    """
    n = len(z1)
    z = _unit(torch.cat([z1, z2]))
    anchors = _both_views(rows, n, z.device)
    logits = z[anchors] @ z.t() / temperature
    # A row is no negative of itself.
    logits = logits.scatter(1, anchors[:, None], float("-inf"))
    return F.cross_entropy(logits, (anchors + n) % (2 * n))


def info_nce(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """InfoNCE with a queue: each query is told from the queue's keys by its own key (arXiv 1911.05722, eq. 1).

    Args:
        query, key: (n, d), L2-normalised; row i of both belongs together.
        queue: (k, d), L2-normalised negatives.
        temperature: divides the similarities.
    """
    query, key, queue = promote(query), promote(key), promote(queue)
    positive = (query * key).sum(dim=1, keepdim=True)
    logits = torch.cat([positive, query @ queue.t()], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.int64, device=query.device))


def contrastive_distillation(
    p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor, temperature: float, rows: Tensor | None = None
) -> Tensor:
    """CaSSLe's contrastive distillation: the same image and view in student and teacher (arXiv 2112.04215, eq. 5).

    The mean of both directions, over the 2n x 2n cosines of predictions and teacher outputs; nothing is masked out.

    Args:
        p1, p2: predictions (n, d) of the student's distillation predictor, a tensor a view.
        z1, z2: the teacher's projections (n, d), a tensor a view.
        temperature: divides the cosines.
        rows: int64 (m,), images whose rows count; None: all n.
    """
    p, z = _unit(torch.cat([p1, p2])), _unit(torch.cat([z1, z2]))
    anchors = _both_views(rows, len(p1), p.device)
    forward = F.cross_entropy(p[anchors] @ z.t() / temperature, anchors)
    backward = F.cross_entropy(z[anchors] @ p.t() / temperature, anchors)
    return (forward + backward) / 2


def soft_label_distillation(logits1: Tensor, logits2: Tensor, teacher1: Tensor, teacher2: Tensor) -> Tensor:
    """Cross-entropy of the classifier to the old one's softmax, mean over rows and views (arXiv 2303.17235, eq. 4).

    Args:
        logits1, logits2: the student's logits (n, classes), a tensor a view.
        teacher1, teacher2: the old classifier's logits (n, classes), a tensor a view.
    """
    pairs = ((logits1, teacher1), (logits2, teacher2))
    first, second = (F.cross_entropy(promote(own), promote(old).softmax(dim=1)) for own, old in pairs)
    return (first + second) / 2


def labelled_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """SUM over rows of the cross-entropy to their labels; rows labelled -1 add nothing, so without labels it is 0.

    Args:
        logits: (n, classes).
        labels: int64 (n,), -1 = not available.
    """
    return F.cross_entropy(promote(logits), labels, ignore_index=-1, reduction="sum")


def promote(tensor: Tensor) -> Tensor:
    """Half types to float32; wider types as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _unit(rows: Tensor) -> Tensor:
    return F.normalize(promote(rows), dim=1)


def _both_views(rows: Tensor | None, n: int, device: torch.device) -> Tensor:
    """Rows of the stacked views (2n, d) that belong to the images `rows` (m,)."""
    if rows is None:
        return torch.arange(2 * n, device=device)
    return torch.cat([rows, rows + n]).to(device)
