"""Threads for work on single images, in each of which torch computes with one thread."""

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Barrier

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""What glibc's malloc.h calls these."""
KEPT_BLOCK, KEPT = 1 << 28, 1 << 30
"""Bytes of the largest block that is kept when it is freed, and of all that are kept at the end of the heap."""


@lru_cache(maxsize=8)
def pool(purpose: str, threads: int) -> ThreadPoolExecutor:
    """The process' threads for a purpose, which differs where one kind of work must not wait for another."""
    import torch

    _keep_freed_memory()
    ready, held = Barrier(threads + 1), torch.get_num_threads()

    def begin() -> None:
        torch.get_num_threads()  # a thread takes over the process' number when it first asks
        torch.set_num_threads(1)
        ready.wait()

    made = ThreadPoolExecutor(threads, thread_name_prefix=f"kaizen-{purpose}", initializer=begin)
    for _ in range(threads):
        made.submit(_nothing)
    ready.wait()
    # Threads that are started later, by anyone, take over what was set last.
    torch.set_num_threads(held)
    return made


@lru_cache(maxsize=1)
def _keep_freed_memory() -> None:
    """Have glibc keep what is freed, for the next images: it would return it, and the kernel clear it page by page."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return  # another C library, which has rules of its own
    mallopt(M_MMAP_THRESHOLD, KEPT_BLOCK)
    mallopt(M_TRIM_THRESHOLD, KEPT)


def _nothing() -> None:
    """Work that makes the pool start a thread."""


def each(work: Callable[[int], object], count: int, threads: ThreadPoolExecutor) -> None:
    """Do some work for every number below `count`; an error of one of them is raised when all have ended."""
    futures = [threads.submit(work, number) for number in range(count)]
    errors = [future.exception() for future in futures]
    if error := next(filter(None, errors), None):
        raise error


# A child of a fork has none of its parent's threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=pool.cache_clear)
