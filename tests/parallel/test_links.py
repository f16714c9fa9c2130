"""Messages by sockets: whole whatever the kernel hands over at a time, and an error where the other process is gone."""

import socket
import threading
import time
from contextlib import suppress

import pytest
import torch
import torch.distributed as dist

from kaizen.parallel.links import LARGEST, Links
from kaizen.parallel.peers import is_of_others


def pair(seconds: float = 30.0) -> tuple[Links, socket.socket]:
    ours, theirs = socket.socketpair()
    return Links({1: ours}, 0, seconds), theirs


def test_a_message_may_come_in_pieces() -> None:
    links, theirs = pair()
    told = torch.arange(500, dtype=torch.float32)
    raw = told.numpy().tobytes()

    def tell() -> None:
        # The rest comes once we must have read the beginning, and an odd number of bytes at a time.
        theirs.sendall(raw[:333])
        assert theirs.recv(len(raw), socket.MSG_WAITALL) == (-told).numpy().tobytes()
        for piece in range(333, len(raw), 333):
            time.sleep(0.002)
            theirs.sendall(raw[piece : piece + 333])

    thread = threading.Thread(target=tell)
    thread.start()
    assert torch.equal(links.gather(-told), torch.stack([-told, told]))
    thread.join()


def test_two_messages_of_the_largest_size_fit_before_the_other_process_reads() -> None:
    links, theirs = pair(seconds=1.0)
    message = torch.zeros(LARGEST, dtype=torch.uint8)
    theirs.sendall(bytes(LARGEST))
    theirs.sendall(bytes(LARGEST))
    for _ in range(2):
        links.gather(message)


@pytest.mark.parametrize("way", ["closed", "closed early", "silent"])
def test_a_process_that_is_gone_or_silent_is_an_error_of_others(way: str) -> None:
    links, theirs = pair(seconds=0.2)
    if way == "closed early":
        theirs.close()
    elif way == "closed":
        theirs.sendall(b"abc")
        theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(dist.DistNetworkError, match="process 1") as caught:
        links.gather(torch.zeros(2))
    assert is_of_others(caught.value)
    links.close()
    with suppress(OSError):
        theirs.close()
