"""Run by tests/parallel/test_parallel.py on two processes: comparisons with one process, then a whole small run.

usage: two_processes.py OUT RUN_ARGUMENTS...; rank r writes its results to OUT/rank-r.json.
"""

import copy
import json
import sys
import threading
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from evaluation_agrees import evaluation_agrees
from remembered import remembered_gaps
from runs import COMBINED, in_epoch
from small_steps import CURRENT, LABELS, REPLAY, SMALL, WEIGHTS, gap, keys_of, random
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

import kaizen.parallel.processes
from kaizen.cli.resolve import parse_arguments, resolve
from kaizen.commands.train import main
from kaizen.config.schema import Config
from kaizen.errors import ConfigError, Stopped, TrainingFailed
from kaizen.model.distillers import build_distiller
from kaizen.model.learner import TERMS, Learner, total
from kaizen.model.methods import REGISTRY
from kaizen.model.methods.base import Outputs, TeacherOutputs
from kaizen.model.networks.heads import forward_all
from kaizen.parallel import ONE_PROCESS, Batch, Parallel
from kaizen.parallel.collectives import gather_alike
from kaizen.training.measures import projection_rankme, projection_std
from kaizen.training.optim import build_optimizer, parameter_groups

STEPS = 5
"""Enough to fill the queues and to wrap around."""
NAMES = ("terms", "gradient")


def gather_checks(parallel: Parallel) -> dict[str, bool]:
    """Uneven rows arrive in global order, and the gradient is the sum over processes."""
    batch = Batch(CURRENT, REPLAY, 7, parallel.rank, parallel.world)
    rows = batch.rows(parallel.device)
    whole = random(CURRENT + REPLAY, 3, seed=1)
    local = whole[rows].clone().requires_grad_()
    gathered = batch.gather(local)
    weights = random(CURRENT + REPLAY, 3, seed=2)
    (gathered * weights * (parallel.rank + 1)).sum().backward()
    return {
        "gather value": torch.equal(gathered.detach(), whole),
        "gather gradient": torch.allclose(local.grad, 3 * weights[rows]),
        "sizes": batch.sizes == (5, 6),
    }


class Training:
    """Steps on fixed global batches: on the local slice of each, or (world 1) on the whole batch."""

    def __init__(self, config: Config, parallel: Parallel, world: int, dtype: torch.dtype = torch.float64) -> None:
        learner = Learner(config, 10, build_distiller(config.distill)).to(dtype).train()
        if world > 1:
            learner = parallel.placed(learner)
        learner.method.begin_task(20)
        learner.method.begin_epoch(3, lambda: [random(20, 8, seed=90 + view) for view in range(2)])
        self.learner = learner
        optimizer = build_optimizer("lars", parameter_groups(learner, 0.01, 0.01, 1e-4), 0.9, 0.02, 0.01)
        self.dtype, self.dim = dtype, config.method.projector_out
        self.rank, self.world, self.parallel = parallel.rank if world > 1 else 0, world, parallel
        self.wrapped, self.optimizer = (
            parallel.prepare(learner, lambda: optimizer, ()) if world > 1 else (learner, optimizer)
        )

    def step(self, number: int) -> tuple[Tensor, Tensor]:
        """Values of the terms, and the whole gradient, for the global batch."""
        size = CURRENT + REPLAY
        draws = [random(size, 3, 8, 8, seed=100 * number + i) for i in range(2)]
        draws += [random(size, self.dim, seed=100 * number + i) for i in range(2, 6)]
        draws += [random(size, 10, seed=100 * number + i) for i in range(6, 8)]
        features = self.learner.encoder.feature_dim
        draws += [random(size, features, seed=100 * number + i) for i in range(8, 10)]
        draws += [random(size, 3, 4, 4, seed=100 * number + i) for i in range(10, 12)]
        batch = Batch(CURRENT, REPLAY, int((LABELS >= 0).sum()), self.rank, self.world, key=number)
        rows = batch.rows(self.parallel.device)
        rows = torch.arange(size) if rows is None else rows
        places = torch.cat([torch.arange(CURRENT) * 2, torch.full((REPLAY,), -1)])
        batch = in_epoch(replace(batch, places=places[rows]), self.learner.method, number)
        mine = [draw[rows].to(self.dtype) for draw in draws]
        method = self.learner.method
        crops = mine[10:] if method.most_views > 2 else []
        views, twin = mine[:2] + crops, [method.twin_head(mine[2 + v]).detach() for v in method.twin_views]
        prototypes = random(*method.prototypes().shape, seed=77).to(self.dtype) if method.has_prototypes else None
        old = TeacherOutputs(mine[4:6], mine[6:8], prototypes, mine[8:10])
        terms, projections = self.wrapped(views, LABELS[rows], batch, twin, old)
        total(terms, WEIGHTS).backward()
        method.after_backward(batch)
        values = torch.stack([terms[name].detach() for name in TERMS])
        if self.world > 1:
            dist.all_reduce(values)
            values /= self.world
        gradient = torch.cat([p.grad.flatten() for p in self.learner.parameters() if p.grad is not None])
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.learner.method.after_step(Outputs(projections, twin, LABELS[rows], old), batch)
        self.learner.method.count_step(batch.size)
        return values, gradient

    def state(self) -> Tensor:
        return torch.cat([t.detach().flatten().double() for t in self.learner.state_dict().values()])


