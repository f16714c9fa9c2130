"""Medians with their spread, and ratios of interleaved measurements with an interval."""

from collections.abc import Callable, Sequence

import numpy as np

RESAMPLES = 2000
WARM_UP = 3

Spread = dict[str, float]
"""median, low, high and count."""


def spread(samples: Sequence[float]) -> Spread:
    """Median of the samples with their 5 % and 95 % quantiles."""
    low, median, high = np.quantile(np.asarray(samples, dtype=np.float64), (0.05, 0.5, 0.95))
    return {"median": float(median), "low": float(low), "high": float(high), "count": len(samples)}


def inverse(of: Spread, factor: float) -> Spread:
    """The spread of factor / x from that of x > 0, such as images per second from seconds."""
    ends = {"median": of["median"], "low": of["high"], "high": of["low"]}
    return {name: factor / value for name, value in ends.items()} | {"count": of["count"]}


def ratio(first: Sequence[float], second: Sequence[float]) -> Spread:
    """Median of first / second with a 90 % interval; pairs were measured together, so that drift cancels.

    The interval is the bootstrap's (Efron 1979): quantiles of the medians of resampled pairs, from a fixed seed.
    """
    quotients = np.asarray(first, dtype=np.float64) / np.asarray(second, dtype=np.float64)
    rows = np.random.default_rng(0).integers(len(quotients), size=(RESAMPLES, len(quotients)))
    low, high = np.quantile(np.median(quotients[rows], axis=1), (0.05, 0.95))
    return {"median": float(np.median(quotients)), "low": float(low), "high": float(high), "count": len(quotients)}


def interleaved(loops: Sequence[Callable[[int], float]], turns: int, block: int) -> list[list[float]]:
    """Seconds per step of each loop, `turns` times `block` steps each; the loops alternate in going first."""
    for loop in loops:
        loop(WARM_UP)
    taken: list[list[float]] = [[] for _ in loops]
    for turn in range(turns):
        order = range(len(loops))
        for index in order if turn % 2 else reversed(order):
            taken[index].append(loops[index](block))
    return taken
