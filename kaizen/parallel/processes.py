"""The processes of a run, as Accelerate started them: agreement, errors, wrapping and sharding of the networks."""

import os
import resource
import socket
import time
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor, nn

from kaizen.errors import ConfigError, KaizenError, Stopped, TrainingFailed
from kaizen.parallel.accumulation import accumulation
from kaizen.parallel.collectives import Group
from kaizen.parallel.compiling import Compiler
from kaizen.parallel.device import choose_kernels
from kaizen.parallel.launch import check_launch, threads
from kaizen.parallel.layout import memory_format
from kaizen.parallel.norm import global_batch_norms
from kaizen.parallel.peers import LOOK_SECONDS, Failure, Peers, describe, group_store
from kaizen.parallel.sharding import full_tensors, is_sharded, shard_follower, shard_units

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)

# On the device, processes wait for each other during a step, at worst while one of them compiles or tunes a kernel;
# waits for data and files use the CPU group. Dead peers are noticed long before. This limit is for living processes
# that wait for different collectives: NCCL then ends them (TORCH_NCCL_ASYNC_ERROR_HANDLING is on by default).
DEVICE_TIMEOUT = timedelta(minutes=15)
SEEN_SECONDS = 90.0
"""How long a node may see an old state of a shared directory; NFS caches it for a minute by default."""


