"""Recorded steps: one CUDA graph for each phase of a task, replayed, so that the device never waits for Python.

While a step trains, the next one's images are sent and its views are made. Results are those of ordinary steps: the
same kernels on the same numbers.
"""

from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from kaizen.config.schema import Config
from kaizen.data.feed import HostBatch
from kaizen.data.packing import unpack
from kaizen.errors import ConfigError
from kaizen.parallel import Branches, CudaLanes, Parallel
from kaizen.training.device_step import DeviceStep, Done, Inputs

WARM_UP = 3
"""Ordinary steps before one is recorded: optimizers make their state, libraries choose their kernels."""


def why_ordinary(config: Config, parallel: Parallel) -> str | None:
    """Why this launch does not record its steps, or None."""
    compiler = parallel.compiler
    reasons = {
        "run.graph is off": config.run.graph == "off",
        f"the device is a {parallel.device.type.upper()}": parallel.device.type != "cuda",
        "the GPU is not made by NVIDIA": torch.version.cuda is None,
        f"{parallel.world} processes": parallel.world > 1,
        "FSDP": parallel.sharded,
        f"gradient accumulation over {parallel.accumulation} parts": parallel.accumulation > 1,
        "the gradient scaler of fp16, which decides on the host": bool(parallel.scaler_state()),
        "the networks are compiled (run.graph must records them all the same)": compiler.on
        and config.run.graph == "auto",
        f"torch.compile's mode {compiler.mode}, which records graphs of its own": compiler.records,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def check_recording(config: Config, parallel: Parallel) -> str | None:
    """A line for the user where a GPU's steps are not recorded, or None.

    Raises:
        ConfigError: run.graph is must, and they cannot be.
    """
    reason = why_ordinary(config, parallel)
    if reason and config.run.graph == "must":
        problem = f"is must, but steps cannot be recorded: {reason}"
        raise ConfigError("run.graph", f"{problem}; allowed: auto, off, or one CUDA process in precision no or bf16")
    if reason is None or parallel.device.type != "cuda" or config.run.graph == "off":
        return None
    return f"steps               ordinary, not recorded as a CUDA graph: {reason}"


@lru_cache
def streams(device: torch.device) -> tuple[CudaLanes, Branches]:
    """Streams of recorded steps, made once, as libraries keep a workspace for each stream that they have seen."""
    return CudaLanes(device), Branches(device, 2)


class Recorder:
    """Takes a task's steps: the first of each phase as ordinary ones, the rest by replaying a recorded one.

    Args:
        lanes: records, and runs independent work in parallel.
        branches: for networks of a recorded step that are independent of each other; None: one after the other.
    """

    def __init__(self, device_step: DeviceStep, lanes: Any, branches: Branches | None = None) -> None:
        self.device_step, self.lanes, self.branches = device_step, lanes, branches
        self._phase: Hashable = None
        self._ordinary = 0
        self._training: Any = None
        self._preparing: Any = None
        self._prepared: int | None = None
        self._ready: list[Tensor] = []
        self._held: list[Tensor] = []

    @property
    def refused(self) -> str | None:
        """Why steps are ordinary, if a recording has failed in this process."""
        return self.lanes.refused

    @property
    def recorded(self) -> bool:
        """Whether the latest step was a replayed one."""
        return self._training is not None

    def step(
        self,
        step: int,
        host_batches: Sequence[HostBatch],
        phase: Hashable,
        following: Callable[[int], Sequence[HostBatch]] | None,
    ) -> Done:
        """Step number `step` of the task.

        Args:
            following: gives the host batches of the next step by its number; None after the last one.

        Raises:
            ConfigError: run.graph is must, and the step cannot be recorded.
        """
        if phase != self._phase:
            self._free_training()
            self._phase, self._ordinary = phase, 0
        if self.refused is not None or self._ordinary < WARM_UP:
            self._ordinary += 1
            return self.lanes.aside(lambda: self.device_step.step(host_batches, phase, self.branches))
        if self._training is None and not self._try_to_record(host_batches[0], phase):
            return self.step(step, host_batches, phase, following)
        if self._prepared != step:
            self._prepare(step, host_batches[0])
        with self.lanes.taking():
            torch._foreach_copy_(self._held, self._ready)
        self._training.replay()
        if following is not None:
            self._prepare(step + 1, following(step + 1)[0])
        return self._training.result

    def close(self) -> None:
        """Give back the memory of what was recorded."""
        self._free_training()
        if self._preparing is not None:
            self._preparing.free()
            self._preparing = self._prepared = None
            self._held, self._ready = [], []

    def _try_to_record(self, host_batch: HostBatch, phase: Hashable) -> bool:
        """Record both halves of the work on the device, if that can be done."""
        try:
            if self._preparing is None:
                self._record_preparing(host_batch)
            self._record_training(host_batch, phase)
        except RuntimeError as error:
            self.lanes.refused = _cause(error)
            self.close()
            # Gradients of a step that was recorded and not run.
            self.device_step.state.optimizer.zero_grad()
            if self.device_step.config.run.graph == "must":
                problem = f"is must, but a step of this encoder cannot be recorded ({self.refused})"
                raise ConfigError("run.graph", f"{problem}; allowed: auto, off") from error
            parallel = self.device_step.parallel
            parallel.announce(f"steps               no longer recorded as a CUDA graph: {self.refused}")
            return False
        return True

    def _record_preparing(self, host_batch: HostBatch) -> None:
        device = self.device_step.parallel.device
        self._packed = host_batch.packed.to(device)
        held = host_batch.images
        self._images = None if held is None else tuple(images.to(device) for images in held)
        self._preparing = self.lanes.record_preparing(
            lambda: self.device_step.inputs(self._packed, self._images, host_batch.count)
        )
        # The next step's inputs are made while this one's are used, so these are copies.
        self._ready = [self._packed, *self._preparing.result.views]
        self._held = [tensor.clone() for tensor in self._ready]

    def _record_training(self, host_batch: HostBatch, phase: Hashable) -> None:
        step = self.device_step
        packed, *views = self._held
        inputs = Inputs(views, unpack(packed, host_batch.count, len(step.state.optimizer.param_groups)))

        def work() -> Done:
            passed = step.forward_backward(inputs, host_batch.batch, host_batch.batch, phase, self.branches)
            return step.update([passed], inputs.data, host_batch.numbers)

        self._training = self.lanes.record_training(work)

    def _prepare(self, step: int, host_batch: HostBatch) -> None:
        """Send a step's numbers (and images) and make its views, in parallel with the step that trains."""
        with self.lanes.preparing():
            self._packed.copy_(host_batch.packed, non_blocking=True)
            if self._images is not None and host_batch.images is not None:
                for images, new in zip(self._images, host_batch.images, strict=True):
                    images.copy_(new, non_blocking=True)
            self._preparing.replay()
        self._prepared = step

    def _free_training(self) -> None:
        if self._training is not None:
            self._training.free()
            self._training = None


def _cause(error: BaseException) -> str:
    """The first error of a chain, on one line; the later ones only say that the recording ended early."""
    while error.__context__ is not None:
        error = error.__context__
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
