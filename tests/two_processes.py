"""Run by tests/test_parallel.py on two processes: checks against one process, then a whole small run.

usage: two_processes.py OUT RUN_ARGUMENTS...; rank r writes OUT/rank-r.json, a dictionary of what it found.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from kaizen.cli import parse_arguments, resolve
from kaizen.commands.train import main
from kaizen.distill import build_distiller
from kaizen.errors import ConfigError
from kaizen.learner import TERMS, Learner, TeacherOutputs, total
from kaizen.methods.base import Outputs
from kaizen.parallel import Batch, Parallel

SMALL = ["digits", "--encoder.width", "4", "--encoder.norm", "group", "--classifier.hidden", "[12]"]
SMALL += ["--method.projector_hidden", "16", "--method.projector_out", "8", "--distill.hidden", "16"]
CURRENT, REPLAY = 7, 4
LABELS = torch.tensor([0, -1, -1, -1, 4, 2, 2, -1, 1, 5, 5])
WEIGHTS = {"ssl": 1.0, "distill": 0.7, "classifier": 1.3, "classifier_distill": 2.0}


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gather_checks(parallel: Parallel) -> dict[str, bool]:
    """Uneven rows arrive in global order, and the gradient is the sum over processes."""
    batch = Batch(CURRENT, REPLAY, 7, parallel.rank, parallel.world)
    whole = random(CURRENT + REPLAY, 3, seed=1)
    local = whole[batch.rows].clone().requires_grad_()
    gathered = batch.gather(local)
    weights = random(CURRENT + REPLAY, 3, seed=2)
    (gathered * weights * (parallel.rank + 1)).sum().backward()
    return {
        "gather value": torch.equal(gathered.detach(), whole),
        "gather gradient": torch.allclose(local.grad, 3 * weights[batch.rows]),
        "sizes": batch.sizes == (5, 6),
    }


def learner_gap(parallel: Parallel, *method: str) -> dict[str, float]:
    """Two steps on slices against the whole: relative gaps of terms, of the whole gradient, of the queues."""
    config = resolve(*parse_arguments([*SMALL, *method]))[1]
    views = [random(CURRENT + REPLAY, 3, 8, 8, seed=v) for v in (3, 4)]
    twin = [random(CURRENT + REPLAY, 8, seed=v) for v in (5, 6)]
    old = [random(CURRENT + REPLAY, 8, seed=v) for v in (7, 8)], [random(CURRENT + REPLAY, 10, seed=v) for v in (9, 10)]
    found = []
    for world in (1, parallel.world):
        learner = Learner(config, 10, build_distiller(config.distill)).double()
        learner.distill_predictor.eval()  # its BatchNorm sees a process' own rows in this version
        batch = Batch(CURRENT, REPLAY, int((LABELS >= 0).sum()), parallel.rank if world > 1 else 0, world)
        rows = torch.arange(CURRENT + REPLAY) if batch.rows is None else batch.rows
        mine = [[tensor[rows] for tensor in part] for part in (views, twin, *old)]
        for _ in range(2):
            learner.zero_grad()
            terms, z = learner(mine[0], LABELS[rows], batch, mine[1], TeacherOutputs(mine[2], mine[3]))
            total(terms, WEIGHTS).backward()
            learner.method.after_step(Outputs(z, mine[1]), batch)
        values = torch.stack([terms[name].detach() for name in TERMS])
        gradient = torch.cat([p.grad.flatten() for p in learner.parameters() if p.grad is not None])
        state = torch.cat([b.flatten().double() for b in learner.method.buffers()] or [torch.zeros(1).double()])
        if world > 1:
            for tensor in (values, gradient):
                dist.all_reduce(tensor)
                tensor /= world
        found.append((values, gradient, state))
    return {
        name: float((a - b).norm() / (a.norm() + 1e-300))
        for name, a, b in zip(("terms", "gradient", "state"), *found, strict=True)
    }


def errors_reach_all(parallel: Parallel) -> dict[str, bool]:
    """What one process raises is raised on both, so that none waits for the other."""

    def broken() -> None:
        raise ConfigError("data.source", "is broken")

    caught = []
    for work in (lambda: parallel.main_first(broken), lambda: parallel.on_main(broken)):
        try:
            work()
        except ConfigError as error:
            caught.append(str(error))
    return {
        "errors": caught == ["data.source: is broken"] * 2,
        "any": parallel.any(parallel.rank == 1) and not parallel.any(False),
        "broadcast": parallel.broadcast(f"from {parallel.rank}") == "from 0",
        "mean": parallel.mean({"a": torch.tensor(float(parallel.rank))}) == {"a": 0.5},
    }


if __name__ == "__main__":
    out = Path(sys.argv[1])
    parallel = Parallel()
    found = {
        "rank": parallel.rank,
        **gather_checks(parallel),
        **errors_reach_all(parallel),
        "simclr": learner_gap(parallel, "--method.name", "simclr", "--method.temperature", "0.2"),
        "mocov2plus": learner_gap(parallel, "--method.name", "mocov2plus", "--method.queue_size", "9"),
    }
    found["exit code"] = main(sys.argv[2:])
    (out / f"rank-{parallel.rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()
