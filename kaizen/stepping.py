"""The steps of one task: draw images, make views, train the student, advance what follows it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from kaizen.config import Config
from kaizen.data.feed import Feed, Load
from kaizen.data.load import Stream
from kaizen.data.random import Purpose, fold, hash_rows
from kaizen.data.replay import Memory, choose
from kaizen.data.sampler import Sampler
from kaizen.data.views import augment
from kaizen.evaluation.features import extract_features
from kaizen.learner import TERMS, total
from kaizen.losses import promote
from kaizen.methods.base import Outputs
from kaizen.networks.heads import forget_running_statistics, forward_all
from kaizen.optim import momentum_tau
from kaizen.parallel import Batch, Parallel, memory_format
from kaizen.plan import Plan
from kaizen.state import TaskState


@dataclass(frozen=True)
class _Passed:
    """What one part of a step's batch gave: its part of the four terms, outputs without graph, and its place."""

    terms: dict[str, Tensor]
    outputs: Outputs
    batch: Batch


def _joined(outputs: Sequence[Outputs]) -> Outputs:
    """Outputs of a step's whole batch from those of its parts."""
    if len(outputs) == 1:
        return outputs[0]
    projections = [torch.cat(view) for view in zip(*(part.projections for part in outputs), strict=True)]
    twin = [torch.cat(view) for view in zip(*(part.twin for part in outputs), strict=True)]
    return Outputs(projections, twin, torch.cat([part.labels for part in outputs]))


