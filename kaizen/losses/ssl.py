"""Losses of the SSL methods; see the package for their common rules."""

from collections.abc import Callable, Sequence

import torch
from einops import rearrange, repeat
from torch import Tensor
from torch.nn import functional as F

from kaizen.losses.basics import both_views, cosine, in_float32, promote, unit
from kaizen.losses.classifier import labelled_cross_entropy


@in_float32
def nt_xent(
    z1: Tensor, z2: Tensor, temperature: float, rows: Tensor | None = None, negatives: Tensor | None = None
) -> Tensor:
    """NT-Xent: each row finds its image's other view among all rows (Chen et al. 2020, arXiv 2002.05709, eq. 1).

    Args:
        z1, z2: projections (n, d) of both views, in any norm.
        temperature: divides the cosines.
        rows: int64 (m,), images whose two rows count; None: all n.
        negatives: (2n, d), another network's rows of the first and then of the second view, in any norm: negatives of
            all rows, except for those of the same image and view (PNR, Cha et al. 2024, arXiv 2306.05101).
    """
    n = len(z1)
    z = unit(torch.cat([z1, z2]))
    anchors = both_views(rows, n, z.device)
    logits = z[anchors] @ z.t() / temperature
    # A row is no negative of itself.
    logits = logits.scatter(1, anchors[:, None], float("-inf"))
    if negatives is not None:
        others = z[anchors] @ unit(negatives).t() / temperature
        logits = torch.cat([logits, others.scatter(1, anchors[:, None], float("-inf"))], dim=1)
    return F.cross_entropy(logits, (anchors + n) % (2 * n))


@in_float32
def info_nce(query: Tensor, key: Tensor, queue: Tensor | Sequence[Tensor], temperature: float) -> Tensor:
    """InfoNCE with a queue: each query finds its own key among the queue's keys (arXiv 1911.05722, eq. 1).

    Args:
        query, key: (n, d), L2-normalised; rows i belong to the same image.
        queue: (k, d), L2-normalised negatives, or several such tensors, which are not copied together.
        temperature: divides the similarities.
    """
    query, key = promote(query), promote(key)
    positive = (query * key).sum(dim=1, keepdim=True)
    queues = [queue] if isinstance(queue, Tensor) else queue
    logits = torch.cat([positive, *(query @ promote(keys).t() for keys in queues)], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.int64, device=query.device))


@in_float32
def sup_con(z1: Tensor, z2: Tensor, labels: Tensor, temperature: float, rows: Tensor | None = None) -> Tensor:
    """NT-Xent whose positives are all images of the label, L_out (Khosla et al. 2020, arXiv 2004.11362, eq. 2).

    Args:
        z1, z2: projections (n, d) of both views, in any norm.
        labels: int64 (n,); each image labelled -1 is a class of its own.
        temperature: divides the cosines.
        rows: int64 (m,), images whose two rows count; None: all n.
    """
    n = len(z1)
    z = unit(torch.cat([z1, z2]))
    anchors = both_views(rows, n, z.device)
    itself = torch.arange(2 * n, device=z.device) == anchors[:, None]
    logits = (z[anchors] @ z.t() / temperature).masked_fill(itself, float("-inf"))
    own = -1 - torch.arange(n, device=z.device)
    classes = repeat(torch.where(labels < 0, own, labels), "n -> (view n)", view=2)
    positive = (classes == classes[anchors, None]) & ~itself
    log_probabilities = logits.log_softmax(dim=1).masked_fill(~positive, 0.0)
    return -(log_probabilities.sum(dim=1) / positive.sum(dim=1)).mean()


@in_float32
def cross_task(
    z1: Tensor, z2: Tensor, others1: Tensor, others2: Tensor, temperature: float, rows: Tensor | None = None
) -> Tensor:
    """Osiris' cross-task loss, one direction: negatives are the other tasks' images alone (arXiv 2404.19132, L_cross).

    Each row of an image finds the image's other view among the rows of other tasks; the batch's own images are no
    negatives. The loss of the paper is the mean of both directions, of current against old images and the reverse.

    Args:
        z1, z2: (n, d) of both views of the images, in any norm.
        others1, others2: (k, d) of both views of images of other tasks, in any norm.
        temperature: divides the cosines.
        rows: int64 (m,), images whose two rows count; None: all n.
    """
    n = len(z1)
    z, others = unit(torch.cat([z1, z2])), unit(torch.cat([others1, others2]))
    anchors = both_views(rows, n, z.device)
    positive = (z[anchors] * z[(anchors + n) % (2 * n)]).sum(dim=1, keepdim=True)
    logits = torch.cat([positive, z[anchors] @ others.t()], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros_like(anchors))


