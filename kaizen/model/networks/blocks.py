"""The parts of an encoder: its repeated blocks, and which of its parameters are frozen."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

TAIL = 99999
"""What timm's matchers add to the place of layers after the last block."""
STEM, AFTER = (-1,), (TAIL,)


class FrozenBatchNorm(nn.Module):
    """A BatchNorm that always normalises by its running statistics and never changes; names as in a BatchNorm.

    What a norm of timm has inside, such as its activation, follows.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self.eps = norm.eps
        self._parameters.update(norm._parameters)
        self._buffers.update(norm._buffers)
        self._modules.update(norm._modules)

    def forward(self, x: Tensor) -> Tensor:
        """Maps or rows (n, c, ...), normalised."""
        scale, shift = (None if held is None else held.to(self.running_mean.dtype) for held in self._affine())
        y = F.batch_norm(x, self.running_mean, self.running_var, scale, shift, training=False, eps=self.eps)
        for part in self.children():
            y = part(y)
        return y

    def _affine(self) -> tuple[Tensor | None, Tensor | None]:
        return self._parameters["weight"], self._parameters["bias"]


def repeated_blocks(encoder: nn.Module) -> tuple[str, ...]:
    """Name of the class of an encoder's blocks, if it has one: FSDP and regional compilation take them one by one.

    A block's class is repeated in lists of modules and has most of the parameters; of such classes, the most frequent.
    """
    lists = (nn.Sequential, nn.ModuleList)
    held = [child for part in encoder.modules() if isinstance(part, lists) for child in part.children()]
    counts, sizes = Counter(map(type, held)), Counter[type]()
    everywhere = Counter(map(type, encoder.modules()))
    for child in held:
        sizes[type(child)] += sum(p.numel() for p in child.parameters())
    whole = sum(p.numel() for p in encoder.parameters())
    fit = [
        kind
        for kind, count in counts.items()
        if count > 1
        and count == everywhere[kind]
        and not kind.__module__.startswith("torch.nn")
        and not issubclass(kind, lists)
        and 2 * sizes[kind] >= whole
    ]
    best = max(fit, key=lambda kind: (counts[kind], sizes[kind]), default=None)
    return () if best is None else (best.__name__,)


def count_blocks(encoder: nn.Module) -> int:
    """Number of blocks that can be frozen: stages of a ResNet, blocks of a ViT, and what timm groups as such."""
    return len({place for place in _places(encoder).values() if place > 0})


def freeze(encoder: nn.Module, count: int) -> None:
    """Freeze the stem and the first `count` blocks, in place: no gradients, and BatchNorms that no batch changes."""
    if not count:
        return
    places = _places(encoder)
    blocks = sorted({place for place in places.values() if place > 0})[:count]
    frozen = {name for name, place in places.items() if place in (0, *blocks)}
    for name, parameter in encoder.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    _freeze_norms(encoder)


def _freeze_norms(module: nn.Module) -> None:
    """Replace the BatchNorms of parts whose parameters are all frozen."""
    for name, child in module.named_children():
        trains = [parameter.requires_grad for parameter in child.parameters()]
        if isinstance(child, _BatchNorm) and child.running_mean is not None and trains and not any(trains):
            setattr(module, name, FrozenBatchNorm(child))
        else:
            _freeze_norms(child)


def _places(encoder: Any) -> dict[str, int]:
    """The place of each parameter by name: 0 for the stem, above it for blocks in their order, -1 for what follows."""
    names = [name for name, _ in encoder.named_parameters()]
    if not hasattr(encoder, "group_matcher"):
        return dict.fromkeys(names, -1)
    try:
        matcher = encoder.group_matcher(coarse=True)
    except AssertionError:  # a model of timm that groups only layer by layer
        return dict.fromkeys(names, -1)
    if not isinstance(matcher, dict) or matcher.keys() != {"stem", "blocks"}:
        return dict.fromkeys(names, -1)
    blocks = matcher["blocks"]
    patterns: Sequence[Any] = [(blocks, None)] if isinstance(blocks, str) else blocks
    found = {name: _place(name, matcher["stem"], patterns) for name in names}
    order = {key: number for number, key in enumerate(sorted({*found.values()} - {STEM, AFTER}), start=1)}
    return {name: (order | {STEM: 0, AFTER: -1})[key] for name, key in found.items()}


def _place(name: str, stem: Any, patterns: Sequence[Any]) -> tuple[int, ...]:
    """What timm's regular expressions say of a name: STEM, AFTER, or numbers by which blocks are in order."""
    stems = [stem] if isinstance(stem, str) else [pattern for pattern, _ in stem]
    if any(re.match(pattern, name) for pattern in stems):
        return STEM
    for pattern, suffix in patterns:
        if matched := re.match(pattern, name):
            if suffix and TAIL in suffix:
                return AFTER
            return tuple(int(part) for part in (*matched.groups(), *(suffix or ())) if part is not None)
    return AFTER
