"""A replay memory of encoded images: its budget in bytes, and its file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_sources import encoded, picture

from kaizen.data.decoding import Decoding
from kaizen.data.encoded import Encoded, Joined
from kaizen.data.replay import Memory, choose
from kaizen.errors import ConfigError

DECODING = Decoding(8, 9)
LABELS = np.arange(40) % 4


def split() -> Encoded:
    """PNGs of 40 sizes, from 100 bytes to some thousands."""
    sizes = [(5 + i, 9 + i % 7) for i in range(len(LABELS))]
    contents = [np.frombuffer(encoded(picture(i, size))["bytes"], np.uint8).copy() for i, size in enumerate(sizes)]
    offsets = torch.tensor(np.cumsum([0, *map(len, contents)]))
    shapes = np.array([(height, width, 0) for width, height in sizes], dtype=np.int32)
    return Encoded(Joined(torch.from_numpy(np.concatenate(contents)), offsets), shapes, DECODING)


IMAGES = split()


def remembered(policy: str, budget: int, more: int = 0) -> list[Memory]:
    """The memory after each of two tasks of two classes; `more`: bytes that each image costs beside its own."""
    memory, found = Memory.empty(3, 8, decoding=DECODING), []
    for task, classes in enumerate(([0, 1], [2, 3])):
        assert isinstance(memory.images, Encoded)
        choice = choose(
            memory,
            LABELS,
            np.flatnonzero(np.isin(LABELS, classes)),
            task=task,
            seed=3,
            policy=policy,
            budget=("bytes", budget),
            features=lambda ids: np.stack([ids, ids**2 % 7, ids % 3], axis=1).astype(np.float32),
            costs=(memory.images.lengths + more, IMAGES.lengths + more),
        )
        memory = choice.applied(memory, IMAGES, LABELS, task)
        found.append(memory)
    return found


@pytest.mark.parametrize("policy", ["random", "first", "herding", "reservoir"])
@pytest.mark.parametrize("more", [0, 400])
def test_a_budget_in_bytes_is_used_up_and_never_exceeded(policy: str, more: int) -> None:
    budget, largest = 12_000, int(IMAGES.lengths.max()) + more
    for memory in remembered(policy, budget, more):
        assert isinstance(memory.images, Encoded)
        cost = int((memory.images.lengths + more).sum())
        assert budget - largest < cost <= budget
    counts = memory.labels.unique(return_counts=True)[1]
    if policy != "reservoir":
        assert len(counts) == 4
        assert int(counts.max() - counts.min()) <= 1


def test_an_image_that_a_reservoir_dropped_does_not_come_back() -> None:
    first, second = remembered("reservoir", 9_000)
    kept = set(second.sample_ids[second.task_ids == 0].tolist())
    assert kept < set(first.sample_ids.tolist())


def test_rows_of_the_memory_are_the_images_of_their_sample_ids() -> None:
    for memory in remembered("random", 12_000):
        ids = memory.sample_ids.numpy()
        assert np.array_equal(memory.pixels[np.arange(len(ids))], IMAGES[ids])
        assert memory.labels.tolist() == LABELS[ids].tolist()


def test_a_memory_is_read_as_it_was_saved(tmp_path: Path) -> None:
    memory = remembered("random", 12_000)[1]
    save_file(memory.tensors(), tmp_path / "replay.safetensors")
    again = Memory.read(tmp_path / "replay.safetensors", (3, 8, 8), 4, decoding=DECODING)
    assert again.digest() == memory.digest()
    assert np.array_equal(again.pixels[np.array([3, 1])], memory.pixels[np.array([3, 1])])
    with pytest.raises(ConfigError, match=r"has unknown \['offsets', 'shapes'\]"):
        Memory.read(tmp_path / "replay.safetensors", (3, 8, 8), 4)


def test_an_empty_memory_is_read_as_it_was_saved(tmp_path: Path) -> None:
    save_file(Memory.empty(3, 8, decoding=DECODING).tensors(), tmp_path / "replay.safetensors")
    again = Memory.read(tmp_path / "replay.safetensors", (3, 8, 8), 4, decoding=DECODING)
    assert len(again) == 0
    assert again.pixels[np.empty(0, dtype=np.int64)].shape == (0, 3, 8, 8)


@pytest.mark.parametrize(
    ("name", "row", "value"),
    [("offsets", 1, 10**9), ("offsets", 0, 5), ("offsets", -1, 3), ("offsets", 2, -7), ("shapes", 0, 0)],
)
def test_a_damaged_memory_is_refused_by_name(tmp_path: Path, name: str, row: int, value: int) -> None:
    tensors = {key: tensor.clone() for key, tensor in remembered("first", 12_000)[0].tensors().items()}
    tensors[name].view(-1)[row] = value
    save_file(tensors, tmp_path / "replay.safetensors")
    with pytest.raises(ConfigError, match=r"replay.safetensors: is damaged: offsets, shapes and bytes of the images"):
        Memory.read(tmp_path / "replay.safetensors", (3, 8, 8), 4, decoding=DECODING)
