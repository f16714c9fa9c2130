"""A ring buffer of keys, as MoCo, NNCLR and ReSSL use it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class KeyQueue(nn.Module):
    """The latest `size` keys (size, dim), L2-normalised rows; starts as unit Gaussian rows from torch's generator.

    `next` is the row written next. Both are buffers, so they are saved with the method's state.
    """

    keys: Tensor
    next: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("next", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Write keys (n, dim), given in global order, over the oldest ones; of more than `size` the last are kept."""
        size = self.keys.shape[0]
        skipped = max(0, keys.shape[0] - size)
        places = (self.next + skipped + torch.arange(keys.shape[0] - skipped, device=keys.device)) % size
        self.keys[places] = keys[skipped:].to(self.keys.dtype)
        # Written in place of a Python number: reading it back would make the host wait for the device.
        self.next.copy_((self.next + keys.shape[0]) % size)

    @torch.no_grad()
    def nearest(self, rows: Tensor) -> Tensor:
        """The key (n, dim) with the highest cosine to each row (n, dim)."""
        return self.keys[(F.normalize(rows, dim=1) @ self.keys.to(rows.dtype).t()).argmax(dim=1)]


class GrowingQueue(KeyQueue):
    """A queue that starts empty; the host counts along how many of its rows were written."""

    full: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__(size, dim)
        self.register_buffer("full", torch.zeros((), dtype=torch.bool))
        self._filled: int | None = None

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """See KeyQueue."""
        self.full.logical_or_(self.next + keys.shape[0] >= self.keys.shape[0])
        super().push(keys)

    def filled(self) -> int:
        """Rows that were written, from the first one on."""
        if self._filled is None:
            # Read from the device once, at the beginning of a task or after a restart.
            self._filled = len(self.keys) if bool(self.full) else int(self.next)
        return self._filled

    def count(self, rows: int) -> None:
        """Count rows that were pushed."""
        if self._filled is not None:
            self._filled = min(len(self.keys), self._filled + rows)