class Parallel:
    """The processes of a run, as Accelerate started them.

    Raises:
        ConfigError: the launcher started more processes than this one can see, so each would train alone, or the
            launch differs from KAIZEN_PROCESSES and KAIZEN_DEVICE.
    """

    def __init__(self, *, log_with: str | None = None, deterministic: bool = False) -> None:
        # Each process keeps its own buffers (queues, statistics) and one saves them: no need to send them every step.
        ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
        group = InitProcessGroupKwargs(timeout=DEVICE_TIMEOUT)
        self.accumulation = accumulation()
        self.accelerator = Accelerator(log_with=log_with, kwargs_handlers=[ddp, group])
        self.rank = self.accelerator.process_index
        self.world = self.accelerator.num_processes
        self.device = self.accelerator.device
        choose_kernels(self.device, deterministic)
        self.group = Group(self.rank, self.world)
        self.sharded = is_sharded(self.accelerator)
        self.is_main = self.accelerator.is_main_process
        check_launch(self.world, self.device.type, self.accelerator.mixed_precision)
        self._fresh_scaler = self.scaler_state()
        self.compiler = Compiler(self.accelerator)
        self.threads = threads()
        # Launchers set OMP_NUM_THREADS=1 on any machine; sums depend on the count, so it is set and recorded.
        torch.set_num_threads(self.threads)
        # Agreement does not use the device but a group on the CPU. Its timeout leaves one process the time to decode a
        # large data set; a dead process is noticed at once, by its closed connection, or by `peers`.
        self._cpu_group: Any = dist.new_group(backend="gloo", timeout=timedelta(hours=24)) if self.world > 1 else None
        self._step_group: Any = dist.new_group(backend="gloo", timeout=DEVICE_TIMEOUT) if self.world > 1 else None
        self._peers: Peers | None = None
        if self.world > 1:
            # A false alarm for 1x1 kernels, whose strides have no effect (pytorch issue 47163).
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
            # A unique name per start: a launcher's store may still contain the failure of an earlier start.
            store = group_store(f"kaizen/{self.broadcast(uuid.uuid4().hex)}")
            self._peers = Peers(store, self.rank, self.world, LOOK_SECONDS)

    @property
    def fuses(self) -> bool:
        """Whether optimizers use fused kernels, which do not report the steps that a gradient scaler skips."""
        return self.device.type == "cuda" and not self.sharded and self.accelerator.scaler is None

    def broadcast(self, value: T) -> T:
        """A Python value of the main process, on every process."""
        if self._cpu_group is None:
            return value
        held = [value]
        dist.broadcast_object_list(held, src=0, group=self._cpu_group)
        return held[0]

    def placed(self, network: M) -> M:
        """The network on the device; its BatchNorms normalise by the batch of all processes from now on.

        Its weights have the memory format of its images, except with FSDP2, which needs contiguous weights.
        """
        if self.world > 1:
            global_batch_norms(network, self.device)
        network = network.to(self.device)
        return network if self.sharded else network.to(memory_format=memory_format(network, self.device))

    def prepare(
        self, learner: nn.Module, build: Callable[[], torch.optim.Optimizer], block_names: Sequence[str]
    ) -> tuple[nn.Module, Any]:
        """The learner and the optimizer that `build` makes, wrapped for this launch (DDP or FSDP2).

        Args:
            block_names: classes of the encoder's blocks, which FSDP2 shards one by one.

        Raises:
            ConfigError: FSDP2 cannot shard the encoder.
        """
        if self.sharded:
            shard_units(learner, self.accelerator, block_names)
        accelerator, optimizer = self.accelerator, build()
        names = {p: name for name, p in learner.named_parameters()}
        groups = [[names[p] for p in group["params"]] for group in optimizer.param_groups]
        with self.compiler.left_out(), warnings.catch_warnings():
            # torch 2.14 has a new name for broadcast_buffers, which earlier versions do not know.
            warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
            if self.world == 1 and not self.sharded:  # without DDP, even in a distributed launch
                module = accelerator.prepare_model(learner, evaluation_mode=True)
                prepared = accelerator.prepare(optimizer)
            else:
                module, prepared = accelerator.prepare(learner, optimizer)
        # Accelerate identifies shards by their address, which is the same for all that have no row on this process.
        held = dict(learner.named_parameters())
        for group, members in zip(optimizer.param_groups, groups, strict=True):
            group["params"] = [held[name] for name in members]
        return module, prepared

    def spread(self, follower: nn.Module, block_names: Sequence[str]) -> None:
        """Shard a network that no optimizer trains as the student is sharded; without FSDP2 it stays as it is."""
        if self.sharded:
            shard_follower(follower, self.accelerator, block_names)

    def gathered(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors with their shards put together, on the main process; without FSDP2 as they are, on every process."""
        return full_tensors(tensors, keep=self.is_main or not self.sharded)

    def watch(self, write: Callable[[Failure], None], hurried: Callable[[], bool]) -> None:
        """From now on, when another process dies, record the failure and end this process.

        Args:
            hurried: whether the launcher may be about to kill this process, so that it waits for less time.
        """
        if self._peers:
            self._peers.watch(write, hurried)

    def failure(self, error: Exception) -> Failure:
        """Why the run fails with this error: a failure that any process has reported goes before its consequences."""
        return self._peers.failure(error) if self._peers else describe(error, self.rank, self.world)

    def leave(self) -> Failure | None:
        """Announce that this process ends regularly; the failure, if another process does not."""
        return self._peers.leave() if self._peers else None

    def close(self) -> None:
        """Leave the process group, at the end of a run."""
        if self.world > 1:
            self.leave()
            dist.destroy_process_group()

    def put(self, tensor: Tensor) -> Tensor:
        """Copy a CPU tensor to the device without waiting for the device."""
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def setting(self) -> dict[str, Any]:
        """Settings of the launch, which decide with the configuration whether two runs are equal to the bit."""
        return {
            "world_size": self.world,
            "threads_per_process": self.threads,
            "strategy": "fsdp2" if self.sharded else "ddp" if self.world > 1 else "none",
            "gradient_accumulation_steps": self.accumulation,
            "mixed_precision": self.accelerator.mixed_precision,
            "compiled": self.compiler.on,
            "device": self.device.type,
            "deterministic": self.device.type == "cpu" or torch.are_deterministic_algorithms_enabled(),
        }

    def peak_memory(self) -> int:
        """Peak memory of this process so far in bytes, on the GPU if there is one."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def scaler_state(self) -> dict[str, Any]:
        """State of the gradient scaler (fp16) as plain numbers; empty without one."""
        return self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else {}

    def set_scaler(self, state: Mapping[str, Any] | None) -> None:
        """Restore the gradient scaler to a saved state, or (None) to that of a new run."""
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(dict(state or self._fresh_scaler))

    def mean(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Means over processes of scalar tensors, as Python numbers: one collective, one synchronisation."""
        stacked = torch.stack([value.detach().reshape(()) for value in values.values()])
        return {k: v / self.world for k, v in zip(values, self.group.sum(stacked).tolist(), strict=True)}

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process; every process gets the same answer."""
        if self._step_group is None:
            return flag
        raised = torch.tensor(int(flag))
        dist.all_reduce(raised, op=dist.ReduceOp.MAX, group=self._step_group)
        return bool(raised)

    def every(self, value: T) -> list[T]:
        """A Python value of each process, in the order of their ranks, on every process."""
        if self._step_group is None:
            return [value]
        held: list[Any] = [None] * self.world
        dist.all_gather_object(held, value, group=self._step_group)
        return held

    def main_first(self, work: Callable[[], T]) -> T:
        """Do the work on every process: first on one per node, then, from its caches, on the rest; its result.

        Raises:
            KaizenError: the error of any process, on every process, so that none waits for one that has ended.
            Exception: any other error on the process that raised it; the others raise a TrainingFailed that quotes it.
        """
        first = self.accelerator.is_local_main_process
        result = self._agreed(work, first)
        return self._agreed(work, not first, result)

    def agree(self, what: str, digest: Callable[[], str]) -> None:
        """Check that a digest is the same on every process; `what` names what it is computed from.

        Raises:
            TrainingFailed: on every process; the message names those that differ from the main process.
        """
        if self._cpu_group is None:
            return
        digests: list[Any] = [None] * self.world
        dist.all_gather_object(digests, digest(), group=self._cpu_group)
        if differ := [rank for rank, other in enumerate(digests) if other != digests[0]]:
            raise TrainingFailed(f"{what} of process {', '.join(map(str, differ))} differs from that of process 0")

    def await_file(self, path: Path) -> None:
        """Wait until this process sees a file of the main process: network file systems show new files late.

        Raises:
            ConfigError: on every process, if any of them does not see the file in SEEN_SECONDS.
        """
        seen = path.exists()
        if not self.is_main:
            deadline = time.monotonic() + SEEN_SECONDS
            while not seen and time.monotonic() < deadline:
                time.sleep(0.2)
                # Listing a directory reads it again, while a lookup of a missing name may be answered from a cache.
                with suppress(OSError):
                    seen = path.name in os.listdir(path.parent)
        if self.any(self.rank > 0 and not seen):
            where = "" if seen else f" (process {self.rank} on {socket.gethostname()} does not)"
            problem = f"{path} is not seen by every process{where}; allowed: a directory that all nodes share"
            raise ConfigError("run.dir", problem)

    def on_main(self, work: Callable[[], T]) -> T:
        """Do work (on files) on the main process while the others wait; its result, or its error, on every process."""
        return self.broadcast(self._agreed(work, self.is_main))

    def _agreed(self, work: Callable[[], Any], mine: bool, otherwise: Any = None) -> Any:
        result: Any = otherwise
        error: BaseException | None = None
        if mine:
            try:
                result = work()
            except (Exception, Stopped) as caught:
                error = caught
        if self._cpu_group is not None:
            errors: list[Any] = [None] * self.world
            dist.all_gather_object(errors, _described(error, self.rank), group=self._cpu_group)
            if error is None and any(errors):
                kind, message = next(found for found in errors if found)
                error = kind.__new__(kind)
                BaseException.__init__(error, message)
        if error:
            raise error
        return result

    def announce(self, text: str) -> None:
        """Print on the main process."""
        if self.is_main:
            print(text, flush=True)


def _described(error: BaseException | None, rank: int) -> tuple[type[BaseException], str] | None:
    """Type and message of an error, to be raised on the other processes."""
    if error is None:
        return None
    if isinstance(error, KaizenError | Stopped):
        return type(error), str(error)
    return TrainingFailed, f"process {rank}: {type(error).__name__}: {error}"
