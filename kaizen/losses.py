import torch
from torch import Tensor
from torch.nn import functional as F


def nt_xent(z1: Tensor, z2: Tensor, temperature: float, rows: Tensor | None = None) -> Tensor:
    a1, a2 = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
    rows = torch.arange(len(z1)) if rows is None else rows
    n = len(z1)
    every = torch.cat([a1, a2])
    mine = torch.cat([rows, rows + n])
    logits = every[mine] @ every.t() / temperature
    logits = logits.masked_fill(F.one_hot(mine, 2 * n).bool(), float("-inf"))
    return F.cross_entropy(logits, (mine + n) % (2 * n))


def info_nce(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ queue.t()], 1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long))


def contrastive_distillation(p1, p2, z1, z2, temperature, rows=None):
    n = len(p1)
    rows = torch.arange(n) if rows is None else rows
    p, z = F.normalize(torch.cat([p1, p2]), dim=1), F.normalize(torch.cat([z1, z2]), dim=1)
    mine = torch.cat([rows, rows + n])
    return 0.5 * (F.cross_entropy(p[mine] @ z.t() / temperature, mine) + F.cross_entropy(z[mine] @ p.t() / temperature, mine))


def cross_entropy_sum(logits, labels):
    return F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum"), (labels >= 0).sum()


def soft_label_distillation(logits1, logits2, teacher1, teacher2):
    return 0.5 * (F.cross_entropy(logits1, teacher1.softmax(1)) + F.cross_entropy(logits2, teacher2.softmax(1)))
