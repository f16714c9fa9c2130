"""The buffer that the host sends to the device for each step: labels, keys, places and the step's numbers.

The buffer is sent in one copy. On the device everything that differs from step to step is read from it, so that a step
can be recorded once and replayed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

COLUMNS = 5


class StepData(NamedTuple):
    """A step's buffer taken apart, on the device.

    labels: int64 (n,), -1 = not available; keys: int64 (n,), random keys of the images' views; places: int64 (n,), see
    `Batch`; rows: int64 (n,), rows of the images in the task's store; weights: float64 (n,), the part of each image in
    the one that networks see, see `kaizen.data.mixing`; key: int64 (), random key of the step; rates:
    float64 (g,), learning rates of the optimizer's groups; follow: float64 (), 1 - tau of the twin; label_share:
    float64 (), see `Batch`; method: float64 (k,), see `Method.schedule`.
    """

    labels: Tensor
    keys: Tensor
    places: Tensor
    rows: Tensor
    weights: Tensor
    key: Tensor
    rates: Tensor
    follow: Tensor
    label_share: Tensor
    method: Tensor


def pack(columns: Sequence[Tensor], key: int, numbers: Sequence[float], *, pinned: bool) -> Tensor:
    """One int64 buffer of labels, keys, places, rows and weights, each (n,), the step's key, and its numbers.

    Of weights and numbers it holds the bits.

    Args:
        numbers: rates, follow, label_share and the method's, in this order.
        pinned: in pinned memory, from which a copy to a GPU waits for nothing.
    """
    n = len(columns[0])
    packed = torch.empty(COLUMNS * n + 1 + len(numbers), dtype=torch.int64, pin_memory=pinned)
    bits = [column.view(torch.int64) for column in columns]
    torch.stack(bits, out=rearrange(packed[: COLUMNS * n], "(column n) -> column n", n=n))
    packed[COLUMNS * n] = key
    packed[COLUMNS * n + 1 :].view(torch.float64).copy_(torch.tensor(numbers, dtype=torch.float64))
    return packed


def unpack(packed: Tensor, n: int, groups: int) -> StepData:
    """The buffer of n images and so many groups of parameters, as views of it."""
    columns, key = rearrange(packed[: COLUMNS * n], "(column n) -> column n", n=n), packed[COLUMNS * n]
    numbers = packed[COLUMNS * n + 1 :].view(torch.float64)
    rates, follow, label_share, method = numbers.split([groups, 1, 1, len(numbers) - groups - 2])
    labels, keys, places, rows, weights = columns.unbind(0)
    weights = weights.view(torch.float64)
    return StepData(labels, keys, places, rows, weights, key, rates, follow[0], label_share[0], method)
