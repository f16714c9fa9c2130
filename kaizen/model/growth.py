"""Outputs for classes that came after a network was saved."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from kaizen.data.random import Purpose, fold


def grown(tensors: Mapping[str, Tensor], heads: Iterable[str], names: Sequence[str], seed: int) -> dict[str, Tensor]:
    """The weight (classes, d) and bias (classes,) of linear layers, with rows added for classes that are new.

    A new row is a function of the seed, the layer and the class's name alone, uniform as torch's linear layers begin.

    Args:
        tensors: saved tensors by name; those of other layers are left out.
        heads: names of the layers.
        names: names of all classes, by output; the first ones are those that were saved.
    """
    found: dict[str, Tensor] = {}
    for head in heads:
        weight, bias = (tensors.get(f"{head}.{part}") for part in ("weight", "bias"))
        if weight is None or bias is None or len(bias) >= len(names):
            continue
        rows = [_row(seed, head, name, weight.shape[1], weight.dtype) for name in names[len(bias) :]]
        found[f"{head}.weight"] = torch.cat([weight, torch.stack([row[:-1] for row in rows])])
        found[f"{head}.bias"] = torch.cat([bias, torch.stack([row[-1] for row in rows])])
    return found


def _row(seed: int, head: str, name: str, size: int, dtype: torch.dtype) -> Tensor:
    """First weights (size,) and bias of one output, as one tensor."""
    words = int.from_bytes(hashlib.sha256(f"{head}\n{name}".encode()).digest()[:8], "big")
    generator = torch.Generator().manual_seed(fold(seed, Purpose.INIT, words) % 2**63)
    return (2 * torch.rand(size + 1, generator=generator, dtype=dtype) - 1) / size**0.5
