"""Costs of the parts of a step, in seconds or in FLOPs, measured without changes to the parts."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from kaizen.bench.session import Session
from kaizen.parallel import synchronize

PARTS = ("data", "views", "student", "momentum", "teacher", "losses", "backward", "optimizer", "communication", "log")
REST = "other"
COLLECTIVES = ("all_reduce", "all_gather", "all_gather_into_tensor", "reduce_scatter_tensor")


class Meter:
    """Divides a growing quantity, which `read` returns, among parts of a step; a nested part counts for itself only."""

    def __init__(self, read: Callable[[], float]) -> None:
        self.spent = dict.fromkeys((*PARTS, REST), 0.0)
        self.bytes: Counter[str] = Counter()
        """Bytes that this process sends, by kind of collective."""
        self.messages: Counter[str] = Counter()
        self._read, self._open, self._last = read, [REST], read()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count everything spent inside for this part."""
        self.end()
        self._open.append(name)
        try:
            yield
        finally:
            self.end()
            self._open.pop()

    def end(self) -> None:
        """Add what was spent since the last switch to the current part."""
        now = self._read()
        self.spent[self._open[-1]] += now - self._last
        self._last = now

    def watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its calls counted for a part."""

        @wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                if name == "communication":
                    # The input is the last tensor: all_gather(outputs, input), all_reduce(input).
                    payload = [given for given in (*args, *kwargs.values()) if isinstance(given, Tensor)][-1]
                    self.bytes[function.__name__] += payload.numel() * payload.element_size()
                    self.messages[function.__name__] += 1
                return function(*args, **kwargs)

        return called


def _seams(session: Session) -> Iterator[tuple[str, Any, str]]:
    """Part, owner and attribute of every call that is measured."""
    stepper, state, learner = session.stepper, session.state, session.state.learner
    method = learner.method
    yield from (
        ("data", stepper.feed, "take"),
        ("data", session.parallel, "put"),
        ("views", stepper.device_step, "views"),
    )
    yield "student", state.wrapped, "forward"
    for head in method.children():
        yield "student", head, "forward"
    if state.twin is not None:
        yield from (("momentum", state.twin, "forward"), ("optimizer", state.twin, "update"))
    if state.teacher is not None:
        yield "teacher", state, "teacher"
    yield from (("losses", learner, "_classifier_terms"), ("losses", method, "loss"))
    if learner.distiller is not None:
        yield "losses", learner.distiller, "loss"
    yield "backward", session.parallel.accelerator, "backward"
    yield from (("optimizer", state.optimizer, name) for name in ("step", "zero_grad"))
    yield from (("optimizer", method, name) for name in ("begin_epoch", "after_backward", "after_step"))
    yield from (("log", session, "write_log"), ("log", session.log.progress, "advance"))
    yield from (("communication", dist, name) for name in COLLECTIVES)


@contextmanager
def taken_apart(session: Session, read: Callable[[], float]) -> Iterator[Meter]:
    """A meter of the session's steps; the original functions are restored afterwards."""
    meter = Meter(read)
    with ExitStack() as undo:
        # Python sees no calls of a recorded step.
        undo.enter_context(session.ordinary())
        for name, owner, attribute in _seams(session):
            undo.callback(_put_back, owner, attribute, vars(owner).get(attribute))
            vars(owner)[attribute] = meter.watched(name, getattr(owner, attribute))
        yield meter


def _put_back(owner: Any, attribute: str, held: Any) -> None:
    if held is None:
        del vars(owner)[attribute]
    else:
        vars(owner)[attribute] = held


def seconds_by_part(session: Session) -> dict[str, float]:
    """Seconds of one step in each part; of a log line the share per step.

    The host waits for the device after every part, so parts that otherwise overlap run in sequence.
    """
    device = session.parallel.device

    def now() -> float:
        synchronize(device)
        return time.perf_counter()

    with taken_apart(session, now) as meter:
        session.step(logged=True)
        meter.end()
    return meter.spent | {"log": meter.spent["log"] / session.config.log.every_steps}


def flops_by_part(session: Session) -> dict[str, float]:
    """FLOPs of one step in each part: matrix products and convolutions, 2 FLOPs per multiply-add."""
    with FlopCounterMode(display=False) as counter, taken_apart(session, counter.get_total_flops) as meter:
        session.step()
        meter.end()
    return {name: value for name, value in meter.spent.items() if value}


def traffic(session: Session) -> dict[str, Any]:
    """Bytes and messages that this process sends in one step, by kind of collective, with its log line's.

    DDP's reduction of gradients is not visible here; it sends their bytes in messages of about 25 MB.
    """
    with taken_apart(session, lambda: 0.0) as meter:
        session.step(logged=True)
    sent = dict(meter.bytes)
    if session.parallel.world > 1 and not session.parallel.sharded:
        trained = [p for p in session.state.learner.parameters() if p.requires_grad]
        sent["gradients"] = sum(p.numel() * p.element_size() for p in trained)
    return {"bytes": sent, "total": sum(sent.values()), "messages": dict(meter.messages)}


class MatrixProduct:
    """The product of two square matrices, `flops` each: an upper bound for the device."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        size = 8192 if device.type == "cuda" else 1024
        self.flops, self.device = 2 * size**3, device
        self.sides = [torch.randn(size, size, device=device).to(dtype) for _ in range(2)]

    def seconds(self, times: int) -> float:
        """Seconds of one product, averaged over `times`."""
        synchronize(self.device)
        began = time.perf_counter()
        for _ in range(times):
            self.sides[0] @ self.sides[1]
        synchronize(self.device)
        return (time.perf_counter() - began) / times
