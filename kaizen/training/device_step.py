"""The device half of a training step: views, networks, losses, backward, optimizer and the updates after it.

It reads tensors only: no value decides here, no shape changes, and whatever differs from step to step comes from the
buffer of `kaizen.data.packing`. So a step of one phase (`Method.phase`) is one sequence of operations on the same
tensors, which a CUDA graph records once and replays. Whatever depends on Python numbers belongs to the host
half, `Stepper`.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kaizen.data.feed import HostBatch
from kaizen.data.mixing import mix
from kaizen.data.packing import StepData, unpack
from kaizen.data.views import augment
from kaizen.model.learner import TERMS, Remembered, own_labels, total
from kaizen.model.methods.base import Outputs, TeacherOutputs
from kaizen.parallel import Batch, Branches, memory_format, products_of_losses
from kaizen.training.measures import global_norm, gradients
from kaizen.training.optim import set_rates
from kaizen.training.state import TaskState


@dataclass(frozen=True)
class Inputs:
    """Inputs of one part of a step, on the device; a recorded step keeps the same tensors."""

    views: list[Tensor]
    data: StepData


@dataclass(frozen=True)
class Passed:
    """Results of one part of a step's batch: its part of the four terms, outputs without graph, and its place."""

    terms: dict[str, Tensor]
    outputs: Outputs
    batch: Batch


@dataclass(frozen=True)
class Done:
    """Results of a step: the four terms, projections (n, d) of the first two views, and the norm of the gradient.

    The next recorded step overwrites those of a recorded step.
    """

    terms: dict[str, Tensor]
    projections: list[Tensor]
    gradient_norm: Tensor
    """L2 norm () over everything trained, as the optimizer took it."""


@dataclass(frozen=True)
class Recall:
    """How a task's steps use the memory, beyond its images and labels.

    mixes: replay images are mixed into the current ones; logits: those that the memory holds, float32 (m, classes) on
    the device, or None; first: the row of the memory's first image in the task's store.
    """

    mixes: bool = False
    logits: Tensor | None = None
    first: int = 0

    def remembered(self, data: StepData, replay: int) -> Remembered | None:
        """What the learner gets from the memory in a step whose last `replay` rows are replay images."""
        if self.mixes:
            return Remembered(labels=data.labels.chunk(2)[1], shares=data.weights.chunk(2)[0])
        if self.logits is None:
            return None
        return Remembered(logits=self.logits.index_select(0, data.rows[len(data.rows) - replay :] - self.first))


