"""Part of two_processes.py: mixed images and stored logits on two processes and on one, in float64.

Real steps are compared by test_curves.py.
"""

from dataclasses import replace

import torch
import torch.distributed as dist
from small_steps import CURRENT, LABELS, REPLAY, SMALL, WEIGHTS, gap, random
from torch import Tensor

from kaizen.cli.resolve import parse_arguments, resolve
from kaizen.model.distillers import build_distiller
from kaizen.model.learner import TERMS, Learner, Remembered, TeacherOutputs, total
from kaizen.parallel import Batch, Parallel
from kaizen.training.optim import build_optimizer, parameter_groups

OTHERS = torch.tensor([-1, -1, 3, 3, -1, 9, 0])


def step(parallel: Parallel, world: int, mixes: bool) -> tuple[Tensor, Tensor]:
    """The terms and the whole gradient of a global batch: this process' slice of it, or (world 1) all of it."""
    config = resolve(*parse_arguments([*SMALL, "--classifier.stop_gradient", "false"]))[1]
    learner = Learner(config, 10, build_distiller(config.distill)).double().train()
    optimizer = build_optimizer("sgd", parameter_groups(learner, 0.01, 0.01, 0.0), 0.9, 0.02, 0.01)
    wrapped = parallel.prepare(parallel.placed(learner), lambda: optimizer, ())[0] if world > 1 else learner
    replay = 0 if mixes else REPLAY
    labels = LABELS[: CURRENT + replay]
    labelled = int((labels >= 0).sum()) + (int((OTHERS >= 0).sum()) if mixes else 0)
    batch = Batch(CURRENT, replay, labelled, parallel.rank if world > 1 else 0, world)
    rows = batch.rows(parallel.device)
    rows = torch.arange(batch.size) if rows is None else rows
    batch = replace(batch, places=rows)
    views = [random(batch.size, 3, 8, 8, seed=view)[rows] for view in range(2)]
    old = TeacherOutputs([random(batch.size, 8, seed=2 + view)[rows] for view in range(2)], [])
    if mixes:
        remembered = Remembered(OTHERS[rows], torch.linspace(0, 1, CURRENT, dtype=torch.float64)[rows])
    else:
        remembered = Remembered(logits=random(REPLAY, 10, seed=9)[rows[rows >= CURRENT] - CURRENT])
    terms, _ = wrapped(views, labels[rows], batch, None, old, None, remembered)
    total(terms, WEIGHTS).backward()
    values = torch.stack([terms[name].detach() for name in TERMS])
    if world > 1:
        dist.all_reduce(values)
        values /= world
    gradient = torch.cat([p.grad.flatten() for p in learner.parameters() if p.grad is not None])
    parallel.accelerator.free_memory()
    return values, gradient


def remembered_gaps(parallel: Parallel) -> dict[str, list[float]]:
    """Relative gaps of terms and gradient, and the terms, by what the learner remembers."""
    found: dict[str, list[float]] = {}
    for name, mixes in (("mixed", True), ("stored", False)):
        one, two = step(parallel, 1, mixes), step(parallel, parallel.world, mixes)
        found[name] = [gap(*pair) for pair in zip(one, two, strict=True)]
        found[f"{name} terms"] = one[0].tolist()
    return found
