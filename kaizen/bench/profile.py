"""The device's time by kernel, over a few steps of the kind that training uses."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from kaizen.bench.session import Session
from kaizen.parallel import synchronize

PROFILED, TOP = 10, 40
"""Number of profiled steps, and of kernels in the JSON file."""


def profile(session: Session, steps: int) -> dict[str, Any]:
    """Profile of the device in a step; on a CPU, of operations instead of kernels, and idle_share is None.

    idle_share: fraction of the time from the first kernel to the last in which none runs; kernels: number per step;
    top: those with most time, by name: share of the time of all kernels, calls per step, and seconds per call.
    """
    device = session.parallel.device
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    synchronize(device)
    with torch.profiler.profile(activities=activities, acc_events=True) as profiler:
        for _ in range(steps):
            session.step()
        synchronize(device)
    if not on_gpu:
        found = [(e.key, e.count, e.self_cpu_time_total * 1e-6) for e in profiler.key_averages()]
        return {"idle_share": None, **_shares(found, steps)}
    spans = []
    by_name: dict[str, list[float]] = defaultdict(list)
    for event in profiler.profiler.kineto_results.events():
        if event.device_type() == DeviceType.CUDA and event.duration_ns() > 0 and not event.is_user_annotation():
            spans.append((event.start_ns(), event.start_ns() + event.duration_ns()))
            by_name[event.name()].append(event.duration_ns() * 1e-9)
    found = [(name, len(seconds), sum(seconds)) for name, seconds in by_name.items()]
    return {"idle_share": idle_share(spans), **_shares(found, steps)}


def idle_share(spans: Iterable[tuple[float, float]]) -> float:
    """Fraction of the time from the first start to the last end that no span covers."""
    busy, first, last = 0.0, None, 0.0
    for begin, end in sorted(spans):
        if first is None:
            first = last = begin
        busy += max(0.0, end - max(begin, last))
        last = max(last, end)
    return 1 - busy / (last - first) if first is not None and last > first else 0.0


def _shares(found: list[tuple[str, int, float]], steps: int) -> dict[str, Any]:
    """Kernels per step and the kernels with most time, from (name, calls, seconds) over all steps."""
    whole = sum(seconds for _, _, seconds in found) or 1.0
    top = sorted(found, key=lambda one: -one[2])[:TOP]
    return {
        "kernels": sum(calls for _, calls, _ in found) / steps,
        "top": [
            {"name": name, "share": seconds / whole, "calls": calls / steps, "seconds": seconds / calls}
            for name, calls, seconds in top
        ],
    }
