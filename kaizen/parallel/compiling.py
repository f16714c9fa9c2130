"""torch.compile of encoders and projectors, as Accelerate's own dynamo settings ask for it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend
from torch import nn

NETWORKS = 64
"""Compiled variants that are kept: each network of each view size, with and without gradient."""


class Compiler:
    """Compiles the networks of a run; without dynamo settings it does nothing.

    Accelerate would compile the module that it wraps: the losses as well, with the places and keys of each batch, which
    change at every step. Only the networks are worth compiling.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._plugin = accelerator.state.dynamo_plugin
        self.on = self._plugin.backend != DynamoBackend.NO
        self.mode = self._plugin.mode
        self.records = self.on and self.mode in ("reduce-overhead", "max-autotune")

    def compile(self, network: nn.Module, block_names: Sequence[str]) -> None:
        """Compile the encoder and the projector of a network in place, or, by regions, the blocks of its encoder."""
        if not self.on:
            return
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, NETWORKS)
        parts = [network.get_submodule(name) for name in ("encoder", "projector")]
        if self._plugin.use_regional_compilation:
            parts = [part for part in network.modules() if type(part).__name__ in block_names]
        options: dict[str, Any] = self._plugin.to_kwargs()
        for part in parts:
            part.compile(**options)

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """Have Accelerate compile nothing inside."""
        held, self._plugin.backend = self._plugin.backend, DynamoBackend.NO
        try:
            yield
        finally:
            self._plugin.backend = held
