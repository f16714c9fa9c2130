"""The host half of a step: chooses images and numbers. `DeviceStep` is the device half, which computes."""

import numpy as np
import torch
from torch import Tensor

from kaizen.data.crops import Cropper
from kaizen.data.encoded import Encoded
from kaizen.data.feed import Feed, resident
from kaizen.data.load import Stream
from kaizen.data.mixing import Mixing
from kaizen.data.random import Purpose, fold, hash_rows
from kaizen.data.sampler import Sampler
from kaizen.model.networks.heads import forget_running_statistics, forward_all
from kaizen.parallel import Batch
from kaizen.training.device_step import DeviceStep, Done, Recall
from kaizen.training.measures import copies, finite, projection_rankme, projection_std, update_norm
from kaizen.training.optim import momentum_tau
from kaizen.training.plan import Plan
from kaizen.training.recording import Recorder, streams, why_ordinary
from kaizen.training.remember import TaskEnd
from kaizen.training.state import TaskState


class Stepper:
    """Trains a task's state step by step; a step is a function of its number and of that state.

    Args:
        recording: whether to record steps (see `kaizen.training.recording`); False leaves all steps ordinary.
    """

    def __init__(self, stream: Stream, plan: Plan, state: TaskState, *, recording: bool = True) -> None:
        config, parallel = state.config, state.parallel
        self.config, self.source, self.plan, self.stream = config, stream.source, plan, stream
        self.state, self.parallel = state, parallel
        _, channels, height, width = self.source.train.images.shape
        self.image = channels, height, width
        self.memory = state.memory(self.image)
        self.ids = stream.tasks[state.task].train
        images, pinned = self.source.train.images, parallel.device.type == "cuda"
        given: Cropper | np.ndarray | None = None
        self.cropper: Cropper | None = None
        store = resident(images, self.ids, self.memory, parallel.device)
        if isinstance(images, Encoded):
            assert isinstance(self.memory.images, Encoded)
            given = self.cropper = Cropper(images, self.memory.images, config.views, pinned=pinned)
        elif store is None:
            given = images
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
            self._replay_batch(),
            group=parallel.group,
            parts=parallel.accumulation,
            mix=mixing if recall.mixes else None,
        )
        self.feed = Feed(
            sampler,
            given,
            stream.labels,
            self.memory,
            steps=plan.tasks[state.task].steps,
            numbers=self._numbers,
            pinned=pinned,
        )
        ordinary = not recording or why_ordinary(config, parallel)
        self.recorder = None if ordinary else Recorder(self.device_step, *streams(parallel.device))
        self._done: Done | None = None
        self._before: list[Tensor] = []
        self._sizes: list[int] = []

    def _replay_batch(self) -> int:
        """Replay images of a step: no more than the memory has for a method that must not see one twice."""
        size = self.config.replay.batch
        return min(size, len(self.memory)) if self.state.learner.method.distinct_replay else size

    def prepare_measures(self) -> None:
        """Copy the parameters before a step after which `measures` is called."""
        self._before = copies(self.state.optimizer)

    def step(self, step: int) -> dict[str, Tensor]:
        """One optimizer step, number `step` of the task; returns the four terms, on the device until the next step."""
        method = self.state.learner.method
        self._done = None  # makes room for this step's
        epoch, place = divmod(step, self.feed.sampler.steps_per_epoch)
        if place == 0:
            key = fold(self.config.run.seed, Purpose.METHOD, self.state.task, -1, epoch)
            method.begin_epoch(key, self._project_task, self.parallel.group)
        host_batches, phase = self.feed.take(step), method.phase(epoch)
        self._sizes = [sum(sizes) for sizes in zip(*(part.batch.sizes for part in host_batches), strict=True)]
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

    def measures(self) -> dict[str, float | None]:
        """What a log line tells of the last step beside its losses; all processes call it, once."""
        assert self._done is not None
        before, self._before = self._before, []
        views, group = self._done.projections, self.parallel.group
        return {
            "projection_std": projection_std(views, group),
            "projection_rankme": finite(projection_rankme(views, group, self._sizes)),
            "gradient_norm": finite(float(self._done.gradient_norm)),
            "update_norm": finite(update_norm(before, self.state.optimizer)),
        }

    def task_end(self) -> TaskEnd:
        """What the task leaves behind besides its networks."""
        return TaskEnd(self.state, self.stream, self.memory, (self.device_step.mean, self.device_step.std))

    def _images_of(self, ids: np.ndarray, keys: Tensor) -> tuple[Tensor, ...]:
        """Images of the train split, or their crops by these keys, on the device."""
        if self.cropper is not None:
            images = self.cropper.crop(ids, np.empty(0, dtype=np.int64), keys)
        else:
            images = (torch.from_numpy(self.source.train.images[ids]),)
        return tuple(map(self.parallel.put, images))

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
            images = self._images_of(ids[mine].numpy(), keys[mine])
            views = self.device_step.views(images, self.parallel.put(keys[mine]))[:2]
            projections = forward_all(networks["projector"], forward_all(networks["encoder"], views))
            parts.append([group.gather(z, group.sizes(len(rows))) for z in projections])
        return [torch.cat(view) for view in zip(*parts, strict=True)]
