"""LARS, parameter groups and schedules; rates and tau are functions of the step."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kaizen.parallel import add_scaled_, local, norms

TENSOR_RATE = "tensor_rate"
"""Key of a group of parameters: whether its rate is a tensor on its device, so that a recorded step can read it."""


class LARS(torch.optim.Optimizer):
    """SGD with momentum and layer-wise rates (You et al. 2017, arXiv 1708.03888).

    For a parameter p with more than one dimension and gradient g: s = eta |p| / (|g| + wd |p| + 1e-8), with `clip`
    s = min(s / lr, 1), g <- (g + wd p) s, then SGD. One-dimensional parameters (with `exclude_1d`) and those with
    |p| = 0 or |g| = 0 take the plain gradient, and so does a group with `adapt` False. Gradients are not changed.
    A group's rate may be a tensor () on its device.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eta: float = 0.02,
        clip: bool = True,
        exclude_1d: bool = True,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        own = {"eta": eta, "clip": clip, "exclude_1d": exclude_1d, "adapt": True, TENSOR_RATE: True}
        super().__init__(params, {**defaults, **own})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step; a group whose rate is the number 0 stays as it is."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            held = [p for p in group["params"] if p.grad is not None]
            if held and (isinstance(group["lr"], Tensor) or group["lr"] != 0):
                _momentum_step(self, group, held, _scaled_gradients(group, held))
        return loss


def _scaled_gradients(group: dict[str, Any], params: list[Tensor]) -> list[Tensor]:
    """Gradients (of this process' shards) with decay and the layer-wise rate; nothing here waits for the device."""
    gradients = [local(p.grad) for p in params if p.grad is not None]
    adapted = [i for i, p in enumerate(params) if p.ndim > 1 or not group["exclude_1d"]]
    if not adapted or not group["adapt"]:
        return gradients
    held, g = [local(params[i]) for i in adapted], [gradients[i] for i in adapted]
    decay = group["weight_decay"]
    # Norms of whole parameters: norms of shards would give each process a different rate.
    p_norm = norms([params[i] for i in adapted])
    g_norm = norms([p.grad for i in adapted if (p := params[i]).grad is not None])
    scale = group["eta"] * p_norm / (g_norm + decay * p_norm + 1e-8)
    if group["clip"]:
        scale = (scale / group["lr"]).clamp(max=1)
    has_norms = (p_norm > 0) & (g_norm > 0)
    scaled = torch._foreach_mul(g, torch.where(has_norms, scale, 1.0).unbind())
    decayed = torch._foreach_mul(held, torch.where(has_norms, decay * scale, 0.0).unbind())
    torch._foreach_add_(scaled, decayed)
    for i, gradient in zip(adapted, scaled, strict=True):
        gradients[i] = gradient
    return gradients


def _momentum_step(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], params: list[Tensor], gradients: list[Tensor]
) -> None:
    held, arrived = [], []
    for p, g in zip(params, gradients, strict=True):
        state = optimizer.state[p]
        if "momentum_buffer" in state:
            held.append(local(state["momentum_buffer"]))
            arrived.append(g)
        else:
            state["momentum_buffer"] = torch.empty_like(p, requires_grad=False)
            local(state["momentum_buffer"]).copy_(g)
    if held:
        torch._foreach_mul_(held, group["momentum"])
        torch._foreach_add_(held, arrived)
    buffers = [local(optimizer.state[p]["momentum_buffer"]) for p in params]
    if isinstance(group["lr"], Tensor):
        add_scaled_([local(p) for p in params], buffers, -group["lr"])
    else:
        torch._foreach_add_([local(p) for p in params], buffers, alpha=-group["lr"])


def set_rates(optimizer: torch.optim.Optimizer, on_device: Tensor, numbers: Sequence[float]) -> None:
    """Give each group its rate: of on_device (groups,) where it takes a tensor, else of the same numbers."""
    for index, group in enumerate(optimizer.param_groups):
        if group.get(TENSOR_RATE):
            group["lr"] = on_device[index].to(group["params"][0].dtype)
        else:
            group["lr"] = numbers[index]