class DeviceStep:
    """Steps of one task on the device.

    Args:
        moments: mean and std (3,) of the data set.
        size: side of the images in pixels.
        store: the task's and the memory's images on the device, or None where each step brings its own.
        recall: how steps use the memory.
    """

    def __init__(
        self,
        state: TaskState,
        moments: tuple[Tensor, Tensor],
        size: int,
        store: Tensor | None,
        recall: Recall,
    ) -> None:
        self.config, self.state, self.weights, self.parallel = state.config, state, state.weights, state.parallel
        self.mean, self.std = (moment.to(self.parallel.device) for moment in moments)
        self.size, self.store, self.recall = size, store, recall
        self._layout = memory_format(state.learner.encoder, self.parallel.device)

    def step(self, host_batches: Sequence[HostBatch], phase: Hashable, branches: Branches | None = None) -> Done:
        """An ordinary step: one optimizer step on a batch that comes in these parts."""
        whole = Batch.joined([host_batch.batch for host_batch in host_batches])
        passed = []
        for host_batch in host_batches:
            inputs = self.inputs_of(host_batch)
            passed.append(self.forward_backward(inputs, host_batch.batch, whole, phase, branches))
        return self.update(passed, inputs.data, host_batches[0].numbers)

    def inputs_of(self, host_batch: HostBatch) -> Inputs:
        """Views and numbers of a host batch."""
        images = None if host_batch.images is None else tuple(map(self.parallel.put, host_batch.images))
        return self.inputs(self.parallel.put(host_batch.packed), images, host_batch.count)

    def inputs(self, packed: Tensor, images: tuple[Tensor, ...] | None, count: int) -> Inputs:
        """Views and numbers from what the host sent: the packed buffer, and images unless the store has them."""
        data = unpack(packed, count, len(self.state.optimizer.param_groups))
        if images is None:
            assert self.store is not None
            images = (self.store.index_select(0, data.rows),)
        views = self.views(images, data.keys)
        return Inputs([mix(view, data.weights) for view in views] if self.recall.mixes else views, data)

    def views(self, images: tuple[Tensor, ...], keys: Tensor) -> list[Tensor]:
        """Views (n, 3, s, s) of images drawn by their keys int64 (n,); for images see `HostBatch`."""
        cropped = self.config.data.store == "files"
        views = [
            augment(
                images[number if cropped else 0],
                keys,
                number,
                view,
                view.size or self.size,
                self.mean,
                self.std,
                cropped=cropped,
            )
            for number, view in enumerate(self.config.views)
        ]
        return [view.contiguous(memory_format=self._layout) for view in views]

    def forward_backward(
        self, inputs: Inputs, batch: Batch, whole: Batch, phase: Hashable, branches: Branches | None = None
    ) -> Passed:
        """Forward and backward over one part of a step's batch; gradients add up over the parts.

        Args:
            branches: twin and teacher run there, in parallel with the student; None: before it.
        """
        state, accelerator = self.state, self.parallel.accelerator
        views, data = inputs.views, inputs.data
        n = len(views[0])  # half the rows of the data where images are mixed
        labels, remembered = data.labels[:n], self.recall.remembered(data, len(batch.slices(batch.rank)[1]))
        parts = self._weights_of_part(batch, whole)
        batch = replace(
            batch,
            phase=phase,
            key=data.key,
            places=data.places[:n],
            keys=data.keys[:n],
            label_share=data.label_share,
            numbers=data.method,
        )
        products = products_of_losses(self.parallel.device, accelerator.mixed_precision)
        with accelerator.accumulate(state.wrapped), products:
            twin, old = self._targets(views, branches)
            join = branches.join if branches is not None else None
            with accelerator.autocast():
                terms, projections = state.wrapped(views, labels, batch, twin, old, join, remembered)
            terms = {name: term if parts is None else term * parts[name] for name, term in terms.items()}
            # Accelerate takes a mean over the parts.
            accelerator.backward(total(terms, self.weights) * self.parallel.accumulation)
        held = {name: term.detach() for name, term in terms.items()}
        return Passed(held, Outputs(projections, twin, own_labels(labels, remembered), old), batch)

    def _targets(self, views: list[Tensor], branches: Branches | None) -> tuple[list[Tensor], TeacherOutputs | None]:
        """Outputs of twin and teacher for the views."""
        state, twin_views = self.state, self.state.learner.method.twin_views

        def twin() -> list[Tensor]:
            with torch.no_grad(), self.parallel.accelerator.autocast():
                return state.twin([views[v] for v in twin_views]) if state.twin is not None else []

        def old() -> TeacherOutputs | None:
            with torch.no_grad(), self.parallel.accelerator.autocast():
                return state.teacher(views[:2]) if state.teacher is not None else None

        if branches is None:
            return twin(), old()
        return branches.run(0, twin), branches.run(1, old)

    def _weights_of_part(self, batch: Batch, whole: Batch) -> dict[str, float] | None:
        """Means over the step's images (or those that count) from those of a part; None for the only part."""
        if not whole.parts:
            return None
        method, parts = self.state.learner.method, dict.fromkeys(TERMS, batch.size / whole.size)
        parts["ssl"] = method.counted(batch) / max(method.counted(whole), 1)
        parts["classifier"] = batch.labelled / max(whole.labelled, 1)
        if self.recall.logits is not None:
            parts["classifier_distill"] = batch.replay / max(whole.replay, 1)
        return parts

    def update(self, passed: Sequence[Passed], data: StepData, rates: Sequence[float]) -> Done:
        """The optimizer's step and the updates after it.

        Args:
            rates: rates of the optimizer's groups for one that takes Python numbers.
        """
        state, method = self.state, self.state.learner.method
        batch, outputs = Batch.joined([part.batch for part in passed]), _joined([part.outputs for part in passed])
        method.after_backward(batch)
        set_rates(state.optimizer, data.rates, rates)
        # A gradient scaler's own step would do this next; without one it does nothing.
        self.parallel.accelerator.unscale_gradients(state.optimizer)
        gradient_norm = global_norm(gradients(state.optimizer))
        state.optimizer.step()
        state.optimizer.zero_grad()
        # A step that a gradient scaler skipped advances nothing.
        if not self.skipped:
            if state.twin is not None:
                state.twin.update(data.follow)
            with torch.no_grad():
                method.after_step(outputs, batch)
        terms = passed[0].terms
        if len(passed) > 1:
            terms = {name: torch.stack([part.terms[name] for part in passed]).sum() for name in TERMS}
        return Done(terms, outputs.projections[:2], gradient_norm)

    @property
    def skipped(self) -> bool:
        """Whether a gradient scaler skipped the last step."""
        return self.parallel.accelerator.optimizer_step_was_skipped


def _joined(outputs: Sequence[Outputs]) -> Outputs:
    """Outputs of a step's whole batch from those of its parts."""
    if len(outputs) == 1:
        return outputs[0]
    projections = [torch.cat(view) for view in zip(*(part.projections for part in outputs), strict=True)]
    twin = [torch.cat(view) for view in zip(*(part.twin for part in outputs), strict=True)]
    labels, held = torch.cat([part.labels for part in outputs]), [part.old for part in outputs if part.old is not None]
    old = None
    if held:
        seen = [torch.cat(view) for view in zip(*(one.projections for one in held), strict=True)]
        logits = [torch.cat(view) for view in zip(*(one.logits for one in held), strict=True)]
        features = [torch.cat(view) for view in zip(*(one.features for one in held), strict=True)]
        old = TeacherOutputs(seen, logits, held[0].prototypes, features)
    return Outputs(projections, twin, labels, old)
