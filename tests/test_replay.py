"""The replay memory: what it keeps, for every policy and budget."""

import numpy as np
import pytest
import torch

from kaizen.data.replay import Memory, remember

LABELS = np.array([0, 1, 0, 1, 0, 2, 2, 2, 2, -1] * 4)
IMAGES = np.arange(len(LABELS), dtype=np.uint8)[:, None, None, None] * np.ones((1, 3, 2, 2), dtype=np.uint8)


def kept(policy: str, budget: tuple[str, float], seed: int = 0) -> Memory:
    memory = Memory.empty(3, 2)
    for task, classes in enumerate(([0, 1], [2, -1])):
        ids = np.flatnonzero(np.isin(LABELS, classes))
        memory = remember(memory, IMAGES, LABELS, ids, task=task, seed=seed, policy=policy, budget=budget)
    return memory


def counts(memory: Memory) -> dict[int, int]:
    labels, numbers = memory.labels.unique(return_counts=True)
    return dict(zip(labels.tolist(), numbers.tolist(), strict=True))


@pytest.mark.parametrize("policy", ["random", "first"])
@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (("per_class", 3), {0: 3, 1: 3, 2: 3, -1: 3}),
        (("per_class", 99), {0: 12, 1: 8, 2: 16, -1: 4}),
        (("fraction", 0.25), {0: 3, 1: 2, 2: 4, -1: 1}),
        (("fraction", 0.01), {0: 1, 1: 1, 2: 1, -1: 1}),
        (("total", 8), {0: 2, 1: 2, 2: 2, -1: 2}),
        (("total", 20), {0: 5, 1: 5, 2: 6, -1: 4}),
    ],
)
def test_budgets(policy: str, budget: tuple[str, float], expected: dict[int, int]) -> None:
    memory = kept(policy, budget)
    found = counts(memory)
    if budget == ("total", 20):
        assert sum(found.values()) == 20
        assert found[-1] == 4
        assert max(found.values()) - min(found[label] for label in (0, 1, 2)) <= 1
    else:
        assert found == expected


def test_rows_belong_together() -> None:
    memory = kept("random", ("per_class", 3))
    for image, label, sample, task in zip(*memory.tensors().values(), strict=True):
        assert (image == int(sample)).all()
        assert LABELS[int(sample)] == int(label)
        assert int(task) == (0 if int(label) in (0, 1) else 1)
    assert len(set(memory.sample_ids.tolist())) == len(memory)


def test_first_keeps_the_first_of_each_class_in_dataset_order() -> None:
    memory = kept("first", ("per_class", 2))
    assert memory.sample_ids[memory.labels == 0].tolist() == [0, 2]
    assert memory.sample_ids[memory.labels == 2].tolist() == [5, 6]


def test_random_depends_on_the_seed_alone() -> None:
    one, same, other = (kept("random", ("per_class", 4), seed).sample_ids for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_none_keeps_nothing_and_an_empty_memory_can_be_saved() -> None:
    memory = kept("none", ("per_class", 3))
    assert len(memory) == 0
    again = Memory.from_tensors(memory.tensors())
    assert again.images.shape == (0, 3, 2, 2)
    assert again.images.dtype == torch.uint8


def test_a_total_that_shrinks_keeps_what_it_had_chosen_first() -> None:
    small, large = kept("random", ("total", 8)), kept("random", ("total", 20))
    assert set(small.sample_ids.tolist()) <= set(large.sample_ids.tolist())
