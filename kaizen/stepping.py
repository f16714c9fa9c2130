"""The steps of one task: draw images, make views, train the student, advance what follows it."""

import copy
from dataclasses import replace

import torch
from torch import Tensor

from kaizen.config import Config
from kaizen.data.load import Stream
from kaizen.data.random import Purpose, fold, hash_rows
from kaizen.data.replay import Memory, remember
from kaizen.data.sampler import Draw, Sampler
from kaizen.data.views import augment
from kaizen.evaluation.features import extract_features
from kaizen.learner import total
from kaizen.methods.base import Outputs
from kaizen.networks.heads import forget_running_statistics, forward_all
from kaizen.optim import momentum_tau
from kaizen.parallel import Parallel
from kaizen.plan import Plan
from kaizen.state import TaskState


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
        self.mean, self.std = (moment.to(parallel.device) for moment in stream.moments)
        self.memory = state.memory(self.source.train.images)
        self.ids = stream.tasks[state.task].train
        self.sampler = Sampler(
            config.run.seed,
            state.task,
            self.ids,
            stream.labels[self.ids],
            config.optim.batch,
            self.memory.sample_ids,
            self.memory.labels,
            config.replay.batch,
            rank=parallel.rank,
            world=parallel.world,
        )

    def step(self, step: int) -> dict[str, Tensor]:
        """One optimiser step, number `step` of the task; returns the four terms, still on the device."""
        state, method = self.state, self.state.learner.method
        epoch, place = divmod(step, self.sampler.steps_per_epoch)
        if place == 0:
            method.begin_epoch(fold(self.config.run.seed, Purpose.METHOD, state.task, -1, epoch), self._project_task)
        draw = self.sampler.draw(step)
        images, labels = self._gather(draw)
        places = self.parallel.put(draw.batch.places) if draw.batch.places is not None else None
        batch = replace(draw.batch, places=places)
        views = self._views(images, self.parallel.put(draw.keys))
        with torch.no_grad(), self.parallel.accelerator.autocast():
            twin = state.twin([views[v] for v in method.twin_views]) if state.twin is not None else []
            old = state.teacher(views[:2]) if state.teacher is not None else None
        terms, projections = state.wrapped(views, labels, batch, twin, old)
        self.parallel.accelerator.backward(total(terms, self.weights))
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
                method.after_step(Outputs(projections, twin, labels), batch)
        return terms

    def remember(self) -> Memory:
        """The replay memory after the task: what it held and a choice of the task's images."""
        images, encoder = self.source.train.images, self.state.learner.encoder
        return remember(
            self.memory,
            images,
            self.labels,
            self.ids,
            task=self.state.task,
            seed=self.config.run.seed,
            policy=self.config.replay.policy,
            budget=self.config.replay_budget(),
            features=lambda ids: extract_features(encoder, images, ids, self.mean, self.std),
        )

    def _gather(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Images uint8 (n, 3, h, w) and labels (n,) of a draw, on the device."""
        ids = draw.sample_ids.numpy()
        images = torch.cat([torch.from_numpy(self.source.train.images[ids]), self.memory.images[draw.memory_rows]])
        labels = torch.cat([torch.from_numpy(self.labels[ids]), self.memory.labels[draw.memory_rows]])
        return self.parallel.put(images), self.parallel.put(labels)

    def _views(self, images: Tensor, keys: Tensor) -> list[Tensor]:
        size = self.source.image_size
        return [
            augment(images, keys, number, view, view.size or size, self.mean, self.std)
            for number, view in enumerate(self.config.views)
        ]

    @torch.no_grad()
    def _project_task(self) -> list[Tensor]:
        """Projections (images, d) of all of the task's images, a tensor for each of the first two views.

        Batches normalise by themselves, as in training, and leave no trace in the student's statistics.
        """
        learner = self.state.learner
        networks = torch.nn.ModuleList([copy.deepcopy(learner.encoder), copy.deepcopy(learner.projector)])
        forget_running_statistics(networks)
        ids = torch.from_numpy(self.ids)
        keys = hash_rows(fold(self.config.run.seed, Purpose.METHOD, self.state.task), ids)
        parts: list[list[Tensor]] = []
        # Pieces of about a batch, none of them a single image, which has no statistics.
        for rows in torch.arange(len(ids)).tensor_split(max(1, len(ids) // self.sampler.batch)):
            images = self.parallel.put(torch.from_numpy(self.source.train.images[ids[rows].numpy()]))
            views = self._views(images, self.parallel.put(keys[rows]))[:2]
            parts.append(forward_all(networks[1], forward_all(networks[0], views)))
        return [torch.cat(view) for view in zip(*parts, strict=True)]
