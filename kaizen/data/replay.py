"""The replay memory: which images of past tasks it keeps, and how it is saved.

It holds the images themselves, because past data may no longer exist. What is kept is a function of (seed, task, data)
alone (and of the network, for herding), so every process makes the same choice; one of them writes the file that all of
them map.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kaizen.data.decoding import Decoding
from kaizen.data.encoded import SHAPE, Encoded
from kaizen.data.policies import Candidates, ReplayPolicy, ordered
from kaizen.data.random import Purpose, fold, hash_rows, permutation, uniform
from kaizen.data.splits import Images
from kaizen.errors import ConfigError
from kaizen.run.tensors import read_tensors

AUTO_LEAST = 5
"""Images that a memory without a budget of its own holds of each class at least: the published 1 % of CIFAR-100's."""
LEAST = {"fraction": 1, "auto": AUTO_LEAST}
NUMBERS = ("labels", "sample_ids", "task_ids")
"""What a memory holds of each image besides it, int64."""
Features = Callable[[np.ndarray], np.ndarray]
"""Sample ids (n,) -> features (n, d) of these images."""


@dataclass(frozen=True)
class Memory:
    """Images uint8 (n, c, h, w) or encoded, labels, sample ids and task ids, int64 (n,), best choice of a class first.

    logits: float32 (n, classes), the classifier's at the end of each image's task; None where they are not stored.
    """

    images: Tensor | Encoded
    labels: Tensor
    sample_ids: Tensor
    task_ids: Tensor
    logits: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @staticmethod
    def empty(channels: int, size: int, logits: int | None = None, decoding: Decoding | None = None) -> "Memory":
        """A memory without images; logits: classes that it stores logits of; decoding: of encoded images."""
        none = torch.empty(0, dtype=torch.int64)
        pixels = torch.empty(0, channels, size, size, dtype=torch.uint8)
        images = pixels if decoding is None else Encoded.collected([], decoding)
        return Memory(images, none, none.clone(), none.clone(), None if logits is None else torch.empty(0, logits))

    @property
    def pixels(self) -> np.ndarray | Encoded:
        """The images, of which `[rows]` gives unaugmented ones, uint8 (n, c, h, w)."""
        return self.images.numpy() if isinstance(self.images, Tensor) else self.images

    def tensors(self) -> dict[str, Tensor]:
        """What is saved."""
        images = {"images": self.images} if isinstance(self.images, Tensor) else self.images.tensors()
        held = images | {name: getattr(self, name) for name in NUMBERS}
        return held if self.logits is None else held | {"logits": self.logits}

    @staticmethod
    def read(
        file: Path,
        image: tuple[int, int, int] | None,
        num_classes: int,
        *,
        logits: bool = False,
        decoding: Decoding | None = None,
    ) -> "Memory":
        """The memory that was saved in a safetensors file, mapped from it.

        Args:
            image: shape (c, h, w) of the images that it must hold; None: any.
            logits: whether it must hold logits of its images.
            decoding: of encoded images, which it must hold then.

        Raises:
            ConfigError: the file is missing, damaged, or holds something else.
        """
        tensors = read_tensors(file)
        n = len(tensors.get("labels", ()))
        rows = "int64", [n]
        shape = [n, *image] if image else list(tensors["images"].shape) if "images" in tensors else []
        expected: dict[str, tuple[str, list[int]]] = {"images": ("uint8", shape)} | dict.fromkeys(NUMBERS, rows)
        if decoding is not None:
            expected["images"] = "uint8", [tensors["images"].numel() if "images" in tensors else 0]
            expected |= {"offsets": ("int64", [n + 1]), "shapes": ("int32", [n, len(SHAPE)])}
        if logits:
            expected["logits"] = "float32", [n, num_classes]
            if tensors.keys() == expected.keys() - {"logits"}:
                problem = "has no logits of its images, which classifier.distill stored_logits needs"
                raise ConfigError(str(file), f"{problem}; allowed: a run with this key from its first task on")
        missing, unknown = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
        if missing or unknown:
            raise ConfigError(str(file), f"is no replay memory: lacks {missing}, has unknown {unknown[:3]}")
        for name, (kind, shape) in expected.items():
            found = str(tensors[name].dtype).removeprefix("torch."), list(tensors[name].shape)
            if found != (kind, shape):
                raise ConfigError(str(file), f"{name} is {found[0]} {found[1]}; allowed: {kind} {shape}")
        labels = tensors["labels"]
        if n and not (int(labels.min()) >= -1 and int(labels.max()) < num_classes):
            problem = f"has labels from {int(labels.min())} to {int(labels.max())}"
            raise ConfigError(str(file), f"{problem}; allowed: -1 to {num_classes - 1}")
        encoded = {name: tensors.pop(name) for name in expected.keys() - {*NUMBERS, "logits"}}
        try:
            images = encoded["images"] if decoding is None else Encoded.of_tensors(encoded, decoding)
        except ValueError as error:
            raise ConfigError(str(file), f"is damaged: {error}") from None
        return Memory(images, **tensors)

    def digest(self) -> str:
        """SHA-256 of all that is held."""
        found = hashlib.sha256()
        for tensor in self.tensors().values():
            found.update(tensor.contiguous().numpy().data)
        return found.hexdigest()


