"""What a log line tells of a step beside its losses: norms of gradient and update, spread and rank of projections.

Ordinary steps pay for the gradient's norm alone; the rest is computed at log lines. Norms are those of whole
parameters, under FSDP2 too.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from kaizen.errors import TrainingFailed
from kaizen.evaluation.features import rankme
from kaizen.losses import promote
from kaizen.model.learner import total
from kaizen.parallel import Group, Parallel, local, norms


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """L2 norm () over all elements of tensors, from the shards of all processes; waits for nothing."""
    return torch.linalg.vector_norm(norms(tensors))


def trained(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The parameters of all groups, without graph."""
    return [p.detach() for group in optimizer.param_groups for p in group["params"]]


def gradients(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The gradients of the parameters of all groups, of those that have one."""
    return [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def copies(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Copies of the parameters before a step, for `update_norm`."""
    return [p.clone() for p in trained(optimizer)]


def update_norm(before: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> float:
    """L2 norm of what has changed in the parameters since `copies`, which is overwritten; all processes call this."""
    torch._foreach_sub_([local(p) for p in before], [local(p) for p in trained(optimizer)])
    return float(global_norm(before))


def projection_std(views: Sequence[Tensor], group: Group) -> float:
    """Spread of projections (n, d) of two views, small if they collapse; all processes call it and get the same.

    The standard deviation over the global batch of L2-normalised projections, mean over dimensions and views, in units
    of 1 / sqrt(d): 1 for projections spread over the whole sphere, 0 if all are equal (Chen & He 2021,
    arXiv 2011.10566, section 4.1).
    """
    z = normalize(promote(torch.stack(list(views))), dim=2)
    rows = group.sum(torch.tensor(float(z.shape[1]), device=z.device))
    mean = group.sum(z.sum(dim=1, keepdim=True)) / rows
    variance = group.sum((z - mean).square().sum(dim=1)) / rows
    return float(variance.sqrt().mean() * z.shape[2] ** 0.5)


def projection_rankme(views: Sequence[Tensor], group: Group, sizes: Sequence[int]) -> float:
    """RankMe of the projections (n, d) of two views over the global batch; all processes call it and get the same.

    Args:
        sizes: n of each process.
    """
    with torch.no_grad():
        return rankme(torch.cat([group.gather(promote(z), sizes) for z in views]))


def finite(value: float) -> float | None:
    """The number, or None for one that is not finite, which JSON does not have: a norm of a step that was skipped."""
    return value if math.isfinite(value) else None


def finite_losses(
    parallel: Parallel, terms: Mapping[str, Tensor], weights: Mapping[str, float], position: tuple[int, int]
) -> dict[str, float]:
    """The global losses as numbers, by their names in the log.

    Raises:
        TrainingFailed: one is not finite; names it and the position (task, step).
    """
    values = parallel.mean({**terms, "total": total(terms, weights)})
    bad = [f"loss/{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    if bad:
        task, step = position
        raise TrainingFailed(f"task {task}, step {step}: {', '.join(bad)}; the last checkpoint is kept")
    return {f"loss/{name}": values[name] for name in ("total", *terms)}
