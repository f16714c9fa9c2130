"""Wrapping a learner and its optimizer with Accelerate."""

import warnings
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn


def wrapped(
    learner: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator, *, one_process: bool
) -> tuple[nn.Module, Any]:
    """The learner and the optimizer as a launch trains them: with DDP, FSDP2 or neither.

    Args:
        one_process: DDP is not needed, though Accelerate would use it in a distributed launch.
    """
    names = {p: name for name, p in learner.named_parameters()}
    groups = [[names[p] for p in group["params"]] for group in optimizer.param_groups]
    with warnings.catch_warnings():
        # torch 2.14 has a new name for broadcast_buffers, which earlier versions do not know.
        warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
        if one_process:
            module, prepared = accelerator.prepare_model(learner, evaluation_mode=True), accelerator.prepare(optimizer)
        else:
            module, prepared = accelerator.prepare(learner, optimizer)
    # Accelerate identifies shards by their address, which is the same for all that have no row on this process.
    held = dict(learner.named_parameters())
    for group, members in zip(optimizer.param_groups, groups, strict=True):
        group["params"] = [held[name] for name in members]
    return module, prepared