@dataclass(frozen=True)
class Choice:
    """The memory after a task, without its images.

    ids: int64 (n,), sample ids of images of the task that are taken up; rows: the rows of [the memory ; these] that
    are kept, in that order; None: all.
    """

    ids: np.ndarray
    rows: Tensor | None = None

    def digest(self) -> str:
        """SHA-256 of the choice."""
        rows = b"all" if self.rows is None else self.rows.numpy().tobytes()
        return hashlib.sha256(self.ids.tobytes() + rows).hexdigest()

    def applied(
        self,
        memory: Memory,
        images: Images,
        labels: np.ndarray,
        task: int,
        logits: Tensor | None = None,
        offset: int = 0,
    ) -> Memory:
        """The memory after the task.

        Args:
            images, labels: those of the source's train split, labels int64 (N,).
            logits: float32 (n, classes) of the images that are taken up, for a memory that holds logits.
            offset: added to their indices in the train split for their sample ids.
        """
        if not len(self.ids):
            return memory
        taken = {
            "labels": torch.from_numpy(labels[self.ids]),
            "sample_ids": torch.from_numpy(self.ids + offset),
            "task_ids": torch.full((len(self.ids),), task),
        }
        if logits is not None:
            taken["logits"] = logits
        together = {name: torch.cat([getattr(memory, name), part]) for name, part in taken.items()}
        numbers = {name: both if self.rows is None else both[self.rows] for name, both in together.items()}
        return Memory(self._images(memory, images), **numbers)

    def _images(self, memory: Memory, images: Images) -> Tensor | Encoded:
        if isinstance(images, Encoded):
            assert isinstance(memory.images, Encoded)
            # Only what is kept is read: with a budget a whole task may be taken up and cut.
            both = [(memory.images, row) for row in range(len(memory))] + [(images, int(row)) for row in self.ids]
            kept = both if self.rows is None else [both[row] for row in self.rows.tolist()]
            return Encoded.collected(kept, images.decoding)
        assert isinstance(memory.images, Tensor)
        pixels = torch.cat([memory.images, torch.from_numpy(images[self.ids])])
        return pixels if self.rows is None else pixels[self.rows]


