"""BatchNorm whose statistics are those of the global batch."""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from kaizen.parallel.collectives import gather_alike

M = TypeVar("M", bound=nn.Module)


class _Normalised(torch.autograd.Function):
    """Batch normalisation by the statistics of all processes' rows; torch has it only for CUDA (SyncBatchNorm)."""

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
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, n = ctx.saved_tensors
        grad, rows = grads[0].to(mean.dtype), x.to(mean.dtype)
        local = _sums(grad, rows, mean, scale)
        # Mean and variance depend on every process' rows, so their gradients are summed over processes. Weight and
        # bias take the local sums, which DDP averages like any other gradient.
        along, across = gather_alike(local).sum(dim=0) / n
        factor = scale if weight is None else scale * weight
        # (grad - along - normalised x * across) * factor, in two passes; the first by torch's own kernel for BatchNorm.
        one = torch.ones_like(mean)
        passed = F.batch_norm(rows, mean, one, -scale * across * factor, -along * factor, training=False, eps=0.0)
        passed.addcmul_(grad, factor.view(-1, *[1] * (x.dim() - 2)))
        own = (None, None) if weight is None else (local[1], local[0])
        return passed.to(x.dtype), *own, None, None, None, None


def _sums(grad: Tensor, x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Sums (2, c) over the rows (n, c, ...) of the gradient and of its product with the normalised x."""
    if not x.numel():
        return mean.new_zeros(2, len(mean))
    saved = (None, None, mean, scale, True, 0.0, [False, True, True])
    _, product, alone = torch.ops.aten.native_batch_norm_backward(grad, x, torch.ones_like(mean), *saved)
    return torch.stack([alone, product])


class GlobalBatchNorm(_BatchNorm):
    """BatchNorm over (n, c, ...) whose batch statistics are taken over the rows of all processes, on any device.

    Means and variances of unequal parts are merged as in Chan et al. 1979, so the statistics equal those of one process
    with the same data up to rounding. A process may have no rows.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        """Rows (n, c, ...), normalised; in train mode the running statistics are updated."""
        self._check_input_dim(input)
        if not (self.training or self.running_mean is None):
            return super().forward(input)
        mean, var, n = self._statistics(input)
        if self.training and self.track_running_stats:
            self._update_running(mean, var, n)
        return _Normalised.apply(input, self.weight, self.bias, mean, var, n, self.eps)

    @torch.no_grad()
    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and biased variance (c,) over all processes' rows, and the number of values."""
        x = x.float() if x.dtype.itemsize < 4 else x
        count = x.numel() // x.shape[1]
        # The kernel of torch's own BatchNorm takes a twentieth of the time; it needs at least one row.
        mean, var = torch.batch_norm_update_stats(x, None, None, 0.0) if count else x.new_zeros(2, x.shape[1])
        local = torch.cat([mean, var, mean.new_full((1,), count)])
        every = gather_alike(local)
        counts, (means, variances) = every[:, -1:], every[:, :-1].chunk(2, dim=1)
        n = counts.sum()
        mean = (means * counts).sum(dim=0) / n
        var = ((variances + (means - mean).square()) * counts).sum(dim=0) / n
        return mean, var, n

    @torch.no_grad()
    def _update_running(self, mean: Tensor, var: Tensor, n: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_((var * n / (n - 1).clamp(min=1)).to(self.running_var.dtype), momentum)


def global_batch_norms(module: M, device: torch.device) -> M:
    """Replace every BatchNorm of a module in place by a global one: torch's SyncBatchNorm on CUDA, ours elsewhere.

    The new modules keep the same parameters, buffers and settings, and what a norm of timm has inside (its activation).
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
    if old._modules:
        new._modules.update(old._modules)
        new.register_forward_hook(_through_children)
    return new.train(old.training)


def _through_children(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    for part in module.children():
        output = part(output)
    return output
