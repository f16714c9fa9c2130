"""Everything that knows about processes: who we are, what the others hold, whether they agree.

Losses here follow one rule: each process returns its *share*, a scalar whose mean over processes is the loss of the
global batch. DDP and FSDP average gradients over processes, so the mean of the shares' gradients is the gradient of the
global loss, whatever the number of processes and however uneven their slices.
"""

import os
import resource
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor, nn

from kaizen.errors import ConfigError, KaizenError, TrainingFailed
from kaizen.peers import Failure, Peers, describe, group_store, look_seconds

T = TypeVar("T")

# What processes wait for each other on the device is a step, and at worst that one of them compiles or tunes a kernel:
# waits for data and files are on the CPU's group. Peers that died are noticed long before; this is for those that live
# and wait for different things. NCCL then ends the process (TORCH_NCCL_ASYNC_ERROR_HANDLING is on by default).
DEVICE_TIMEOUT = timedelta(minutes=15)


def shard(count: int, rank: int, world: int) -> range:
    """Positions of `count` items that belong to a rank: consecutive, disjoint, sizes differing by at most one."""
    return range(count * rank // world, count * (rank + 1) // world)


class _AllGather(torch.autograd.Function):
    """Concatenate (n_r, ...) over processes; backward sums the gradients of all processes for the own rows."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, sizes: tuple[int, ...], rank: int) -> Tensor:
        ctx.sizes, ctx.rank = sizes, rank
        largest = max(sizes)
        padded = local.new_zeros((largest, *local.shape[1:]))
        padded[: local.shape[0]] = local
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        # The gathered tensor was used by every process, so its gradient is the sum of theirs.
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        start = sum(ctx.sizes[: ctx.rank])
        return total[start : start + ctx.sizes[ctx.rank]], None, None


@dataclass(frozen=True)
class Batch:
    """Where this process' images stand in one step's global batch, [current images ; replay images].

    current, replay: sizes of the global parts; labelled: images of the global batch whose label is available;
    epoch: of the task; key: random key of the step; places: int64 (n,), the index of each of this process' images among
    the images of the task, -1 for replay.
    """

    current: int
    replay: int
    labelled: int
    rank: int = 0
    world: int = 1
    epoch: int = 0
    key: int = 0
    places: Tensor | None = None

    @property
    def size(self) -> int:
        """Images in the global batch."""
        return self.current + self.replay

    def slices(self, rank: int) -> tuple[range, range]:
        """Positions in the global batch of a rank's images: its slice of the current part and of the replay part."""
        replay = shard(self.replay, rank, self.world)
        return shard(self.current, rank, self.world), range(self.current + replay.start, self.current + replay.stop)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Images of each rank."""
        return tuple(sum(map(len, self.slices(rank))) for rank in range(self.world))

    def rows(self, device: torch.device) -> Tensor | None:
        """Global positions of the local images, int64; None for one process, which holds all of them in order."""
        if self.world == 1:
            return None
        # Made on the device: a copy would make the host wait for it.
        return torch.cat([torch.arange(part.start, part.stop, device=device) for part in self.slices(self.rank)])

    def gather(self, local: Tensor) -> Tensor:
        """Rows (n_local, ...) of all processes in global order (size, ...), with gradient."""
        if self.world == 1:
            return local
        parts = _AllGather.apply(local, self.sizes, self.rank).split(self.sizes)
        current = [len(self.slices(rank)[0]) for rank in range(self.world)]
        heads = [part[:count] for part, count in zip(parts, current, strict=True)]
        return torch.cat(heads + [part[count:] for part, count in zip(parts, current, strict=True)])

    def share(self, local_mean: Tensor) -> Tensor:
        """This process' share of a global mean over images, from the mean over its own images."""
        return local_mean * (self.sizes[self.rank] * self.world / self.size)

    def share_labelled(self, local_sum: Tensor) -> Tensor:
        """This process' share of a global mean over labelled images, from a sum over its own; 0 if none is labelled."""
        return local_sum * (self.world / max(self.labelled, 1))


class Parallel:
    """The processes of a run, as Accelerate started them.

    Raises:
        ConfigError: the launcher started more processes than this one can see, so each would train alone.
    """

    def __init__(self, *, log_with: str | None = None) -> None:
        # Buffers (queues, statistics) are each process' own and saved by one: sending them at every step is waste.
        ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
        group = InitProcessGroupKwargs(timeout=DEVICE_TIMEOUT)
        self.accelerator = Accelerator(log_with=log_with, kwargs_handlers=[ddp, group])
        self.rank = self.accelerator.process_index
        self.world = self.accelerator.num_processes
        self.device = self.accelerator.device
        self.is_main = self.accelerator.is_main_process
        expected = int(os.environ.get("WORLD_SIZE", "1"))
        if expected != self.world:
            raise ConfigError(
                "launcher",
                f"started {expected} processes, but Accelerate sees {self.world}, so each would train alone; "
                "on CPU set ACCELERATE_USE_CPU=1 and launch with --multi_gpu --num_processes N",
            )
        if self.accelerator.gradient_accumulation_steps != 1:
            raise ConfigError("gradient_accumulation_steps", "only 1 is supported")
        if self.accelerator.mixed_precision == "fp16" and self.device.type == "cpu":
            raise ConfigError("mixed_precision", "is fp16, which does not train on a CPU; allowed there: no, bf16")
        self._fresh_scaler = self.scaler_state()
        self.threads = _threads()
        # Launchers set OMP_NUM_THREADS=1 whatever the machine; sums depend on the count, so it is set and recorded.
        torch.set_num_threads(self.threads)
        # Agreement runs beside the device, over a group on the CPU. Its timeout leaves one process the time
        # to decode a large data set; a process that died is noticed at once, by its closed connection, or by `peers`.
        self._cpu_group: Any = dist.new_group(backend="gloo", timeout=timedelta(hours=24)) if self.world > 1 else None
        self._peers: Peers | None = None
        if self.world > 1:
            # A name of this start alone: a launcher's store may still hold what an earlier start has told.
            store = group_store(f"kaizen/{self.broadcast(uuid.uuid4().hex)}")
            self._peers = Peers(store, self.rank, self.world, look_seconds())

    def broadcast(self, value: T) -> T:
        """A Python value of the main process, on every process."""
        if self._cpu_group is None:
            return value
        held = [value]
        dist.broadcast_object_list(held, src=0, group=self._cpu_group)
        return held[0]

    def prepare(self, learner: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        """The learner and optimizer, wrapped for this launch (DDP for several processes)."""
        with warnings.catch_warnings():
            # torch 2.14 wants another name for broadcast_buffers, which earlier versions do not know.
            warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
            return self.accelerator.prepare(learner, optimizer)

    def release(self) -> None:
        """Let go of what was prepared, at the end of a task."""
        self.accelerator.free_memory()

    def watch(self, write: Callable[[Failure], None], hurried: Callable[[], bool]) -> None:
        """End this process from now on, once it has written the failure down, when another one is gone.

        Args:
            hurried: whether a launcher may be about to kill this process, which therefore waits for less long.
        """
        if self._peers:
            self._peers.watch(write, hurried)

    def failure(self, error: Exception) -> Failure:
        """Why the run fails with this error: what any process has told of itself goes before what follows from it."""
        return self._peers.failure(error) if self._peers else describe(error, self.rank, self.world)

    def leave(self) -> Failure | None:
        """Tell the others that this process ends as it should; what failed, if one of them does not."""
        return self._peers.leave() if self._peers else None

    def close(self) -> None:
        """Leave the group of processes, at the end of a run."""
        if self.world > 1:
            self.leave()
            dist.destroy_process_group()

    def put(self, tensor: Tensor) -> Tensor:
        """A CPU tensor on the device, without waiting for what the device is doing."""
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def setting(self) -> dict[str, Any]:
        """What the launch decides and what, beside the configuration, makes two runs equal bit for bit."""
        return {
            "world_size": self.world,
            "threads_per_process": self.threads,
            "mixed_precision": self.accelerator.mixed_precision,
            "device": self.device.type,
        }

    def peak_memory(self) -> int:
        """Most bytes this process has used so far, of the GPU's memory where there is one."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def scaler_state(self) -> dict[str, Any]:
        """State of the gradient scaler (fp16), plain numbers; empty where there is none."""
        return self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else {}

    def set_scaler(self, state: Mapping[str, Any] | None) -> None:
        """Put the gradient scaler back to a saved state, or (None) to that of a fresh run."""
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(dict(state or self._fresh_scaler))

    def mean(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Means over processes of scalar tensors, as Python numbers: one collective, one synchronisation."""
        stacked = torch.stack([value.detach().reshape(()) for value in values.values()])
        if self.world > 1:
            dist.all_reduce(stacked)
        return {name: value / self.world for name, value in zip(values, stacked.tolist(), strict=True)}

    def gather(self, local: Tensor, sizes: Sequence[int]) -> Tensor:
        """Rows (n_r, ...) of all processes, one process after the other; sizes: n_r of each."""
        return local if self.world == 1 else _AllGather.apply(local, tuple(sizes), self.rank)

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any process; every process gets the same answer."""
        if self._cpu_group is None:
            return flag
        raised = torch.tensor(int(flag))
        dist.all_reduce(raised, op=dist.ReduceOp.MAX, group=self._cpu_group)
        return bool(raised)

    def main_first(self, work: Callable[[], T]) -> T:
        """The work's result on every process, done first by one process a node and then, from its caches, by the rest.

        Raises:
            KaizenError: on every process, what any process raised, so that none waits for one that is gone.
            Exception: any other kind on the process that raised it; the others raise a TrainingFailed that quotes it.
        """
        first = self.accelerator.is_local_main_process
        result = self._agreed(work, first)
        return self._agreed(work, not first, result)

    def on_main(self, work: Callable[[], None]) -> None:
        """Work for one process of the run (files), with the others waiting; what it raises is raised on all."""
        self._agreed(work, self.is_main)

    def _agreed(self, work: Callable[[], Any], mine: bool, otherwise: Any = None) -> Any:
        result, error = otherwise, None
        if mine:
            try:
                result = work()
            except Exception as caught:
                error = caught
        if self._cpu_group is not None:
            errors: list[Any] = [None] * self.world
            dist.all_gather_object(errors, _described(error, self.rank), group=self._cpu_group)
            if error is None and any(errors):
                kind, message = next(found for found in errors if found)
                error = kind.__new__(kind)
                Exception.__init__(error, message)
        if error:
            raise error
        return result

    def announce(self, text: str) -> None:
        """Print on one process."""
        if self.is_main:
            print(text, flush=True)


def _described(error: Exception | None, rank: int) -> tuple[type[KaizenError], str] | None:
    """An error as it is told to the other processes."""
    if error is None:
        return None
    if isinstance(error, KaizenError):
        return type(error), str(error)
    return TrainingFailed, f"process {rank}: {type(error).__name__}: {error}"


def usable_cores() -> int:
    """CPU cores that this process may use; not every system can tell, then all there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _threads() -> int:
    """CPU threads of this process: KAIZEN_THREADS, or its share of the cores that the node's processes may use."""
    asked = os.environ.get("KAIZEN_THREADS") or "0"
    if not asked.isdecimal():
        raise ConfigError("KAIZEN_THREADS", f"is {asked!r}; allowed: a number of threads, 0 for a share of the cores")
    return int(asked) or max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
