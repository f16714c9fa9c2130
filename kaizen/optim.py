"""The optimizer and the schedules that other programs rely on."""

from kaizen.training.optim import LARS, momentum_tau, warmup_cosine

__all__ = ["LARS", "momentum_tau", "warmup_cosine"]