@in_float32
def relational(query: Tensor, key: Tensor, queue: Tensor, temperature_query: float, temperature_key: float) -> Tensor:
    """ReSSL: the relations of a query to a queue follow those of its key (Zheng et al. 2021, arXiv 2107.09282, eq. 5).

    Args:
        query, key: (n, d), L2-normalised; no gradient reaches the key.
        queue: (k, d), L2-normalised.
        temperature_query, temperature_key: divide the similarities; the key's is the lower one.
    """
    query, key, queue = promote(query), promote(key).detach(), promote(queue)
    relations = (key @ queue.t() / temperature_key).softmax(dim=1)
    return F.cross_entropy(query @ queue.t() / temperature_query, relations)


@in_float32
def nearest_neighbour(
    neighbours: Tensor, predictions: Tensor, temperature: float, rows: Tensor | None = None
) -> Tensor:
    """NNCLR, one direction: each neighbour finds its image's prediction among all (arXiv 2104.14548, eq. 2).

    Args:
        neighbours: (m, d), the queue's nearest to one view of m images, in any norm.
        predictions: (n, d) of the other view of the whole batch, in any norm.
        temperature: divides the cosines.
        rows: int64 (m,), the images of the neighbours among the n; None: m = n, in the same order.
    """
    logits = unit(neighbours) @ unit(predictions).t() / temperature
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device) if rows is None else rows)


@in_float32
def byol(prediction: Tensor, target: Tensor) -> Tensor:
    """2 - 2 cos of predictions and stopped targets (n, d), (Grill et al. 2020, arXiv 2006.07733, eq. 2)."""
    return 2 - 2 * cosine(prediction, target.detach())


@in_float32
def simsiam(prediction: Tensor, target: Tensor) -> Tensor:
    """Negative cosine of predictions (n, d) and stopped targets (n, d) (Chen & He 2021, arXiv 2011.10566, eq. 1)."""
    return -cosine(prediction, target.detach())


@in_float32
def barlow_twins(z1: Tensor, z2: Tensor, off_diagonal: float, scale: float) -> Tensor:
    """Cross-correlation of two views towards the identity (Zbontar et al. 2021, arXiv 2103.03230, eq. 1).

    Args:
        z1, z2: (n, d); standardised by the mean and the biased variance (plus 1e-5) of these n rows.
        off_diagonal: weight of the squares off the diagonal.
        scale: factor of the whole loss.
    """
    # The variance of the centred rows, so that rounding in the mean of large numbers cancels.
    centred = (z - z.mean(dim=0) for z in map(promote, (z1, z2)))
    first, second = (rows * (rows.square().mean(dim=0) + 1e-5).rsqrt() for rows in centred)
    correlation = first.t() @ second / len(first)
    diagonal = correlation.diagonal()
    beside = correlation.square().sum() - diagonal.square().sum()
    return scale * ((diagonal - 1).square().sum() + off_diagonal * beside)


@in_float32
def vicreg(z1: Tensor, z2: Tensor, invariance: float, variance: float, covariance: float) -> Tensor:
    """Invariance, variance and covariance (Bardes et al. 2022, arXiv 2105.04906, eq. 6), both views summed.

    Args:
        z1, z2: (n, d), n of at least 2.
        invariance, variance, covariance: weights of the three terms.
    """
    z1, z2 = promote(z1), promote(z2)
    loss = invariance * F.mse_loss(z1, z2)
    for z in (z1, z2):
        n, d = z.shape
        loss = loss + variance * F.relu(1 - (z.var(dim=0) + 1e-4).sqrt()).mean()
        centred = z - z.mean(dim=0)
        diagonal = torch.eye(d, dtype=torch.bool, device=z.device)
        # The diagonal goes before the squares, whose sums would cancel badly.
        beside = (centred.t() @ centred / (n - 1)).masked_fill(diagonal, 0.0)
        loss = loss + covariance * beside.square().sum() / d
    return loss


