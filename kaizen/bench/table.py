"""Formats measurements as lines for the user."""

from collections.abc import Iterator
from typing import Any

from kaizen.bench.spread import Spread

PRINTED = 10
"""Number of kernels of a profile that are printed; the JSON file has more."""


def lines(found: dict[str, Any]) -> Iterator[str]:
    """The numbers of `measure`: each a median, with its 5 % and 95 % quantiles over the repetitions in brackets."""
    about, batch, step, flops = found["environment"], found["batch"], found["step"], found["flops"]
    yield row("recipe", f"{found['recipe']}, {found['data']}")
    device = about["device_name"] or about["device"]
    yield row("device", f"{device}, processes {about['world_size']}, threads {about['threads_per_process']} each")
    teacher = "a teacher" if found["teacher"] else "no teacher"
    images = f"{batch['current']} images of {batch['image_size']} px and {batch['replay']} of the replay memory"
    yield row("step", f"{images}, in task {found['task']}, with {teacher}")
    rate = f"{flops['per_second']['median'] / 1e12:.4g} TFLOP/s"
    yield row("images/s", f"{shown(step['images_per_second'])}, replay not counted; {rate}")
    yield row("first step", f"{step['first_seconds']:.3g} seconds, with allocation and compilation")
    yield row("seconds per step", shown(step["seconds"]))
    whole = sum(part["median"] for part in found["parts"].values())
    for name, part in found["parts"].items():
        yield row(f"  {name}", f"{shown(part, 1000)} ms, {part['median'] / whole:.1%}")
    yield row("GFLOP per step", f"{flops['step'] / 1e9:.2f}, views not counted")
    yield row("GFLOP/s", shown(flops["per_second"], 1e-9))
    yield row("peak GFLOP/s", f"{shown(flops['peak_per_second'], 1e-9)}, a matrix product in the same precision")
    yield row("share of the peak", shown(flops["share_of_peak"], 100) + " %")
    yield row("peak memory", shown(found["memory"]["peak_bytes"], 2**-20) + " MiB, in an ordinary step")
    traffic = found["communication"]
    kinds = [f"{kind} {count}{_messages(traffic, kind)}" for kind, count in traffic["bytes"].items()]
    yield row("traffic per step", ", ".join([f"{traffic['total']} bytes per process", *kinds]))
    plain = found["plain"]
    if "missing" in plain:
        yield row("plain loop", plain["missing"])
    else:
        yield row("plain loop", f"{shown(plain['seconds'])} seconds per step, without data, views and log")
        yield row("ours / plain", shown(plain["ratio"]) + ", 90 % interval")
    graph = found["graph"]
    if graph["recorded"]:
        yield row("steps", f"recorded; ordinary ones {shown(graph['seconds'])} seconds")
        yield row("ordinary / recorded", shown(graph["ratio"]) + ", 90 % interval")
    else:
        yield row("steps", f"ordinary steps: {graph['why']}")
    if profiled := found.get("profile"):
        yield from _profile_lines(profiled)
    if saved := found.get("checkpoints"):
        yield row("checkpoint", f"{saved['bytes'] / 2**20:.1f} MiB every {saved['every_steps']} steps")
        yield row("with / without", shown(saved["ratio"]) + ", 90 % interval")
    for name, views in found["views"].items():
        by = "on one thread"
        if "workers" in views:
            by = f"from their files, by {views['workers']['median']:.0f} workers"
        yield row("views/s, ours", f"{shown(views['ours_images_per_second'])} two-view images {by}")
        yield row(f"views/s, {name}", shown(views["theirs_images_per_second"]))
        yield row(f"ours / {name}", shown(views["ratio"]) + ", 90 % interval")


def _profile_lines(found: dict[str, Any]) -> Iterator[str]:
    if found["idle_share"] is not None:
        yield row("idle", f"{found['idle_share']:.1%} of the time between the first and the last kernel")
    yield row("kernels per step", f"{found['kernels']:.0f}; those with most time:")
    for top in found["top"][:PRINTED]:
        yield f"  {top['share']:6.1%} {top['calls']:7.1f} x {1e6 * top['seconds']:8.1f} us  {top['name'][:80]}"


def _messages(traffic: dict[str, Any], kind: str) -> str:
    count = traffic["messages"].get(kind)
    return f" ({count} message{'s' * (count != 1)})" if count else ""


def flat_lines(found: dict[str, Any]) -> Iterator[str]:
    """The numbers of `summary`."""
    yield row("recipe", f"{found['recipe']}, {found['data']}")
    length = f"{found['images']} images" if found["images"] else f"{found['epochs']} epochs"
    rows = zip(found["step_seconds"], found["peak_bytes"], found["evaluation_share"], strict=True)
    for task, (seconds, peak, share) in enumerate(rows):
        rest = f"peak memory {peak / 2**20:.0f} MiB, evaluation {share:.1%} of {length}"
        yield row(f"task {task}", f"{shown(seconds)} seconds per step, {rest}")
    last = found["tasks"] - 1
    yield row("in the run", f"{found['last_over_first_in_the_run']:.3f} = task {last} / task 1, seconds per step")
    yield row("in turns", f"{shown(found['last_over_first'])}, 90 % interval, both tasks restarted")


def start_lines(found: dict[str, Any]) -> Iterator[str]:
    """The numbers of `measure_start`."""
    yield row("recipe", f"{found['recipe']}, {found['data']}")
    yield row("command", found["command"])
    yield row("first step", f"{shown(found['first_step'])} seconds from the command to the end of the first step")
    yield row("  of the program", f"{shown(found['program'])} seconds, the rest is the launcher's")
    yield row("--help", f"{shown(found['help'])} seconds, without a launcher")
    yield row("a wrong key", f"{shown(found['wrong_key'])} seconds, likewise")


def row(name: str, value: str) -> str:
    """A line with a name."""
    return f"{name:19} {value}"


def shown(of: Spread, scale: float = 1.0) -> str:
    """A median, with its quantiles in brackets."""
    median, low, high = (of[key] * scale for key in ("median", "low", "high"))
    return f"{median:.4g} [{low:.4g}, {high:.4g}]"
