"""Run by test_remembered_parallel.py on two processes: terms and gradients of two processes and of one, in float64.

usage: remembered.py OUT; rank r writes its relative gaps, by what the learner remembers, to OUT/rank-r.json.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from two_processes import SMALL, WEIGHTS, gap, random

from kaizen.cli.resolve import parse_arguments, resolve
from kaizen.model.distillers import build_distiller
from kaizen.model.learner import TERMS, Learner, Remembered, TeacherOutputs, total
from kaizen.parallel import Batch, Parallel
from kaizen.training.optim import build_optimizer, parameter_groups

CURRENT, REPLAY = 7, 4
LABELS = torch.tensor([0, -1, -1, -1, 4, 2, 2, -1, 1, 5, 5])
OTHERS = torch.tensor([-1, -1, 3, 3, -1, 9, 0])


def step(parallel: Parallel, world: int, mixes: bool) -> tuple[Tensor, Tensor]:
    """The terms and the whole gradient of a global batch: this process' slice of it, or (world 1) all of it."""
    arguments = [*SMALL, "--classifier.stop_gradient", "false"]
    config = resolve(*parse_arguments(arguments))[1]
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


if __name__ == "__main__":
    parallel = Parallel()
    torch.set_num_threads(1)
    found: dict[str, list[float]] = {}
    for name, mixes in (("mixed", True), ("stored", False)):
        one, two = step(parallel, 1, mixes), step(parallel, parallel.world, mixes)
        found[name] = [gap(*pair) for pair in zip(one, two, strict=True)]
        found[f"{name} terms"] = one[0].tolist()
    (Path(sys.argv[1]) / f"rank-{parallel.rank}.json").write_text(json.dumps(found))
    parallel.close()