@in_float32
def w_mse(z1: Tensor, z2: Tensor) -> Tensor:
    """2 - 2 cos of whitened rows (n, d), gradient to both views (Ermolov et al. 2021, arXiv 2007.06346, eq. 1)."""
    return 2 - 2 * cosine(z1, z2)


@in_float32
@torch.no_grad()
def sinkhorn_knopp(
    scores: Tensor,
    epsilon: float,
    iterations: int,
    rows: int | None = None,
    total: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    largest: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> Tensor:
    """Assignments (n, k) of rows to prototypes that use each prototype equally (arXiv 2006.09882, eq. 3 to 5).

    Args:
        scores: (n, k), the whole batch or the part of it that this process holds.
        epsilon: entropy; lower is sharper.
        iterations: rounds of normalising prototypes, then rows.
        rows: rows of the whole batch; None: n.
        total, largest: sum and maximum of a tensor over the processes that hold the other parts.
    """
    (n, k), rows = scores.shape, rows or len(scores)
    scaled = promote(scores) / epsilon
    # The maximum is taken off first, as the exponential of a large score is infinite; the result does not change.
    top = scaled.max() if n else scaled.new_full((), float("-inf"))
    assignments = (scaled - largest(top)).exp()
    assignments = assignments / total(assignments.sum())
    tiny = torch.finfo(assignments.dtype).tiny
    for _ in range(iterations):
        assignments = assignments / total(assignments.sum(dim=0, keepdim=True)).clamp(min=tiny) / k
        assignments = assignments / assignments.sum(dim=1, keepdim=True).clamp(min=tiny) / rows
    return assignments * rows


@in_float32
def swapped_prediction(scores: Sequence[Tensor], assignments: Sequence[Tensor], temperature: float) -> Tensor:
    """SwAV: each view predicts the assignments of the others (Caron et al. 2020, arXiv 2006.09882, eq. 2).

    Args:
        scores: (n, k) of every view, the large crops first.
        assignments: (n, k) of the large crops alone, in the same order.
        temperature: divides the scores.
    """
    logits = [promote(score) / temperature for score in scores]
    pairs = [(logits[v], target) for a, target in enumerate(assignments) for v in range(len(logits)) if v != a]
    return torch.stack([F.cross_entropy(*pair) for pair in pairs]).mean()


@in_float32
def deepcluster(scores: Tensor, assignments: Tensor, temperature: float) -> Tensor:
    """DeepCluster v2: cross-entropy of both views to k-means assignments, mean over heads (arXiv 2006.09882, app. D).

    Args:
        scores: (heads, views, n, k).
        assignments: int64 (heads, n), -1 = none; rows without one add nothing, and without any the loss is 0.
        temperature: divides the scores.
    """
    targets = repeat(assignments, "head n -> head (view n)", view=scores.shape[1])
    logits = rearrange(promote(scores) / temperature, "head view n k -> head (view n) k")
    sums = torch.stack([labelled_cross_entropy(*pair) for pair in zip(logits, targets, strict=True)])
    return (sums / (targets >= 0).sum(dim=1).clamp(min=1)).mean()


@in_float32
def dino(
    student: Tensor, teacher: Tensor, center: Tensor, student_temperature: float, teacher_temperature: float | Tensor
) -> Tensor:
    """Cross-entropy to the centred, sharpened teacher of other views (Caron et al. 2021, arXiv 2104.14294, eq. 3).

    The mean over pairs of a teacher's view and a student's other view; with two views each follows the other.

    Args:
        student: (views x n, k), the views stacked, those of the teacher first.
        teacher: (2n, k), the two large views stacked.
        center: (1, k), taken from the teacher's scores.
        student_temperature, teacher_temperature: divide the scores.
    """
    targets = ((promote(teacher) - center) / teacher_temperature).softmax(dim=1).detach().chunk(2)
    views = (promote(student) / student_temperature).split(len(targets[0]))
    # Cross-entropy is linear in its targets: the pairs of a small crop are one term.
    others = [targets[1], targets[0], *[targets[0] + targets[1]] * (len(views) - 2)]
    terms = [F.cross_entropy(*pair) for pair in zip(views, others, strict=True)]
    return torch.stack(terms).sum() / (2 * (len(views) - 1))