def warmup_cosine(step: int, steps: int, warmup_steps: int, base: float, start: float, minimum: float) -> float:
    """Learning rate at a step: linear from `start` to `base` over the warm-up, then cosine to `minimum`.

    Args:
        step: 0 .. steps - 1.
        warmup_steps: its last step has the rate `base`; fewer than 2 have no slope and count as none.
    """
    warmup_steps = warmup_steps if warmup_steps > 1 else 0
    if step < warmup_steps:
        return start + step * (base - start) / (warmup_steps - 1)
    progress = (step - warmup_steps) / (steps - warmup_steps)
    return minimum + (base - minimum) * (1 + math.cos(math.pi * progress)) / 2


def momentum_tau(step: int, steps: int, base: float, final: float) -> float:
    """Momentum of the twin at a step: cosine from `base` to `final` (Grill et al. 2020, arXiv 2006.07733)."""
    return final - (final - base) * (math.cos(math.pi * step / steps) + 1) / 2


def parameter_groups(
    model: nn.Module,
    lr: float,
    classifier_lr: float,
    weight_decay: float,
    constant: tuple[str, ...] = (),
    plain: tuple[str, ...] = (),
    *,
    exclude_1d: bool = True,
) -> list[dict[str, Any]]:
    """Groups body, constant (no schedule), both also plain (no decay, not adapted by LARS), and classifier.

    The classifier has its own rate and no decay. `base_lr` keeps a group's rate, `scheduled` says whether it
    follows the schedule.

    Args:
        constant: prefixes of the names of parameters whose rate follows no schedule.
        plain: names of parameters that are neither decayed nor adapted.
        exclude_1d: one-dimensional parameters are plain too; if False, they are decayed and adapted by LARS as the
            others, and the classifier's are adapted.
    """
    settings: dict[str, dict[str, Any]] = {
        "body": {"lr": lr, "weight_decay": weight_decay, "scheduled": True, "adapt": True},
        "body_plain": {"lr": lr, "weight_decay": 0.0, "scheduled": True, "adapt": False},
        "constant": {"lr": lr, "weight_decay": weight_decay, "scheduled": False, "adapt": True},
        "constant_plain": {"lr": lr, "weight_decay": 0.0, "scheduled": False, "adapt": False},
        "classifier": {"lr": classifier_lr, "weight_decay": 0.0, "scheduled": True, "adapt": True},
    }
    parts: dict[str, list[nn.Parameter]] = {group: [] for group in settings}
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        if name.startswith("classifier."):
            parts["classifier"].append(p)
        else:
            kind = "constant" if constant and name.startswith(constant) else "body"
            is_plain = (exclude_1d and p.ndim < 2) or name in plain
            parts[f"{kind}_plain" if is_plain else kind].append(p)
    return [
        {"params": parts[name], "name": name, "base_lr": own["lr"], "exclude_1d": exclude_1d, **own}
        for name, own in settings.items()
        if parts[name]
    ]


def build_optimizer(
    name: str, groups: list[dict[str, Any]], momentum: float, eta: float, lr: float, *, fused: bool = False
) -> torch.optim.Optimizer:
    """sgd, lars or adamw over parameter groups; `momentum` and `eta` where the optimizer has them.

    Args:
        fused: take torch's fused kernels for sgd and adamw, whose rates are tensors on the device.
    """
    if name == "lars":
        return LARS(groups, lr=lr, momentum=momentum, eta=eta)
    groups = [{**group, TENSOR_RATE: fused} for group in groups]
    if name == "adamw":
        adamw = torch.optim.AdamW(groups, lr=lr, fused=fused or None, capturable=fused)
        # torch warns of a step that could be recorded and is not; the first few never are.
        adamw._warned_capturable_if_run_uncaptured = True
        return adamw
    sgd = torch.optim.SGD(groups, lr=lr, momentum=momentum, fused=fused or None)
    if fused and momentum:
        # The fused kernel takes a first step for all parameters of a group or for none, and some start frozen. From
        # zero, momentum takes up the first gradient as it is.
        for parameter in (p for group in sgd.param_groups for p in group["params"]):
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter, requires_grad=False)
    return sgd
