"""Small messages between the processes of one machine, by sockets.

gloo hands each message to threads of its own. Where all cores compute, these get to run a millisecond or two later,
and a step with BatchNorm waits for a hundred such messages, one after the other. Here the thread that has computed
sends and receives by itself, and the kernel wakes the one that waits. Whatever is large, on a GPU or between machines
goes through torch's group.
"""

import os
import socket
import tempfile
from contextlib import ExitStack
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

LARGEST = 1 << 16
"""Bytes of a message."""
ROOM = 5 * LARGEST
"""Bytes, the kernel's own among them, that a socket holds, so that sending does not wait for reading.

A process sends only when it has all of the message before, so at most two of its own are still to be read.
"""
MOST = 64
"""Processes that are linked; each message goes to every other one, and a listener holds no more than 128 calls."""
CONNECT_SECONDS = 60.0


class Links:
    """A socket to each other process of this machine, in the order of their ranks.

    Args:
        seconds: how long a message is waited for.
    """

    def __init__(self, sockets: dict[int, socket.socket], rank: int, seconds: float) -> None:
        self._sockets, self._rank = sockets, rank
        for held in sockets.values():
            held.settimeout(seconds)
            held.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ROOM)

    def gather(self, local: Tensor) -> Tensor:
        """Contiguous CPU tensors of one shape and type, of all processes: (processes, ...)."""
        every = local.new_empty((len(self._sockets) + 1, *local.shape))
        every[self._rank] = local
        rows = every.view(len(every), -1).view(torch.uint8).numpy()
        for rank, held in self._sockets.items():
            _checked(held.sendall, rows[self._rank], rank)
        for rank, held in self._sockets.items():
            left = memoryview(rows[rank])
            while left:
                left = left[_checked(held.recv_into, left, rank) :]
        return every

    def close(self) -> None:
        """Close the sockets."""
        for held in self._sockets.values():
            held.close()


def _checked(call: Any, buffer: Any, rank: int) -> Any:
    """What the socket's call gives; a DistNetworkError, as from torch's group, where the other process is gone."""
    try:
        done = call(buffer)
    except OSError as error:
        raise dist.DistNetworkError(f"connection to process {rank}: {error}") from error
    if done == 0:
        raise dist.DistNetworkError(f"connection closed by process {rank}")
    return done


_links: Links | None = None


def connect(rank: int, world: int, seconds: float, group: Any) -> None:
    """Link this process with all others, if all run on this machine and can; every process calls it.

    Args:
        seconds: how long a message is waited for.
        group: torch's group of all processes on the CPU.
    """
    global _links
    disconnect()

    def all_say(found: Any) -> list[Any]:
        every: list[Any] = [None] * world
        dist.all_gather_object(every, found, group=group)
        return every

    sockets: dict[int, socket.socket] = {}
    with ExitStack() as stack:
        listener, address = _listen(stack) if _alone_here(world) else (None, None)
        addresses = all_say(address)
        linked = all(all_say(None not in addresses and _reach(addresses[:rank], rank, sockets)))
        if linked:
            assert listener is not None
            listener.settimeout(CONNECT_SECONDS)
            for _ in range(rank + 1, world):
                held, _ = listener.accept()
                sockets[int.from_bytes(held.recv(4, socket.MSG_WAITALL), "little")] = held
    found = Links(dict(sorted(sockets.items())), rank, seconds)
    if linked:
        _links = found
        return
    found.close()
    if rank == 0 and _alone_here(world):
        print(f"note: processes cannot open sockets in {tempfile.gettempdir()} to each other: each step takes longer")


def _alone_here(world: int) -> bool:
    """Whether all processes run on this machine, as the launcher tells, and the machine has UNIX sockets."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) == world <= MOST and hasattr(socket, "AF_UNIX")


def _listen(stack: ExitStack) -> tuple[socket.socket | None, str | None]:
    """A socket that others can call, and its address; none where the system does not let us."""
    try:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="kaizen-"))
        address = os.path.join(folder, "link")
        listener.bind(address)
        listener.listen(MOST)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ROOM)
        room = listener.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    except OSError:  # above all a folder whose name is too long for an address
        return None, None
    return (listener, address) if room >= ROOM else (None, None)


def _reach(addresses: list[str], rank: int, sockets: dict[int, socket.socket]) -> bool:
    """Whether the processes before this one could be connected to, and told who calls."""
    for other, address in enumerate(addresses):
        try:
            sockets[other] = socket.socket(socket.AF_UNIX)
            sockets[other].connect(address)
            sockets[other].sendall(rank.to_bytes(4, "little"))
        except OSError:  # another machine or container after all
            return False
    return True


def disconnect() -> None:
    """Close what `connect` has opened."""
    global _links
    if _links is not None:
        _links.close()
    _links = None


def current() -> Links | None:
    """What `connect` has opened."""
    return _links


def gather_alike(local: Tensor) -> Tensor:
    """Tensors of one shape and type, of all processes and in the order of their ranks: (processes, ...), no graph."""
    local = local.detach().contiguous()
    if _links is not None and _fits(local):
        return _links.gather(local)
    every = local.new_empty((dist.get_world_size(), *local.shape))
    dist.all_gather(list(every.unbind()), local)
    return every


def reduce_alike(local: Tensor, operation: Any) -> Tensor:
    """Sum or maximum (dist.ReduceOp) of tensors of one shape and type over all processes, without graph."""
    if _links is not None and _fits(local):
        every = _links.gather(local.detach().contiguous())
        return every.amax(dim=0) if operation == dist.ReduceOp.MAX else every.sum(dim=0, dtype=local.dtype)
    total = local.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, op=operation)
    return total


def _fits(local: Tensor) -> bool:
    return local.device.type == "cpu" and local.nbytes <= LARGEST