def training_gaps(parallel: Parallel, *method: str) -> dict[str, float]:
    """DDP on slices compared with the whole batch: relative gaps of terms, gradient and all trained tensors."""
    config = resolve(*parse_arguments([*SMALL, *method]))[1]
    alone, together = Training(config, parallel, 1), Training(config, parallel, parallel.world)
    found = dict.fromkeys(NAMES, 0.0)
    for number in range(STEPS):
        for name, one, two in zip(NAMES, alone.step(number), together.step(number), strict=True):
            found[name] = max(found[name], gap(one, two))
        if not number:
            found |= {"first terms": found["terms"], "first gradient": found["gradient"]}
    single = [Training(config, parallel, world, torch.float32).step(0) for world in (1, parallel.world)]
    found |= {f"float32 {name}": gap(*pair) for name, pair in zip(NAMES, zip(*single, strict=True), strict=True)}
    found["state"] = gap(alone.state(), together.state())
    features = alone.learner.encoder(random(6, 3, 8, 8, seed=9))
    assert features.std(dim=0).mean() > 0.01, "identical features prove nothing"
    parallel.accelerator.free_memory()
    return found


def norm_checks(parallel: Parallel) -> dict[str, bool]:
    """BatchNorms over uneven slices give the results of torch's and timm's BatchNorm on the whole batch."""
    whole = [random(7, 3, 6, 6, seed=view).requires_grad_() for view in range(2)]
    rows = slice(0, 3) if parallel.is_main else slice(3, 7)
    mine = [view.detach()[rows].requires_grad_() for view in whole]
    torch.manual_seed(0)
    # No layer after the first BatchNorm changes its gradient to the memory layout of the preceding convolution.
    layers = nn.Conv2d(3, 16, 3, bias=False), BatchNormAct2d(16), nn.Flatten(), nn.Linear(16 * 16, 5)
    alone = nn.Sequential(*layers, nn.BatchNorm1d(5, momentum=None)).double()
    together = parallel.placed(copy.deepcopy(alone))
    found, expected = forward_all(together, mine), forward_all(alone, whole)
    weights = [random(7, 5, seed=8 + view) for view in range(2)]
    sum((y * w[rows]).sum() for y, w in zip(found, weights, strict=True)).backward()
    sum((y * w).sum() for y, w in zip(expected, weights, strict=True)).backward()
    sums = [p.grad.clone() for p in together.parameters()]
    for gradient in sums:
        dist.all_reduce(gradient)
    statistics = [[held for m in net for held in m.buffers()] for net in (together, alone)]
    return {
        "norm values": all(map(torch.allclose, found, [y[rows] for y in expected])),
        "norm gradients": all(map(torch.allclose, [x.grad for x in mine], [x.grad[rows] for x in whole])),
        "norm sums": all(map(torch.allclose, sums, [p.grad for p in alone.parameters()])),
        "norm statistics": all(map(torch.allclose, *statistics)),
    }


def measures_agree(parallel: Parallel) -> bool:
    """Spread and rank of the projections are those of the global batch."""
    batch = Batch(CURRENT, REPLAY, 0, parallel.rank, parallel.world)
    whole = [random(CURRENT + REPLAY, 5, seed=view) for view in range(2)]
    mine = [view[batch.rows(parallel.device)] for view in whole]
    ranks = projection_rankme(mine, parallel.group, batch.sizes), projection_rankme(whole, ONE_PROCESS, [len(whole[0])])
    spreads = projection_std(mine, parallel.group), projection_std(whole, ONE_PROCESS)
    return abs(ranks[0] - ranks[1]) + abs(spreads[0] - spreads[1]) < 1e-9