class Stepper:
    """Trains a task's state, a step at a time; a step is a function of its number and of that state.

    Args:
        weights: weights of the four terms.
    """

    def __init__(
        self,
        config: Config,
        stream: Stream,
        plan: Plan,
        state: TaskState,
        weights: dict[str, float],
        parallel: Parallel,
    ) -> None:
        self.config, self.source, self.plan, self.weights = config, stream.source, plan, weights
        self.labels = stream.labels
        self.state, self.parallel = state, parallel
        self._layout = memory_format(state.learner.encoder, parallel.device)
        self.mean, self.std = (moment.to(parallel.device) for moment in stream.moments)
        _, channels, height, width = self.source.train.images.shape
        self.image = channels, height, width
        self.memory = state.memory(self.image)
        self.ids = stream.tasks[state.task].train
        self._projections: list[Tensor] = []
        sampler = Sampler(
            config.run.seed,
            state.task,
            self.ids,
            stream.labels[self.ids],
            config.optim.batch,
            self.memory.sample_ids,
            self.memory.labels,
            config.replay.batch,
            group=parallel.group,
            parts=parallel.accumulation,
        )
        self.feed = Feed(
            sampler,
            self.source.train.images,
            self.labels,
            self.memory,
            steps=plan.tasks[state.task].steps,
            pinned=parallel.device.type == "cuda",
        )

    def step(self, step: int) -> dict[str, Tensor]:
        """One optimiser step, number `step` of the task; returns the four terms, still on the device."""
        state, method = self.state, self.state.learner.method
        self._projections = []  # makes room for this step's
        epoch, place = divmod(step, self.feed.sampler.steps_per_epoch)
        if place == 0:
            key = fold(self.config.run.seed, Purpose.METHOD, state.task, -1, epoch)
            method.begin_epoch(key, self._project_task, self.parallel.group)
        loads = self.feed.take(step)
        whole = Batch.joined([load.batch for load in loads])
        passed = [self._pass(load, whole) for load in loads]
        batch, outputs = Batch.joined([part.batch for part in passed]), _joined([part.outputs for part in passed])
        self._projections = outputs.projections[:2]
        method.after_backward(batch)
        for group in state.optimizer.param_groups:
            base = group["base_lr"]
            group["lr"] = self.plan.rate(state.task, step, base) if group["scheduled"] else base
        state.optimizer.step()
        state.optimizer.zero_grad()
        # A step that a gradient scaler skipped advances nothing.
        if not self.parallel.accelerator.optimizer_step_was_skipped:
            if state.twin is not None:
                settings = self.config.method
                steps = self.plan.tasks[state.task].steps
                state.twin.update(momentum_tau(step, steps, settings.tau_base, settings.tau_final))
            with torch.no_grad():
                method.after_step(outputs, batch)
        return {name: torch.stack([part.terms[name] for part in passed]).sum() for name in TERMS}

    def projection_std(self) -> float:
        """How far the last step's projections are from collapse; all processes call it, and get the same.

        The standard deviation over the global batch of L2-normalised projections, mean over dimensions and the first
        two views, in units of 1 / sqrt(d): 1 where they spread over the whole sphere, 0 where all are one
        (Chen & He 2021, arXiv 2011.10566, section 4.1).
        """
        group, z = self.parallel.group, normalize(promote(torch.stack(self._projections)), dim=2)
        rows = group.sum(torch.tensor(float(z.shape[1]), device=z.device))
        mean = group.sum(z.sum(dim=1, keepdim=True)) / rows
        variance = group.sum((z - mean).square().sum(dim=1)) / rows
        return float(variance.sqrt().mean() * z.shape[2] ** 0.5)

    def _pass(self, load: Load, whole: Batch) -> _Passed:
        """Forward and backward over one part of a step's batch; gradients add up over the parts."""
        state, method, accelerator = self.state, self.state.learner.method, self.parallel.accelerator
        images, labels, keys = (self.parallel.put(tensor) for tensor in (load.images, load.labels, load.keys))
        assert load.batch.places is not None
        batch = replace(load.batch, places=self.parallel.put(load.batch.places))
        views = self._views(images, keys)
        with accelerator.accumulate(state.wrapped):
            with torch.no_grad(), accelerator.autocast():
                twin = state.twin([views[v] for v in method.twin_views]) if state.twin is not None else []
                old = state.teacher(views[:2]) if state.teacher is not None else None
            with accelerator.autocast():
                terms, projections = state.wrapped(views, labels, batch, twin, old)
            # Means over the step's images (or those that count) from those of its parts.
            part = dict.fromkeys(TERMS, batch.size / whole.size)
            part["ssl"] = method.counted(batch) / method.counted(whole)
            part["classifier"] = batch.labelled / max(whole.labelled, 1)
            terms = {name: term * part[name] for name, term in terms.items()}
            # Accelerate takes a mean over the parts.
            accelerator.backward(total(terms, self.weights) * self.parallel.accumulation)
        held = {name: term.detach() for name, term in terms.items()}
        return _Passed(held, Outputs(projections, twin, labels), batch)

    def remember(self) -> Callable[[], Memory]:
        """Choose what the replay memory holds after the task, on all processes; returns what makes it.

        Raises:
            TrainingFailed: names processes that chose otherwise.
        """
        images, moments = self.source.train.images, (self.mean, self.std)

        def features(ids: np.ndarray) -> np.ndarray:
            encoder = self.state.copied("encoder")["encoder"]
            return extract_features(encoder, [(images, ids)], moments, self.parallel).cpu().numpy()

        choice = choose(
            self.memory,
            self.labels,
            self.ids,
            task=self.state.task,
            seed=self.config.run.seed,
            policy=self.config.replay.policy,
            budget=self.config.replay_budget(),
            features=features,
        )
        self.parallel.agree("the choice for the replay memory", choice.digest)
        return lambda: choice.applied(self.memory, images, self.labels, self.state.task)

    def _views(self, images: Tensor, keys: Tensor) -> list[Tensor]:
        size = self.source.image_size
        views = [
            augment(images, keys, number, view, view.size or size, self.mean, self.std)
            for number, view in enumerate(self.config.views)
        ]
        return [view.contiguous(memory_format=self._layout) for view in views]

    @torch.no_grad()
    def _project_task(self) -> list[Tensor]:
        """Projections (images, d) of all of the task's images, a tensor for each of the first two views.

        Batches normalise by themselves, as in training, and leave no trace in the student's statistics.
        """
        group, networks = self.parallel.group, self.state.copied("encoder", "projector")
        forget_running_statistics(networks)
        ids = torch.from_numpy(self.ids)
        keys = hash_rows(fold(self.config.run.seed, Purpose.METHOD, self.state.task), ids)
        parts: list[list[Tensor]] = []
        # Pieces of about a batch, none of them a single image, which has no statistics.
        for rows in torch.arange(len(ids)).tensor_split(max(1, len(ids) // self.feed.sampler.batch)):
            mine = rows[group.shard(len(rows))]
            images = self.parallel.put(torch.from_numpy(self.source.train.images[ids[mine].numpy()]))
            views = self._views(images, self.parallel.put(keys[mine]))[:2]
            projections = forward_all(networks["projector"], forward_all(networks["encoder"], views))
            parts.append([group.gather(z, group.sizes(len(rows))) for z in projections])
        return [torch.cat(view) for view in zip(*parts, strict=True)]
