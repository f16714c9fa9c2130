"""The same step in plain PyTorch, with nothing except its networks, losses and optimizer.

One batch of augmented images is on the device from the start. There are no data, views, logs or Accelerate.
"""

import copy
import time
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kaizen.bench.session import Session
from kaizen.parallel import CudaGraph, CudaLanes, memory_format, synchronize
from kaizen.training.optim import build_optimizer, parameter_groups
from kaizen.training.recording import WARM_UP

METHODS = ("simclr", "mocov2plus", "byol", "vicreg")
DISTILLERS = ("none", "contrastive", "predictive", "predictive_mse")


def lacking(session: Session) -> str | None:
    """The reason why there is no plain loop for a session, or None."""
    config, parallel = session.config, session.parallel
    mode = parallel.accelerator.mixed_precision
    reasons = {
        f"method {config.method.name} (there is one for {', '.join(METHODS)})": config.method.name not in METHODS,
        f"distiller {config.distill.name}": config.distill.name not in DISTILLERS,
        "mixed images (replay.mix lump)": config.replay.mix != "none",
        "stored logits (classifier.distill)": config.classifier.distill != "soft_label",
        f"{parallel.world} processes": parallel.world > 1,
        "compiled networks": parallel.compiler.on,
        "gradient accumulation": parallel.accumulation > 1,
        f"mixed precision {mode}": mode not in ("no", "bf16"),
    }
    return next((f"no plain loop for {reason}" for reason, holds in reasons.items() if holds), None)


