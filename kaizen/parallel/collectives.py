"""Sums, maxima and gathered rows over processes, on the device, and the split of items between processes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def shard(count: int, rank: int, world: int) -> range:
    """Positions of `count` items that belong to a rank: consecutive, disjoint, sizes differing by at most one."""
    return range(count * rank // world, count * (rank + 1) // world)


def gather_alike(local: Tensor) -> Tensor:
    """Gather tensors of equal shape and type in the order of ranks: (processes, ...), without graph."""
    local = local.detach().contiguous()
    every = local.new_empty((dist.get_world_size(), *local.shape))
    dist.all_gather(list(every.unbind()), local)
    return every


def reduce_alike(local: Tensor, operation: Any) -> Tensor:
    """Sum or maximum (dist.ReduceOp) of tensors of equal shape and type over all processes, without graph."""
    total = local.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, op=operation)
    return total


class _AllGather(torch.autograd.Function):
    """Concatenate (n_r, ...) over processes; backward sums the gradients of all processes for the local rows."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, sizes: tuple[int, ...], rank: int) -> Tensor:
        ctx.sizes, ctx.rank = sizes, rank
        largest = max(sizes)
        padded = local.new_zeros((largest, *local.shape[1:]))
        padded[: local.shape[0]] = local
        every = gather_alike(padded)
        return torch.cat([part[:size] for part, size in zip(every, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        # Every process uses the gathered tensor, so its gradient is the sum over processes.
        total = reduce_alike(grads[0], dist.ReduceOp.SUM)
        start = sum(ctx.sizes[: ctx.rank])
        return total[start : start + ctx.sizes[ctx.rank]], None, None


@dataclass(frozen=True)
class Group:
    """The processes that share a batch: this rank of `world`. All processes call each method, in the same order."""

    rank: int = 0
    world: int = 1

    def shard(self, count: int) -> slice:
        """This process' part of `count` items that are the same on every process."""
        mine = shard(count, self.rank, self.world)
        return slice(mine.start, mine.stop)

    def sizes(self, count: int) -> tuple[int, ...]:
        """Number of items in each process' part of `count` items."""
        return tuple(len(shard(count, rank, self.world)) for rank in range(self.world))

    def gather(self, local: Tensor, sizes: Sequence[int]) -> Tensor:
        """Rows (n_r, ...) of all processes, in the order of ranks, with gradient; sizes: n_r of each process."""
        return local if self.world == 1 else _AllGather.apply(local, tuple(sizes), self.rank)

    def sum_with_gradient(self, local: Tensor) -> Tensor:
        """Sum over processes of tensors of equal shape, with gradient: for losses that every process computes whole."""
        return local if self.world == 1 else self.gather(local[None], [1] * self.world).sum(dim=0)

    @torch.no_grad()
    def sum(self, local: Tensor) -> Tensor:
        """Sum over processes, without gradient."""
        return local if self.world == 1 else reduce_alike(local, dist.ReduceOp.SUM)

    @torch.no_grad()
    def max(self, local: Tensor) -> Tensor:
        """Maximum over processes, without gradient."""
        return local if self.world == 1 else reduce_alike(local, dist.ReduceOp.MAX)


ONE_PROCESS = Group()
