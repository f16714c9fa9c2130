"""A replacement for CUDA graphs on a CPU: operations are recorded once and replayed on the same memory.

The tape records every operation below autograd, with its tensors and its Python numbers. A replay runs them again and
writes each result to the memory of the first one. So if shapes, numbers or tensors change from step to step, a replay
gives a different result; a step that reads a value back is refused.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
READS = {aten._local_scalar_dense, aten.nonzero, aten.is_nonzero, aten.equal, aten.masked_select, aten._unique2}


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Tape(TorchDispatchMode):
    """The recorded operations of some work; `result` is its return value, overwritten by each replay."""

    def __init__(self, work: Callable[[], Any], state: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self._operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor | None]]] = []
        # A CUDA graph runs nothing while it is recorded.
        held = [tensor.detach().clone() for tensor in state]
        try:
            with self:
                self.result = work()
        finally:
            with torch.no_grad():
                for tensor, before in zip(state, held, strict=True):
                    tensor.copy_(before)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        masks = func.overloadpacket is aten.index and any(t.dtype == torch.bool for t in _tensors(args[1]))
        if func.overloadpacket in READS or masks:
            raise RuntimeError(f"{func} reads a value, which a recorded step cannot")
        result = func(*args, **kwargs)
        given = {_memory(tensor) for tensor in _tensors((args, kwargs))}
        made = [tensor if _memory(tensor) not in given else None for tensor in _tensors(result)]
        self._operations.append((func, args, kwargs, made))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, made in self._operations:
            for place, tensor in zip(made, _tensors(func(*args, **kwargs)), strict=True):
                if place is not None and place.numel():
                    place.detach().copy_(tensor)

    def free(self) -> None:
        self._operations = []


class TapeLanes:
    """The lanes of a recorder, run one after the other; `state` is changed by a training step."""

    refused: str | None = None

    def __init__(self, state: Callable[[], Sequence[Tensor]]) -> None:
        self._state = state
        self.recorded = 0

    def record_training(self, work: Callable[[], Any]) -> Tape:
        self.recorded += 1
        return Tape(work, self._state())

    def record_preparing(self, work: Callable[[], Any]) -> Tape:
        return Tape(work)

    def aside(self, work: Callable[[], Any]) -> Any:
        return work()

    @contextmanager
    def preparing(self) -> Iterator[None]:
        yield

    @contextmanager
    def taking(self) -> Iterator[None]:
        yield