class PlainLoop:
    """Copies of a session's networks, trained on one batch with the learning rates of the task's first step.

    If the session records its steps, this loop is recorded as well, as both would be in practice.
    """

    def __init__(self, session: Session) -> None:
        config, state, stepper = session.config, session.state, session.stepper
        self.config, self.weights, self.device = config, session.weights, session.parallel.device
        load = stepper.feed.take(0)[0]
        self.labelled = max(1, load.batch.labelled)
        self.bf16 = session.parallel.accelerator.mixed_precision == "bf16"
        layout = memory_format(state.learner.encoder, self.device)
        inputs = stepper.device_step.inputs_of(load)
        self.labels, self.views = inputs.data.labels.clone(), inputs.views
        # A learner without Accelerate's hooks; its parts are called one by one.
        self.net: Any = type(state.learner)(config, session.num_classes, state.learner.distiller).to(self.device)
        self.net.load_state_dict(state.learner.state_dict())
        self.net.to(memory_format=layout)
        self.teacher = copy.deepcopy(state.teacher.network).to(memory_format=layout) if state.teacher else None
        self.twin = copy.deepcopy(state.twin).to(memory_format=layout) if state.twin is not None else None
        self.tau = config.method.tau_base if self.twin is not None else 0.0
        optim, lr = config.optim, session.plan.lr
        groups = parameter_groups(self.net, lr, optim.classifier_lr, optim.weight_decay, exclude_1d=optim.exclude_1d)
        for group in groups:
            group["lr"] = session.plan.rate(session.task, 0, group["base_lr"])
        fused = session.parallel.fuses
        self.optimizer = build_optimizer(optim.name, groups, optim.momentum, optim.eta, lr, fused=fused)
        self._recorded: CudaGraph[dict[str, Tensor]] | None = None
        self._lanes = CudaLanes(self.device) if stepper.recorder is not None and stepper.recorder.recorded else None
        if self.twin is not None:
            self.averages: list[Tensor] = list(self.twin.parameters())
            self.followed: list[Tensor] = [*self.net.encoder.parameters(), *self.net.projector.parameters()]

    def seconds(self, steps: int) -> float:
        """Mean seconds per step over `steps` steps."""
        if self._lanes is not None and self._recorded is None:
            for _ in range(WARM_UP):
                self._lanes.aside(self.step)
            self._recorded = self._lanes.record_training(self.step)
        step = self.step if self._recorded is None else self._recorded.replay
        synchronize(self.device)
        began = time.perf_counter()
        for _ in range(steps):
            step()
        synchronize(self.device)
        return (time.perf_counter() - began) / steps

    def step(self) -> dict[str, Tensor]:
        """One optimizer step; returns the terms of the loss."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            keys, old, old_logits = self._targets()
            features = [self.net.encoder(view) for view in self.views]
            z = [self.net.projector(f) for f in features]
            logits = [self.net.classifier(f.detach() if self.net.stop_gradient else f) for f in features]
            terms = {"ssl": self._ssl(z, keys)}
            first, second = (F.cross_entropy(g, self.labels, ignore_index=-1, reduction="sum") for g in logits)
            terms["classifier"] = (first + second) / self.labelled
            if old_logits:
                first, second = (F.cross_entropy(g, o.softmax(1)) for g, o in zip(logits, old_logits, strict=True))
                terms["classifier_distill"] = (first + second) / 2
            if old and self.net.distiller is not None:
                terms["distill"] = self._distill(z, old)
        torch.stack([self.weights[name] * term for name, term in terms.items()]).sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.twin is not None:
            with torch.no_grad():
                torch._foreach_lerp_(self.averages, self.followed, 1 - self.tau)
        if self.config.method.name == "mocov2plus":
            for queue, rows in zip((self.net.method.queue1, self.net.method.queue2), keys, strict=True):
                queue.push(rows)
        return {name: term.detach() for name, term in terms.items()}

    @torch.no_grad()
    def _targets(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Keys of the twin, projections and logits of the teacher, one tensor per view."""
        keys, old, logits = [], [], []
        if self.twin is not None:
            keys = [F.normalize(self.twin.projector(self.twin.encoder(view)), dim=1) for view in self.views]
        if self.teacher is not None:
            features = [self.teacher.encoder(view) for view in self.views]
            old = [self.teacher.projector(f) for f in features]
            logits = [self.teacher.classifier(f) for f in features]
        return keys, old, logits

    def _ssl(self, z: list[Tensor], keys: list[Tensor]) -> Tensor:
        settings, n = self.config.method, len(z[0])
        if settings.name == "simclr":
            rows = F.normalize(torch.cat(z), dim=1)
            logits = (rows @ rows.t() / settings.temperature).fill_diagonal_(float("-inf"))
            return F.cross_entropy(logits, torch.arange(2 * n, device=logits.device).roll(n))
        if settings.name == "mocov2plus":
            method = self.net.method
            q = [F.normalize(rows, dim=1) for rows in z]
            target = torch.zeros(n, dtype=torch.int64, device=z[0].device)
            halves = []
            for query, key, queue in ((q[0], keys[1], method.queue2), (q[1], keys[0], method.queue1)):
                logits = torch.cat([(query * key).sum(1, keepdim=True), query @ queue.keys.t()], dim=1)
                halves.append(F.cross_entropy(logits / settings.temperature, target))
            return (halves[0] + halves[1]) / 2
        if settings.name == "byol":
            p = [F.normalize(self.net.method.predictor(rows), dim=1) for rows in z]
            return 4 - 2 * ((p[0] * keys[1]).sum(1) + (p[1] * keys[0]).sum(1)).mean()
        loss = settings.invariance * F.mse_loss(z[0], z[1])
        for rows in z:
            loss = loss + settings.variance * F.relu(1 - (rows.var(0) + 1e-4).sqrt()).mean()
            covariance = torch.cov(rows.t())
            beside = covariance - covariance.diagonal().diag()
            loss = loss + settings.covariance * beside.square().sum() / rows.shape[1]
        return loss

    def _distill(self, z: list[Tensor], old: list[Tensor]) -> Tensor:
        name = self.config.distill.name
        if self.config.method.name == "mocov2plus":
            z, old = ([F.normalize(rows, dim=1) for rows in side] for side in (z, old))
        p = [self.net.distill_predictor(rows) for rows in z]
        if name == "predictive_mse":
            return (F.mse_loss(p[0], old[0]) + F.mse_loss(p[1], old[1])) / 2
        rows, targets = (F.normalize(torch.cat(side), dim=1) for side in (p, old))
        if name == "predictive":
            return 2 - 2 * (rows * targets).sum(1).mean()
        logits = rows @ targets.t() / (self.config.distill.temperature or 1.0)
        own = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.t(), own)) / 2
