"""BatchNorm whose statistics are those of the global batch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

M = TypeVar("M", bound=nn.Module)


class _Normalised(torch.autograd.Function):
    """Batch normalisation by the statistics of all processes' rows; torch has it for CUDA alone (SyncBatchNorm).

    Rows (views x n, c, ...) of views one after the other are normalised by a mean and a variance (views, c) each.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        n: Tensor,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt(), n)
        out = torch.empty_like(x)
        for part, rows, m, v in zip(_views(out, len(mean)), _views(x, len(mean)), mean, var, strict=True):
            _normalise(rows, m, v, weight, bias, eps, part)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, n = ctx.saved_tensors
        grad, rows = grads[0].to(mean.dtype), x.to(mean.dtype)
        parts = list(zip(_views(grad, len(mean)), _views(rows, len(mean)), mean, scale, strict=True))
        local = torch.stack([_sums(*part) for part in parts])
        # Mean and variance were made of every process' rows: what they pass on is the sum over all of them. Weight and
        # bias take the local sums, which DDP averages like any other gradient.
        total = local.clone()
        dist.all_reduce(total)
        passed = torch.empty_like(rows)
        for out, (g, r, m, s), (along, across) in zip(_views(passed, len(mean)), parts, total / n, strict=True):
            # (grad - along - normalised x * across) * factor, each half in one pass.
            factor = s if weight is None else s * weight
            one = torch.ones_like(m)
            _normalise(g, torch.zeros_like(m), one, factor, -along * factor, 0.0, out)
            out -= F.batch_norm(r, m, one, s * across * factor, training=False, eps=0.0)
        sums = local.sum(dim=0)
        own = (None, None) if weight is None else (sums[1], sums[0])
        return passed.to(x.dtype), *own, None, None, None, None


def _views(x: Tensor, count: int) -> Sequence[Tensor]:
    """Rows (count x n, ...) as they were stacked: (n, ...), `count` times."""
    return x.view(count, len(x) // count, *x.shape[1:]).unbind()


def _normalise(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, out: Tensor
) -> None:
    """What F.batch_norm gives outside training, by the same kernel, written to `out`."""
    if x.stride() != out.stride():  # the kernel takes for granted that both lie in memory alike
        x = torch.empty_like(out, dtype=x.dtype).copy_(x)
    unused = mean.new_empty(0)
    torch.ops.aten.native_batch_norm.out(
        x, weight, bias, mean, var, False, 0.0, eps, out=out, save_mean=unused, save_invstd=unused
    )


def _sums(grad: Tensor, x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Sums (2, c) over the rows (n, c, ...) of the gradient and of its product with the normalised x."""
    if not x.numel():
        return mean.new_zeros(2, len(mean))
    saved = (None, None, mean, scale, True, 0.0, [False, True, True])
    _, product, alone = torch.ops.aten.native_batch_norm_backward(grad, x, torch.ones_like(mean), *saved)
    return torch.stack([alone, product])


class GlobalBatchNorm(_BatchNorm):
    """BatchNorm over (n, c, ...) whose batch statistics are taken over the rows of all processes, on any device.

    Means and variances of unequal parts are merged as in Chan et al. 1979, so equal data give the statistics of one
    process to rounding. A process may hold no row. What one message costs hardly depends on its size, so views that
    are stacked (`forward_all`) share it, each with statistics of its own.
    """

    stacked: int = 1
    """How many views of equal size the rows hold, one after the other."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        """Rows (n, c, ...), normalised; in train mode the running statistics move."""
        self._check_input_dim(input)
        if not (self.training or self.running_mean is None):
            return super().forward(input)
        mean, var, n = self._statistics(input)
        if self.training and self.track_running_stats:
            for view in zip(mean, var, strict=True):
                self._follow(*view, n)
        return _Normalised.apply(input, self.weight, self.bias, mean, var, n, self.eps)

    @torch.no_grad()
    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and biased variance (views, c) over all processes' rows, and the number of values in a view."""
        x = x.float() if x.dtype.itemsize < 4 else x
        count = x.numel() // x.shape[1] // self.stacked
        # The kernel of torch's own BatchNorm, which takes a twentieth of the time; it wants rows.
        own = x.new_zeros(self.stacked, 2, x.shape[1])
        for view, rows in zip(own, _views(x, self.stacked), strict=True):
            if count:
                torch.stack(torch.batch_norm_update_stats(rows, None, None, 0.0), out=view)
        local = torch.cat([own.flatten(), own.new_full((1,), count)])
        parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, local)
        every = torch.stack(parts)
        counts = every[:, -1].view(-1, 1, 1)
        means, variances = every[:, :-1].view(-1, *own.shape).unbind(dim=2)
        n = counts.sum()
        mean = (means * counts).sum(dim=0) / n
        var = ((variances + (means - mean).square()) * counts).sum(dim=0) / n
        return mean, var, n

    @torch.no_grad()
    def _follow(self, mean: Tensor, var: Tensor, n: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_((var * n / (n - 1).clamp(min=1)).to(self.running_var.dtype), momentum)


def forward_all(module: nn.Module, views: Sequence[Tensor]) -> list[Tensor]:
    """The module on each view (n, ...), with statistics of its own for each.

    Where BatchNorms are `GlobalBatchNorm`s, views of one shape pass in one call, stacked, for half as many messages;
    views that have one shape on a process have one on all.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return [module(view) for view in views]
    norms = [part for part in module.modules() if isinstance(part, GlobalBatchNorm)]
    found: list[Tensor] = []
    for _, alike in groupby(views, lambda view: view.shape):
        group = list(alike)
        if not norms or len(group) == 1:
            found += [module(view) for view in group]
            continue
        rows = len(group[0])
        with _stacked(norms, len(group)):
            out = module(torch.cat(group))
        # Slices, as what `chunk` gives must not be changed in place.
        found += [out[view * rows : (view + 1) * rows] for view in range(len(group))]
    return found


@contextmanager
def _stacked(norms: Sequence[GlobalBatchNorm], views: int) -> Iterator[None]:
    for norm in norms:
        norm.stacked = views
    try:
        yield
    finally:
        for norm in norms:
            norm.stacked = 1


def global_batch_norms(module: M, device: torch.device) -> M:
    """The module with every BatchNorm made global in place: torch's own SyncBatchNorm on CUDA, ours elsewhere.

    Parameters, buffers and settings stay the very objects they were.
    """
    kind: type[_BatchNorm] = nn.SyncBatchNorm if device.type == "cuda" else GlobalBatchNorm
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm) and not isinstance(child, kind):
            setattr(module, name, _as(kind, child))
        else:
            global_batch_norms(child, device)
    return module


def _as(kind: type[_BatchNorm], old: _BatchNorm) -> _BatchNorm:
    new = kind(old.num_features, old.eps, old.momentum, affine=False, track_running_stats=False)
    new.affine, new.track_running_stats = old.affine, old.track_running_stats
    new._parameters.update(old._parameters)
    new._buffers.update(old._buffers)
    return new.train(old.training)