def choose(
    memory: Memory,
    labels: np.ndarray,
    sample_ids: np.ndarray,
    *,
    task: int,
    seed: int,
    policy: str,
    budget: tuple[str, float],
    features: Features,
    offset: int = 0,
    own: ReplayPolicy | None = None,
    costs: tuple[np.ndarray, np.ndarray] | None = None,
) -> Choice:
    """Which images the memory holds after a task: what it held and a choice of the task's images, cut to the budget.

    Args:
        memory: the memory before the task.
        labels: int64 (N,) of the source's train split.
        sample_ids: (n,) indices of the task's images in it; images without a label (-1) count as one class.
        policy: none, random (seeded, class-balanced), first (of each class in dataset order), herding (see
            `herding_order`) or reservoir (see `_reservoir`).
        budget: ("per_class", k), ("fraction", part of each class, at least one image), ("auto", part of each class, at
            least AUTO_LEAST images), ("total", images in all) or ("bytes", the bytes of all); reservoir takes the last
            two.
        features: called once for all images of the task, only by herding and own policies.
        own: the policy where it is the user's own.
        offset: see `Choice.applied`.
        costs: for "bytes", those of each image of the memory (m,) and of the train split (N,).
    """
    kind, size = budget
    if policy == "none":
        return Choice(np.empty(0, dtype=np.int64))
    if policy == "reservoir":
        # Cut twice, so that a large task is never copied as a whole.
        first = _reservoir(torch.from_numpy(sample_ids + offset), size, seed, costs and costs[1][sample_ids])
        ids = sample_ids[first.numpy()].astype(np.int64)
        together = torch.cat([memory.sample_ids, torch.from_numpy(ids + offset)])
        return Choice(ids, _reservoir(together, size, seed, costs and np.concatenate([costs[0], costs[1][ids]])))
    by_features = policy == "herding" or own is not None
    ids = np.sort(sample_ids) if by_features else sample_ids
    found = features(ids) if by_features else None
    chosen = []
    for label in np.unique(labels[ids]):
        of = np.flatnonzero(labels[ids] == label)
        most = int(size // costs[1][ids[of]].min()) if costs else int(size)
        keep = min(len(of), max(LEAST[kind], round(size * len(of))) if kind in LEAST else most)
        if policy == "random":
            of = of[permutation(len(of), fold(seed, Purpose.MEMORY, task, int(label))).numpy()]
        elif own is not None and found is not None:
            keys = hash_rows(fold(seed, Purpose.MEMORY, task), torch.from_numpy(ids[of].astype(np.int64)))
            draws = uniform(keys, 1)[:, 0].double().numpy()
            of = of[ordered(own, Candidates(ids[of], int(label), found[of], draws, keep))]
        elif found is not None:
            of = of[herding_order(found[of], keep)]
        chosen.append(ids[of[:keep]].astype(np.int64))
    taken = np.concatenate(chosen)
    if kind not in ("total", "bytes"):
        return Choice(taken)
    tasks = torch.cat([memory.task_ids, torch.full((len(taken),), task)])
    together, each = torch.cat([memory.labels, torch.from_numpy(labels[taken])]), costs
    every = None if each is None else np.concatenate([each[0], each[1][taken]])
    return Choice(taken, _within_total(tasks, together, size, every))


def herding_order(features: np.ndarray, count: int) -> np.ndarray:
    """The first `count` rows, int64 (count,), chosen one by one so that their running mean stays closest to the mean.

    Herding as in iCaRL (Rebuffi et al. 2017, arXiv 1611.07725, algorithm 4), on L2-normalised rows; means are not
    normalised again. Of rows that are equally close the first is taken.

    Args:
        features: (n, d) with n >= count; a row of zeros stays one.
    """
    rows = features.astype(np.float64)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    mean, held = rows.mean(axis=0), np.zeros(rows.shape[1])
    free, order = np.ones(len(rows), dtype=bool), np.empty(count, dtype=np.int64)
    for place in range(count):
        # |mean - (held + row) / k| is smallest where the row is closest to k mean - held. Summed row by row, and not
        # as a matrix product, so that equal rows are equally close to the last bit.
        gaps = np.square(rows - ((place + 1) * mean - held)).sum(axis=1)
        order[place] = np.argmin(np.where(free, gaps, np.inf))
        free[order[place]] = False
        held += rows[order[place]]
    return order


def _first(order: Tensor, size: float, costs: np.ndarray | None) -> Tensor:
    """The first of an order of rows: `size` of them, or as many as cost no more than that together."""
    if costs is None:
        return order[: int(size)]
    return order[: int((torch.from_numpy(costs)[order].cumsum(0) <= size).sum())]


def _reservoir(sample_ids: Tensor, size: float, seed: int, costs: np.ndarray | None = None) -> Tensor:
    """Rows of the images that come first in a seeded order of all images, as `_first` counts them.

    Reservoir sampling with one random key per image (Efraimidis and Spirakis 2006, with equal weights): an image that
    was once dropped never comes back, so the memory is a uniform sample of all images seen, and their number is not
    needed.
    """
    return _first(torch.argsort(hash_rows(fold(seed, Purpose.MEMORY), sample_ids)), size, costs)


def _within_total(task_ids: Tensor, labels: Tensor, size: float, costs: np.ndarray | None = None) -> Tensor:
    """Rows to keep so that each (task, class) group has an even share of the total, given out one image at a time.

    Groups keep their first rows: a random order cut short is still a random choice.
    """
    groups = torch.stack([task_ids, labels], dim=1)
    _, group = torch.unique(groups, dim=0, return_inverse=True)
    place = torch.empty_like(group)
    place[group.argsort(stable=True)] = torch.cat([torch.arange(count) for count in group.bincount().tolist()])
    # The first image of every group, then the second of every group, and so on, until the total is reached.
    order = torch.argsort(place * (int(group.max()) + 1) + group)
    return _first(order, size, costs).sort().values
