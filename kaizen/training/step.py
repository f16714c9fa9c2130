"""The host half of a step: chooses images and numbers. `DeviceStep` is the device half, which computes."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from kaizen.data.feed import Feed, resident
from kaizen.data.load import Stream
from kaizen.data.mixing import Mixing
from kaizen.data.random import Purpose, fold, hash_rows
from kaizen.data.replay import Memory, choose
from kaizen.data.sampler import Sampler
from kaizen.evaluation.features import extract_features, extract_logits
from kaizen.losses import promote
from kaizen.model.networks.heads import forget_running_statistics, forward_all
from kaizen.parallel import Batch
from kaizen.training.device_step import DeviceStep, Done, Recall
from kaizen.training.optim import momentum_tau
from kaizen.training.plan import Plan
from kaizen.training.recording import Recorder, streams, why_ordinary
from kaizen.training.state import TaskState


class Stepper:
    """Trains a task's state step by step; a step is a function of its number and of that state.

    Args:
        recording: whether to record steps (see `kaizen.training.recording`); False leaves all steps ordinary.
    """

    def __init__(self, stream: Stream, plan: Plan, state: TaskState, *, recording: bool = True) -> None:
        config, parallel = state.config, state.parallel
        self.config, self.source, self.plan, self.labels = config, stream.source, plan, stream.labels
        self.state, self.parallel = state, parallel
        _, channels, height, width = self.source.train.images.shape
        self.image = channels, height, width
        self.memory = state.memory(self.image)
        self.ids = stream.tasks[state.task].train
        images = self.source.train.images
        store = resident(images, self.ids, self.memory, parallel.device)
        replay, logits = config.replay, self.memory.logits
        mixing = Mixing(replay.mix_alpha, replay.mix_share == "image")
        recall = Recall(
            mixes=replay.mix == "lump" and len(self.memory) > 0,
            logits=None if logits is None else parallel.put(logits.clone()),
            first=len(self.ids),
        )
        self.device_step = DeviceStep(state, stream.moments, self.source.image_size, store, recall)
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
            mix=mixing if recall.mixes else None,
        )
        self.feed = Feed(
            sampler,
            images if store is None else None,
            self.labels,
            self.memory,
            steps=plan.tasks[state.task].steps,
            numbers=self._numbers,
            pinned=parallel.device.type == "cuda",
        )
        ordinary = not recording or why_ordinary(config, parallel)
        self.recorder = None if ordinary else Recorder(self.device_step, *streams(parallel.device))
        self._done: Done | None = None

    def step(self, step: int) -> dict[str, Tensor]:
        """One optimizer step, number `step` of the task; returns the four terms, on the device until the next step."""
        method = self.state.learner.method
        self._done = None  # makes room for this step's
        epoch, place = divmod(step, self.feed.sampler.steps_per_epoch)
        if place == 0:
            key = fold(self.config.run.seed, Purpose.METHOD, self.state.task, -1, epoch)
            method.begin_epoch(key, self._project_task, self.parallel.group)
        host_batches, phase = self.feed.take(step), method.phase(epoch)
        if self.recorder is not None:
            following = self.feed.take if step + 1 < self.plan.tasks[self.state.task].steps else None
            self._done = self.recorder.step(step, host_batches, phase, following)
        else:
            self._done = self.device_step.step(host_batches, phase)
        if not self.device_step.skipped:
            method.count_step(sum(part.batch.size for part in host_batches))
        return self._done.terms

    def close(self) -> None:
        """Free what only steps need, at a task's end."""
        self.feed.close()
        self._done = None
        if self.recorder is not None:
            self.recorder.close()
        self.device_step.store = None

    def _numbers(self, step: int, batch: Batch) -> list[float]:
        """Numbers that the device reads for a part of a step's batch, in the order of `kaizen.data.packing`."""
        task, settings, method = self.state.task, self.config.method, self.state.learner.method
        rates = [
            self.plan.rate(task, step, group["base_lr"]) if group["scheduled"] else group["base_lr"]
            for group in self.state.optimizer.param_groups
        ]
        follow = 0.0
        if self.state.twin is not None:
            follow = 1.0 - momentum_tau(step, self.plan.tasks[task].steps, settings.tau_base, settings.tau_final)
        share = batch.world / max(batch.labelled, 1)
        return [*rates, follow, share, *method.schedule(step // self.feed.sampler.steps_per_epoch)]

    def projection_std(self) -> float:
        """Spread of the last step's projections, small if they collapse; all processes call it and get the same.

        The standard deviation over the global batch of L2-normalised projections, mean over dimensions and the first
        two views, in units of 1 / sqrt(d): 1 for projections spread over the whole sphere, 0 if all are equal
        (Chen & He 2021, arXiv 2011.10566, section 4.1).
        """
        assert self._done is not None
        group, z = self.parallel.group, normalize(promote(torch.stack(self._done.projections)), dim=2)
        rows = group.sum(torch.tensor(float(z.shape[1]), device=z.device))
        mean = group.sum(z.sum(dim=1, keepdim=True)) / rows
        variance = group.sum((z - mean).square().sum(dim=1)) / rows
        return float(variance.sqrt().mean() * z.shape[2] ** 0.5)

    def remember(self) -> Callable[[], Memory]:
        """Choose what the replay memory holds after the task, on all processes; returns a function that builds it.

        Raises:
            TrainingFailed: names processes whose choice differs.
        """
        images, moments = self.source.train.images, (self.device_step.mean, self.device_step.std)

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
        logits = None
        if self.state.stores_logits:
            networks = self.state.copied("encoder", "classifier")
            logits = extract_logits(**networks, images=images, ids=choice.ids, moments=moments, parallel=self.parallel)
        return lambda: choice.applied(self.memory, images, self.labels, self.state.task, logits)

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
        # Chunks of about a batch, never of a single image, which has no statistics.
        for rows in torch.arange(len(ids)).tensor_split(max(1, len(ids) // self.feed.sampler.batch)):
            mine = rows[group.shard(len(rows))]
            images = self.parallel.put(torch.from_numpy(self.source.train.images[ids[mine].numpy()]))
            views = self.device_step.views(images, self.parallel.put(keys[mine]))[:2]
            projections = forward_all(networks["projector"], forward_all(networks["encoder"], views))
            parts.append([group.gather(z, group.sizes(len(rows))) for z in projections])
        return [torch.cat(view) for view in zip(*parts, strict=True)]
