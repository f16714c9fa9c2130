"""Counter-based random numbers: every draw is a function of integers, never of a generator's state.

A restart or another number of processes then repeats the draws without anything being saved. The hash is splitmix64
(Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators") in signed 64-bit integers.
"""

from enum import IntEnum
from functools import lru_cache

import torch
from torch import Tensor

MASK = (1 << 64) - 1
GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
BITS = 24
"""Random bits of a number in [0, 1): as many as float32 holds exactly."""


class Purpose(IntEnum):
    """Purpose of a draw: the part of a key that keeps different uses from sharing numbers."""

    INIT = 1
    ORDER = 2
    REPLAY = 3
    VIEWS = 4
    REPLAY_VIEWS = 5
    MEMORY = 6
    LABELS = 7
    STREAM = 8
    EVALUATION = 9
    METHOD = 10
    ALIGN = 11
    MIX = 12
    HOLDOUT = 13


def fold(*parts: int) -> int:
    """Hash of integers (modulo 2**64, their order counts) into one key, a signed 64-bit integer."""
    key = 0
    for part in parts:
        key = _mix(_mix(int(part) * GOLDEN + key) + key + GOLDEN)
    return _signed(key)


def hash_rows(key: int | Tensor, *columns: Tensor) -> Tensor:
    """Hash of a key and each row of one or more int64 columns (n,), as int64 (n,) on their device.

    A key that differs from step to step is an int64 tensor () on that device, so that a recorded step can read it.

    hash_rows(fold(a), b) is fold(a, b_i) in each row; for one column, different entries never give the same hash.
    """
    hashed = key.expand_as(columns[0]) if isinstance(key, Tensor) else torch.full_like(columns[0], _signed(key))
    for column in columns:
        hashed = _mix_rows(_mix_rows(column * _signed(GOLDEN) + hashed) + hashed + _signed(GOLDEN))
    return hashed


def uniform(keys: Tensor, count: int, stream: int = 0) -> Tensor:
    """Numbers in [0, 1), float32 (n, count) on the device of keys int64 (n,); streams are independent of each other."""
    places = _places(count, stream, keys.device)
    return _shift(_mix_rows(_mix_rows(keys)[:, None] + places), 64 - BITS).to(torch.float32) * 2.0**-BITS


def permutation(n: int, key: int | Tensor, device: torch.device | str = "cpu") -> Tensor:
    """The permutation of range(n) that belongs to a key, int64 (n,)."""
    return torch.argsort(hash_rows(key, torch.arange(n, device=device)), stable=True)


# Cached: copying it to a GPU at each call would make the host wait for the device.
@lru_cache(maxsize=256)
def _places(count: int, stream: int, device: torch.device) -> Tensor:
    return torch.tensor([fold(stream, place) for place in range(count)], dtype=torch.int64, device=device)


def _signed(value: int) -> int:
    value &= MASK
    return value - (1 << 64) if value >> 63 else value


def _mix(value: int) -> int:
    value &= MASK
    value = ((value ^ (value >> 30)) * FIRST) & MASK
    value = ((value ^ (value >> 27)) * SECOND) & MASK
    return value ^ (value >> 31)


def _mix_rows(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _signed(FIRST)
    x = (x ^ _shift(x, 27)) * _signed(SECOND)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; torch's own repeats the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