def messages_arrive(parallel: Parallel) -> bool:
    """Rows, sums and maxima of both processes, for any size, type and memory layout."""
    right = True
    for size in (0, 1, 999):
        for dtype in (torch.float64, torch.bfloat16, torch.int64, torch.bool):
            both = [random(size, 2, seed=size + rank).mul(9).to(dtype).t() for rank in range(2)]
            mine = both[parallel.rank]
            right &= torch.equal(gather_alike(mine), torch.stack(both))
            if dtype in (torch.float64, torch.int64):
                right &= torch.equal(parallel.group.sum(mine), both[0] + both[1])
                right &= torch.equal(parallel.group.max(mine), torch.maximum(*both))
    return bool(right and parallel.group.sum(torch.tensor(float(parallel.rank + 1))) == 3)


def errors_reach_all(parallel: Parallel) -> dict[str, bool]:
    """An error of one process is raised on both, so that neither waits for the other."""

    def broken() -> None:
        raise ConfigError("data.source", "is broken")

    def full() -> None:
        raise OSError("no space left")

    def asked() -> None:
        raise Stopped("file stop")

    caught = []
    for work in (broken, full, asked):
        try:
            parallel.on_main(work)
        except (ConfigError, TrainingFailed, OSError, Stopped) as error:
            caught.append(str(error))
    try:
        parallel.main_first(broken)
    except ConfigError as error:
        caught.append(str(error))
    differing = ""
    try:
        parallel.agree("the replay memory", lambda: str(parallel.rank))
    except TrainingFailed as error:
        differing = str(error)
    last = "no space left" if parallel.is_main else "process 0: OSError: no space left"
    return {
        "errors": caught == ["data.source: is broken", last, "file stop", "data.source: is broken"],
        "agree": differing == "the replay memory of process 1 differs from that of process 0",
        "any": parallel.any(parallel.rank == 1) and not parallel.any(False),
        "every": parallel.every(f"from {parallel.rank}") == ["from 0", "from 1"],
        "broadcast": parallel.broadcast(f"from {parallel.rank}") == "from 0",
        "mean": parallel.mean({"a": torch.tensor(float(parallel.rank))}) == {"a": 0.5},
    }


def late_files(parallel: Parallel, out: Path) -> bool:
    """A process waits for a file of the main process; a file that never appears is an error on both."""
    late = out / "late"
    if parallel.is_main:
        threading.Timer(0.5, late.touch).start()
    parallel.await_file(late)
    seen = parallel.is_main or late.exists()
    kaizen.parallel.processes.SEEN_SECONDS = 0.5
    try:
        parallel.await_file(out / "never")
    except ConfigError as error:
        named = "process 1 on" in str(error)
        return seen and "is not seen by every process" in str(error) and named == (parallel.rank == 1)
    return False


EVERY = {name: ("--method.name", name) for name in REGISTRY} | COMBINED
SHALLOW = ("--encoder.name", f"{Path(__file__).parents[1]}/examples/own_encoder.py:Tiny")
"""An encoder of two layers; a ResNet is compared with two of the methods."""


def keys_in(name: str) -> tuple[str, ...]:
    return (*keys_of(EVERY[name]), *(() if name in ("simclr", "mocov2plus") else SHALLOW))


if __name__ == "__main__":
    out, arguments = Path(sys.argv[1]), sys.argv[2:]
    parallel = Parallel()
    found = {
        "rank": parallel.rank,
        **gather_checks(parallel),
        **errors_reach_all(parallel),
        **norm_checks(parallel),
        "messages": messages_arrive(parallel),
        "measures": measures_agree(parallel),
        "late files": late_files(parallel, out),
        "evaluation": evaluation_agrees(parallel, arguments, out / "evaluated"),
        "methods": {name: training_gaps(parallel, *keys_in(name)) for name in EVERY},
    }
    found |= remembered_gaps(parallel)
    found["exit code"] = main(arguments)
    (out / f"rank-{parallel.rank}.json").write_text(json.dumps(found))
