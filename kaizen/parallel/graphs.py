"""CUDA graphs and the streams around them: what is recorded once and replayed, and what runs in parallel."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch

T = TypeVar("T")
AHEAD = 3
"""Number of recorded steps by which the host may be ahead of the device."""


class CudaGraph(Generic[T]):
    """The kernels that some work launches, recorded on a stream; each replay rewrites its `result`.

    Args:
        work: launches kernels and waits for nothing; it is called once, and its kernels do not run yet.
        stream: what has run on it before has set up what libraries need.

    Raises:
        RuntimeError: the work waits for the device, or does something else that no graph can hold.
    """

    def __init__(self, work: Callable[[], T], stream: torch.cuda.Stream) -> None:
        self._graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            # Other threads keep running: they pin memory for the next batch.
            with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
                self.result = work()
        except BaseException:
            # torch leaves the recording stream as the current one when a recording fails.
            torch.cuda.set_stream(current)
            raise

    def replay(self) -> None:
        """Launch the recorded kernels on the current stream."""
        self._graph.replay()

    def free(self) -> None:
        """Give back the memory of the recorded tensors, `result` included."""
        self._graph.reset()
        del self.result


class CudaLanes:
    """The streams of recorded steps: the current one trains, another one prepares the next step meanwhile.

    What is prepared may be overwritten once the current stream has taken it.
    """

    refused: str | None = None
    """Why a recording has failed in this process."""

    def __init__(self, device: torch.device) -> None:
        self._trains, self._prepares = torch.cuda.Stream(device), torch.cuda.Stream(device)
        self._ready, self._taken = torch.cuda.Event(), torch.cuda.Event()
        self._under_way: deque[torch.cuda.Event] = deque()

    def record_training(self, work: Callable[[], T]) -> CudaGraph[T]:
        """Record work that `aside` has run before."""
        return CudaGraph(work, self._trains)

    def record_preparing(self, work: Callable[[], T]) -> CudaGraph[T]:
        """Record work that prepares a step, which runs once before it is recorded."""
        # On a stream of its own, as libraries have a workspace for each stream and both graphs run at the same time.
        self._prepares.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._prepares):
            work()
        torch.cuda.current_stream().wait_stream(self._prepares)
        return CudaGraph(work, self._prepares)

    def aside(self, work: Callable[[], T]) -> T:
        """Run work on the stream on which it will be recorded; the current one waits for it."""
        self._trains.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._trains):
            result = work()
        torch.cuda.current_stream().wait_stream(self._trains)
        return result

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """What is launched inside prepares a step, once what was prepared before has been taken."""
        self._prepares.wait_event(self._taken)
        with torch.cuda.stream(self._prepares):
            yield
            self._ready.record()

    @contextmanager
    def taking(self) -> Iterator[None]:
        """What is launched inside takes what was prepared."""
        torch.cuda.current_stream().wait_event(self._ready)
        yield
        self._taken.record()
        self._keep_pace()

    def _keep_pace(self) -> None:
        """Have the host wait if it is more than AHEAD steps ahead, whose images would fill its memory."""
        begun = torch.cuda.Event(blocking=True)
        begun.record()
        self._under_way.append(begun)
        if len(self._under_way) > AHEAD:
            self._under_way.popleft().synchronize()


class Branches:
    """Streams on which parts of a step run side by side, such as networks that do not wait for each other.

    A branch begins after all earlier work of the current stream, so memory that one of them gives back is not
    written while the other still reads it.
    """

    def __init__(self, device: torch.device, count: int) -> None:
        self._streams = [torch.cuda.Stream(device) for _ in range(count)]

    def run(self, index: int, work: Callable[[], T]) -> T:
        """The work's result, launched on branch `index`; not to be used before `join`."""
        stream = self._streams[index]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            return work()

    def join(self) -> None:
        """Have the current stream wait for all branches."""
        for stream in self._streams:
            torch.cuda.current_stream().wait_stream(stream)
