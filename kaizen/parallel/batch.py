"""Where a process' images stand in the global batch."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from kaizen.parallel.collectives import Group, shard


@dataclass(frozen=True)
class Batch:
    """Where this process' images stand in a global batch, [current images ; replay images].

    With gradient accumulation a step's batch comes in parts, each a batch of its own for networks and losses.

    current, replay: sizes of the global parts; labelled: images of the global batch whose label is available;
    key: random key of the step; phase: the method's (see `Method.phase`); parts: the batches that this one came in,
    none if it came as one.

    What differs from step to step lies on the device for those who compute there, so that a recorded step need not
    know it. places: int64 (n,), the index of each of this process' images among the images of the task, -1 for replay;
    keys: int64 (n,), the random key of each of them in this step; label_share: world / labelled; numbers: float64 (k,),
    the method's (see `Method.schedule`).
    """

    current: int
    replay: int
    labelled: int
    rank: int = 0
    world: int = 1
    key: int | Tensor = 0
    phase: Hashable = None
    places: Tensor | None = None
    keys: Tensor | None = None
    label_share: Tensor | None = None
    numbers: Tensor | None = None
    parts: tuple["Batch", ...] = ()

    @staticmethod
    def joined(parts: Sequence["Batch"]) -> "Batch":
        """A step's whole batch, whose local images are those of its parts, one part after the other."""
        if len(parts) == 1:
            return parts[0]
        first, places = parts[0], [part.places for part in parts if part.places is not None]
        return replace(
            first,
            current=sum(part.current for part in parts),
            replay=sum(part.replay for part in parts),
            labelled=sum(part.labelled for part in parts),
            places=torch.cat(places) if places else None,
            keys=None,
            parts=tuple(parts),
        )

    @property
    def size(self) -> int:
        """Images in the global batch."""
        return self.current + self.replay

    def current_alone(self) -> "Batch":
        """The batch of the current images alone, which are the first of the local ones."""
        return Batch(self.current, 0, 0, self.rank, self.world)

    def replay_alone(self) -> "Batch":
        """The batch of the replay images alone, which are the last of the local ones; a process may hold none."""
        return Batch(self.replay, 0, 0, self.rank, self.world)

    @property
    def group(self) -> Group:
        """The processes that share the batch."""
        return Group(self.rank, self.world)

    def slices(self, rank: int) -> tuple[range, range]:
        """Positions in the global batch of a rank's images: its slice of the current part and of the replay part."""
        replay = shard(self.replay, rank, self.world)
        return shard(self.current, rank, self.world), range(self.current + replay.start, self.current + replay.stop)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Images of each rank."""
        return tuple(sum(map(len, self.slices(rank))) for rank in range(self.world))

    def rows(self, device: torch.device) -> Tensor | None:
        """Global positions of the local images, int64; None for one process, which holds all of them in order."""
        if self.world == 1:
            return None
        # Made on the device: a copy would make the host wait for it.
        return torch.cat([torch.arange(part.start, part.stop, device=device) for part in self.slices(self.rank)])

    def gather(self, local: Tensor) -> Tensor:
        """Rows (n_local, ...) of all processes in global order (size, ...), with gradient."""
        if self.parts:
            rows = local.split([part.sizes[part.rank] for part in self.parts])
            whole = [part.gather(own) for part, own in zip(self.parts, rows, strict=True)]
            return _joined(whole, [part.current for part in self.parts])
        if self.world == 1:
            return local
        whole = list(self.group.gather(local, self.sizes).split(self.sizes))
        return _joined(whole, [len(self.slices(rank)[0]) for rank in range(self.world)])

    def share(self, local_mean: Tensor) -> Tensor:
        """This process' share of a global mean over images, from the mean over its own images."""
        return local_mean * (self.sizes[self.rank] * self.world / self.size)

    def share_labelled(self, local_sum: Tensor) -> Tensor:
        """This process' share of a global mean over labelled images, from a sum over its own; 0 if none is labelled."""
        if self.label_share is not None:
            return local_sum * self.label_share.to(local_sum.dtype)
        return local_sum * (self.world / max(self.labelled, 1))

    def share_replay(self, local_sum: Tensor) -> Tensor:
        """This process' share of a global mean over replay images, from a sum over its own; 0 if there are none."""
        return local_sum * (self.world / max(self.replay, 1))


def _joined(pieces: list[Tensor], current: list[int]) -> Tensor:
    """Pieces of [current ; replay] rows as one such batch."""
    heads = [piece[:count] for piece, count in zip(pieces, current, strict=True)]
    return torch.cat(heads + [piece[count:] for piece, count in zip(pieces, current, strict=True)])
